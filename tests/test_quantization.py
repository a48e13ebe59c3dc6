"""4 and 8 bit: what is quantised and kept, saving, reloading, refusals; Ming-Tiny answers as in full precision."""

import copy
import json
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from image_helpers import build_drawing_repository
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForMultimodalLM, BitsAndBytesConfig

from ming.modeling_bailing_moe import BailingMoeForCausalLM, BailingMoeSeparateExperts
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from training.tiny.evaluate import answer
from training.tiny.stage_drawing import new_image_gen

ROOT = Path(__file__).resolve().parents[1]
BITS = {
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    8: BitsAndBytesConfig(load_in_8bit=True),
}
QUANTISED = {4: bnb.nn.Linear4bit, 8: bnb.nn.Linear8bitLt}
PICTURE = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
CHATS = [
    [{"role": "user", "content": [PICTURE, {"type": "text", "text": question}]}]
    for question in ("Describe the picture.", "What is the background colour?", "How many shapes are there?")
]


def load(bits: int, source=ROOT, **options):
    quantization = {"quantization_config": BITS[bits], "device_map": "cpu"} if bits in BITS else {}
    return BailingMMNativeForConditionalGeneration.from_pretrained(
        source, dtype=torch.float32, **quantization, **options
    ).eval()


@pytest.fixture(scope="module", params=[4, 8])
def bits(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def quantised(bits):
    return load(bits)


@pytest.fixture(scope="module")
def full():
    return load(32)


def test_decoder_and_encoders_are_quantised_and_the_rest_is_kept(quantised, bits):
    layers = {name: type(module) for name, module in quantised.named_modules() if isinstance(module, nn.Linear)}
    kind = QUANTISED[bits]
    for layer in range(4):
        prefix = f"model.model.layers.{layer}"
        for name in (
            "attention.query_key_value",
            "attention.dense",
            "mlp.experts.7.gate_proj",
            "mlp.experts.0.up_proj",
        ):
            assert layers[f"{prefix}.{name}"] is kind
        assert layers[f"{prefix}.mlp.shared_experts.down_proj"] is kind
        # 96 inputs are no multiple of 64: this size cannot be quantised on every device.
        assert layers[f"{prefix}.mlp.experts.0.down_proj"] is nn.Linear
        gate = quantised.model.model.layers[layer].mlp.image_gate.weight
        assert gate.dtype == torch.float32 and gate.shape == (8, 192)
    assert layers["vision.blocks.0.attn.qkv"] is kind
    assert layers["audio.encoders.0.self_attn.linear_q_k_v"] is kind
    whisper = [found for name, found in layers.items() if name.startswith("whisper_encoder.")]
    assert len(whisper) == 24 and set(whisper) == {kind}
    for name in ("model.lm_head", "linear_proj.0", "linear_proj_audio.3"):
        assert layers[name] is nn.Linear
    assert (
        layers["audio.encoders.0.feed_forward.w_1"] is layers["talker.model.model.layers.0.self_attn.q_proj"] is kind
    )
    assert layers["talker.model.lm_head"] is nn.Linear
    assert quantised.get_input_embeddings().weight.dtype == torch.float32
    norms = [module for module in quantised.modules() if "Norm" in type(module).__name__]
    assert norms and {weight.dtype for norm in norms for weight in norm.parameters()} == {torch.float32}
    assert not [m for m in quantised.audio_detokenizer.modules() if isinstance(m, kind)]


def test_memory_falls_with_the_bits(full):
    sizes = [load(bits).get_memory_footprint() for bits in (4, 8)] + [full.get_memory_footprint()]
    assert sizes == sorted(sizes) and sizes[0] < 0.45 * sizes[-1]


def test_answers_are_those_of_full_precision(quantised, full):
    processor = BailingMMProcessor.from_pretrained(ROOT)
    assert answer(quantised, processor, CHATS, whisper=False) == answer(full, processor, CHATS, whisper=False)


def test_logits_are_close(quantised, full, bits):
    text = "What comes after three? four Describe the picture. a small red circle on the left, on a white background"
    ids = BailingMMProcessor.from_pretrained(ROOT).tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted, found = full(input_ids=ids).logits, quantised(input_ids=ids).logits
    assert (found - wanted).norm() / wanted.norm() < {4: 0.25, 8: 0.05}[bits]


def test_saved_checkpoints_are_reloaded_as_they_are(quantised, bits, tmp_path):
    quantised.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "model.model.layers.0.mlp.experts.3.gate_proj.weight" in names
    again = AutoModelForMultimodalLM.from_pretrained(
        tmp_path, trust_remote_code=True, dtype=torch.float32, device_map="cpu"
    )
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, quantised(input_ids=ids).logits, atol=1e-4, rtol=0)


def test_checkpoints_with_earlier_names_of_sanms_layers_still_load(quantised, bits, tmp_path):
    """Earlier versions held three layers for a fused one of the file, and named the others differently."""
    own = copy.deepcopy(BITS[bits])
    listed = quantised.config.quantization_config.llm_int8_skip_modules
    fused = [f"audio.encoders{layer}.self_attn.linear_q_k_v" for layer in ("0.0", ".0", ".1", ".2", ".3", ".4")]
    first = "audio.encoders.0."
    own.llm_int8_skip_modules = [*listed, *fused, f"{first}self_attn.linear_out", f"{first}feed_forward.w_1"]
    options = {"dtype": torch.float32, "device_map": "cpu", "load_talker": False}
    saved = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, quantization_config=own, **options).eval()
    saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    apart = [name.replace("linear_q_k_v", f"{kind}_proj") for name in fused for kind in "qkv"]
    config["quantization_config"]["llm_int8_skip_modules"] = [
        *(name for name in listed if name not in fused),
        *apart,
        f"{first}self_attn.o_proj",
        f"{first}mlp.fc1",
    ]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = BailingMMNativeForConditionalGeneration.from_pretrained(tmp_path, **options).eval()
    frames = torch.randn(1, 12, 560, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = [model.get_audio_features(frames, torch.tensor([[12]])) for model in (saved, loaded)]
    torch.testing.assert_close(*(one.last_hidden_state for one in features), atol=1e-4, rtol=0)


def test_only_experts_that_were_hit_are_dequantised(quantised, monkeypatch):
    experts = quantised.model.model.layers[0].mlp.experts
    assert isinstance(experts, BailingMoeSeparateExperts)
    visited = []
    for number, expert in enumerate(experts):
        monkeypatch.setattr(expert, "forward", lambda states, number=number: visited.append(number) or states)
    index = torch.tensor([[1, 5], [5, 2]])
    experts(torch.randn(2, 192), index, torch.full((2, 2), 0.5))
    assert visited == [1, 2, 5]


def test_separate_experts_are_the_stacked_ones(full):
    decoder = full.model
    separate = BailingMoeForCausalLM(decoder.config, separate_experts=True)
    weights = {}
    for name, value in decoder.state_dict().items():
        if name.endswith("gate_up_proj"):
            for expert, both in enumerate(value):
                gate, up = both.chunk(2)
                base = name.removesuffix("gate_up_proj")
                weights |= {f"{base}{expert}.gate_proj.weight": gate, f"{base}{expert}.up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            base = name.removesuffix("down_proj")
            weights |= {f"{base}{expert}.down_proj.weight": down for expert, down in enumerate(value)}
        else:
            weights[name] = value
    separate.load_state_dict(weights)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(separate(ids).logits, decoder(ids).logits, atol=1e-4, rtol=0)


def test_an_own_list_that_lets_an_odd_layer_through_is_refused():
    quantization = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_head"])
    with pytest.raises(ValueError, match=r"experts\.0\.down_proj \(96 to 192 features\) .* multiples of 64 and 32"):
        BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, quantization_config=quantization)
    assert BITS[4].llm_int8_skip_modules is None  # the caller's object is left alone


def test_what_draws_is_quantised_too_but_for_its_autoencoder(bits, tmp_path):
    new_image_gen(192).save_pretrained(build_drawing_repository(tmp_path) / "image_gen")
    model = load(bits, tmp_path)
    layers = {name: type(module) for name, module in model.image_gen.named_modules() if isinstance(module, nn.Linear)}
    kind = QUANTISED[bits]
    assert layers["connector.layers.0.self_attn.q_proj"] is layers["connector.layers.1.mlp.down_proj"] is kind
    assert layers["transformer.transformer_blocks.5.attn1.to_q"] is kind
    assert {layers[name] for name in layers if name.startswith(("vae", "mlp", "proj_", "transformer.proj_out"))} == {
        nn.Linear
    }
    ids = torch.arange(20)[None]
    drawn = model.generate(ids, generation_mode="image", num_inference_steps=1, seed=0)
    assert drawn.images[0].size == (96, 96)
