"""NaN and values that overflow are one error that names the layer, in every call that answers."""

import re
import shutil
import threading
from pathlib import Path

import pytest
import torch
from image_helpers import small_image_gen
from safetensors.torch import load_file, save_file
from speech_helpers import build_speaking_repository
from transformers import LogitsProcessorList

from ming.cli.main import main
from ming.finite import LogitsCheck, NotFiniteError, first_not_finite, naming_layers, raise_if_not_finite
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
PICTURE = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
RECORDING = {"type": "audio", "audio": str(ROOT / "demo" / "recording.wav")}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Ming-Tiny's thinker with a small talker, detokenizer and image head."""
    directory = build_speaking_repository(tmp_path_factory.mktemp("omni"))
    small_image_gen().save_pretrained(directory / "image_gen")
    return directory


@pytest.fixture(scope="module")
def model(repository):
    return BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()


@pytest.fixture
def damaged(model):
    """Puts a value into a weight, which is found by its name in the checkpoint, until the end of the test."""
    parts = {"audio_detokenizer": model.audio_detokenizer.load(), "image_gen": model.image_gen.load()}
    undo = []

    def damage(name: str, value: float = float("nan")) -> None:
        prefix, _, rest = name.partition(".")
        part, rest = (parts[prefix], rest) if prefix in parts else (model, name)
        weight = dict(part.named_parameters())[rest]
        undo.append((weight, weight.detach().clone()))
        with torch.no_grad():
            weight[..., 0] = value

    yield damage
    with torch.no_grad():
        for weight, before in undo:
            weight.copy_(before)


def prepare(processor, *content, rows: int = 1) -> dict:
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": "What comes after three?"}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template([chat] * rows, **options)


def answers(model, processor) -> dict:
    """Every call that answers, by name."""
    text, seen, heard = (prepare(processor, *media) for media in ((), (PICTURE,), (RECORDING,)))
    return {
        "generate": lambda: model.generate(**text, max_new_tokens=4),
        "generate, sampled": lambda: model.generate(**text, max_new_tokens=4, do_sample=True),
        "generate, two beams": lambda: model.generate(**text, max_new_tokens=4, num_beams=2),
        "generate, image in": lambda: model.generate(**seen, max_new_tokens=4),
        "generate, audio in": lambda: model.generate(**heard, max_new_tokens=4),
        "generate, audio out": lambda: model.generate(**text, max_new_tokens=4, generation_mode="audio", seed=0),
        "generate, image out": lambda: model.generate(**text, generation_mode="image", seed=0),
        "stream": lambda: list(model.stream(**text, max_new_tokens=4)),
        "stream, image out": lambda: list(model.stream(**text, generation_mode="image", seed=0)),
        "speak": lambda: model.speak("red", seed=0, attempts=1),
        "speak_stream": lambda: list(model.speak_stream("red", seed=0, attempts=1)),
        "chat": lambda: model.chat(processor, max_new_tokens=4).say("What comes after three?"),
        "chat, image in": lambda: model.chat(processor, max_new_tokens=4).say([PICTURE]),
    }


THINKER = "model.model.layers.1.mlp.shared_experts.down_proj"
CASES = [
    (f"{THINKER}.weight", THINKER, "generate"),
    (f"{THINKER}.weight", THINKER, "generate, sampled"),
    (f"{THINKER}.weight", THINKER, "generate, two beams"),
    (f"{THINKER}.weight", THINKER, "generate, audio out"),
    (f"{THINKER}.weight", THINKER, "generate, image out"),
    (f"{THINKER}.weight", THINKER, "stream"),
    (f"{THINKER}.weight", THINKER, "chat"),
    ("model.model.layers.2.mlp.gate.weight", "model.model.layers.2.mlp.gate", "generate"),
    ("model.model.word_embeddings.weight", "model.model.word_embeddings", "generate"),
    ("vision.blocks.1.mlp.down_proj.weight", "vision.blocks.1.mlp.down_proj", "generate, image in"),
    ("vision.blocks.1.mlp.down_proj.weight", "vision.blocks.1.mlp.down_proj", "chat, image in"),
    ("linear_proj_audio.0.weight", "linear_proj_audio.0", "generate, audio in"),
    ("talker.model.model.layers.1.mlp.up_proj.weight", "talker.model.model.layers.1.mlp.up_proj", "speak"),
    ("talker.vp_head.weight", "talker.vp_head", "speak_stream"),
    ("audio_detokenizer.flow.spk_embed_affine_layer.weight", None, "speak"),
    ("audio_detokenizer.hift.conv_post.bias", "audio_detokenizer.hift.conv_post", "speak"),
    ("audio_detokenizer.flow.input_embedding.weight", "audio_detokenizer.flow.input_embedding", "speak_stream"),
    ("image_gen.transformer.proj_out.weight", "image_gen.transformer.proj_out", "stream, image out"),
    ("image_gen.proj_out.weight", "image_gen.proj_out", "generate, image out"),
    ("image_gen.vae.decoder.conv_out.weight", "image_gen.vae.decoder.conv_out", "generate, image out"),
]


@pytest.mark.parametrize(("weight", "layer", "call"), CASES)
def test_a_nan_is_named_by_its_layer_and_weight(model, processor, damaged, weight, layer, call):
    damaged(weight)
    layer = layer or weight.removesuffix(".weight")
    with pytest.raises(
        FloatingPointError, match=rf"from layer {re.escape(layer)} on: the weight {re.escape(weight)} "
    ):
        answers(model, processor)[call]()


def test_a_weight_that_is_no_layer_is_named(model, processor, damaged):
    damaged("image_gen.query_tokens_dict.3x3")
    with pytest.raises(FloatingPointError, match="the weight image_gen.query_tokens_dict.3x3 is not finite"):
        answers(model, processor)["generate, image out"]()


def test_a_nan_that_comes_with_a_later_token_is_named(model, processor, damaged):
    """The prompt is read well; the first token of the reply is not."""
    text = prepare(processor)
    first = int(model.generate(**text, max_new_tokens=1)[0, -1])
    assert first not in text["input_ids"]
    with torch.no_grad():
        damaged("model.model.word_embeddings.weight", 0.0)  # to be restored
        model.get_input_embeddings().weight[first] = float("nan")
    for options in ({}, {"do_sample": True, "top_k": 1}, {"num_beams": 2}):
        with pytest.raises(FloatingPointError, match=r"model\.model\.word_embeddings on"):
            model.generate(**text, **options, max_new_tokens=4)


def test_inputs_that_are_not_finite_are_told_from_weights(model, processor):
    seen = prepare(processor, PICTURE)
    seen["pixel_values"][3] = float("inf")
    with pytest.raises(FloatingPointError, match=r"from layer vision\.\S+ on: its inputs are not finite"):
        model.generate(**seen, max_new_tokens=4)


def test_values_beyond_float16_are_told_from_weights(repository, processor):
    low = BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float16).eval()
    with torch.no_grad():
        low.model.model.layers[1].mlp.shared_experts.down_proj.weight.fill_(60_000)
    expected = "model.model.layers.1.mlp.shared_experts.down_proj on: values overflow in torch.float16.*torch.bfloat16"
    with pytest.raises(FloatingPointError, match=expected):
        low.generate(**prepare(processor), max_new_tokens=4)


def test_the_command_line_says_it_in_one_line(repository, tmp_path, capsys):
    checkpoint = shutil.copytree(repository, tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    weights["linear_proj.0.weight"][:] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    image = str(ROOT / "demo" / "picture.jpg")
    assert main(["ask", "Describe the picture.", "--image", image, "--model", str(checkpoint), "--quiet"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("ming: error: the logits are not finite") and "linear_proj.0.weight is" in lines[-1]


def test_a_failed_call_leaves_no_hooks_and_the_model_as_it_was(model, processor, damaged):
    call = answers(model, processor)["generate"]
    before = call()
    weight = model.get_parameter(f"{THINKER}.weight")
    sound = weight.detach().clone()
    damaged(f"{THINKER}.weight")
    with pytest.raises(FloatingPointError):
        call()
    with torch.no_grad():
        weight.copy_(sound)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(call(), before)


def test_a_forward_pass_checks_nothing(model, processor, damaged):
    """Training has its own ways with NaN, and compiled code no room for a check."""
    damaged(f"{THINKER}.weight")
    assert model(**prepare(processor)).logits.isnan().any()


@pytest.mark.parametrize("new_tokens", [1, 12])
def test_text_is_checked_twice_however_long_it_is(model, processor, monkeypatch, new_tokens):
    looks = []
    monkeypatch.setattr(LogitsCheck, "raise_if_not_finite", lambda check: looks.append(check))
    text = prepare(processor)
    model.generate(**text, min_new_tokens=new_tokens, max_new_tokens=new_tokens)
    assert len(looks) == 2


def test_logits_processors_of_the_caller_go_on_working(model, processor, damaged):
    text = prepare(processor)
    start = text["input_ids"].shape[1]
    first = int(model.generate(**text, max_new_tokens=1)[0, start])

    def bar(input_ids, scores):
        return scores.index_fill(1, torch.tensor([first]), float("-inf"))

    for given in ([bar], LogitsProcessorList([bar])):
        assert int(model.generate(**text, max_new_tokens=1, logits_processor=given)[0, start]) != first
    by_position = model.generate(
        text["input_ids"], None, [bar], attention_mask=text["attention_mask"], max_new_tokens=1
    )
    assert int(by_position[0, start]) != first
    damaged(f"{THINKER}.weight")
    kept = model.generate(**text, max_new_tokens=2, remove_invalid_values=True)  # asked for by the caller
    assert kept.shape[1] == start + 2


def test_a_second_pass_over_sound_parts_finds_nothing(model, processor):
    """No layer of ours has outputs that are not finite by design."""
    parts = {"": model, "audio_detokenizer": model.audio_detokenizer.load(), "image_gen": model.image_gen.load()}
    calls = answers(model, processor)

    def again():
        for call in calls.values():
            call()

    with pytest.raises(FloatingPointError, match="^it, but every layer was finite"), naming_layers(parts, again):
        raise FloatingPointError("it")


def test_an_assistant_is_told_from_the_model_it_assists(repository, model, processor, damaged):
    sound = BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()
    damaged(f"{THINKER}.weight")
    with pytest.raises(NotFiniteError, match=re.escape(THINKER)) as caught:
        sound.generate(**prepare(processor), assistant_model=model, max_new_tokens=4)
    assert str(caught.value).count("from layer") == 1 and "every layer was finite" not in str(caught.value)


def test_compiled_layers_and_other_threads():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2))
    compiled = torch.compile(network, backend="eager")
    compiled(torch.ones(1, 2))
    with torch.no_grad():
        network[2].bias.fill_(float("nan"))
    others = []

    def again():
        other = threading.Thread(target=lambda: others.append(compiled(torch.ones(1, 2))))
        other.start()
        other.join()
        compiled(torch.ones(1, 2))

    assert first_not_finite({"net": network}, again).startswith("from layer net.2 on: the weight net.2.bias ")
    assert others and others[0].isnan().all()


def test_infinities_and_nan_are_not_finite():
    raise_if_not_finite("it is", torch.zeros(0))
    for value in ("inf", "-inf", "nan"):
        with pytest.raises(FloatingPointError, match="^it is not finite"):
            raise_if_not_finite("it is", torch.tensor([0.0, float(value)]))
