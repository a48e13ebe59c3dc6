"""On a graphics card Ming-Tiny answers, speaks and draws as on the CPU. Skipped, and said so, without a card."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import test_stacked_experts as stacked_experts
import torch
from transformers import AutoModelForMultimodalLM, BitsAndBytesConfig

from benchmarks import gpu, released
from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.training.objectives import next_token_loss
from training.tiny.evaluate import answer, questions_of, word_errors
from training.tiny.evaluate_drawing import draw_row
from training.tiny.evaluate_speech import listen
from training.tiny.world import sample_chat

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card here")

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = json.loads((ROOT / "demo" / "expected.json").read_text(encoding="utf-8"))
RECORDING = {"type": "audio", "audio": str(ROOT / "demo" / "recording.wav")}
SENTENCE = "a small green star is on the left on a white background"
ROWS = ("text_only", "image_qa", "two_images", "video_qa", "multi_turn")
QUANTIZATION = {
    4: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    8: BitsAndBytesConfig(load_in_8bit=True),
}


def load(dtype=torch.float32, **options):
    return AutoModelForMultimodalLM.from_pretrained(
        ROOT, trust_remote_code=True, dtype=dtype, device_map="cuda", **options
    ).eval()


@pytest.fixture(scope="module")
def card():
    return load()


@pytest.fixture(scope="module")
def half():
    return load(torch.bfloat16)


@pytest.fixture(scope="module")
def asked() -> list[tuple[list[dict], str]]:
    """Prompts of all kinds with their answers, a recording among them."""
    pairs = [
        pair
        for row in ROWS
        for index in range(6)
        for pair in questions_of(sample_chat(row, np.random.default_rng((96, index)), "test").messages)
    ]
    transcribe = {"type": "text", "text": "Transcribe this recording."}
    return [*pairs, ([{"role": "user", "content": [transcribe, RECORDING]}], EXPECTED["recording"])]


def prepare(processor, prompts, model, **options):
    return processor.apply_chat_template(
        prompts, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **options
    ).to(model.device, model.dtype)


@torch.no_grad()
def logits_of(model, inputs) -> torch.Tensor:
    """Logits [n, V] of all tokens that are no padding."""
    return model(**inputs).logits[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("whisper", [False, True], ids=["sanm", "whisper"])
def test_a_batch_of_all_media_answers_as_on_the_cpu(card, model, processor, asked, whisper):
    prompts = [prompt for prompt, _ in asked]
    assert answer(card, processor, prompts, whisper) == answer(model, processor, prompts, whisper)


def test_logits_are_those_of_the_cpu(card, model, processor, asked):
    prompts = [prompt for prompt, _ in asked[::5]]
    ours, wanted = (logits_of(one, prepare(processor, prompts, one)).cpu() for one in (card, model))
    torch.testing.assert_close(ours, wanted, atol=5e-3, rtol=0)


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_implementations_agree(card, processor, asked, experts, attention):
    inputs = prepare(processor, [prompt for prompt, _ in asked[::5]], card)
    other = load(attn_implementation=attention, experts_implementation=experts)
    torch.testing.assert_close(logits_of(other, inputs), logits_of(card, inputs), atol=5e-3, rtol=0)


def test_bfloat16_answers_are_right(half, processor, asked):
    replies = answer(half, processor, [prompt for prompt, _ in asked], whisper=False)
    right = [reply == expected for reply, (_, expected) in zip(replies, asked, strict=True)]
    assert np.mean(right) >= 0.9


def test_a_static_cache_and_a_compiled_step_answer_alike(card, processor, asked):
    inputs = prepare(processor, [prompt for prompt, _ in asked[::8]], card)
    expected = card.generate(**inputs, max_new_tokens=24, do_sample=False)
    # Compiles the decoding step by itself on a card.
    static = card.generate(**inputs, max_new_tokens=24, do_sample=False, cache_implementation="static")
    assert torch.equal(static, expected)


def test_compiled_steps_answer_and_speak_alike(card, processor, asked):
    """Captured as CUDA graphs, used again by other prompts, by padded batches and from the thread of a stream."""
    prompts = [prompt for prompt, _ in asked[::8]]
    for chosen in (prompts[:3], prompts[1:4], prompts[:1], prompts[:3]):
        inputs = prepare(processor, chosen, card)
        expected = card.generate(**inputs, max_new_tokens=24, do_sample=False)
        assert torch.equal(card.generate(**inputs, max_new_tokens=24, do_sample=False, compile=True), expected)
    inputs = prepare(processor, prompts[:1], card)
    plain, compiled = (list(card.stream(**inputs, max_new_tokens=24, compile=asks)) for asks in (False, True))
    assert compiled[-1].text == plain[-1].text
    for texts in ([SENTENCE], [SENTENCE, "two", "three"], ["two"]):
        plain, compiled = (card.speak(texts, speaker="iris", seed=0, compile=asks) for asks in (False, True))
        for ours, other in zip(compiled.waveforms, plain.waveforms, strict=True):
            torch.testing.assert_close(ours, other, atol=1e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_speech_repeats_and_is_understood(card, half, processor, dtype):
    speaker = card if dtype == torch.float32 else half
    first, again = (speaker.speak([SENTENCE, "two"], speaker="iris", seed=0) for _ in range(2))
    for ours, other in zip(first.waveforms, again.waveforms, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-3, rtol=0)
    heard = listen(card, processor, first.waveforms[:1], first.sampling_rate)
    assert word_errors(SENTENCE, heard[0]) <= 3


def test_a_stream_speaks_what_speak_says(card):
    whole = card.speak(SENTENCE, speaker="oscar", seed=3)
    events = list(card.speak_stream(SENTENCE, speaker="oscar", seed=3))
    chunks = [event.waveform for event in events if type(event).__name__ == "AudioChunk"]
    assert len(chunks) > 1 and torch.cat(chunks).shape == whole.waveforms[0].shape


@pytest.mark.parametrize("row", ["drawing", "editing", "style"])
def test_pictures_are_drawn_as_asked(card, half, processor, row):
    for model in (card, half):
        drawn = draw_row(row, model, processor, None, 20, seed=95, batch_size=20)
        assert np.mean([item.right for item in drawn]) >= 0.75


def test_parts_that_draw_take_turns_on_the_card(processor):
    model = load(torch.bfloat16)
    model.image_gen.enable_model_cpu_offload("cuda")
    assert np.mean([item.right for item in draw_row("drawing", model, processor, None, 4, 94, 4)]) >= 0.75
    assert {parameter.device.type for parameter in model.image_gen.transformer.parameters()} == {"cpu"}


@pytest.mark.parametrize("bits", QUANTIZATION)
def test_quantised_weights_answer_and_draw(processor, asked, bits):
    """As the README loads them; 4 bit computes in float32 here, 8 bit in float16."""
    model = BailingMMNativeForConditionalGeneration.from_pretrained(
        ROOT, dtype=torch.bfloat16, quantization_config=QUANTIZATION[bits], device_map="cuda"
    ).eval()
    replies = answer(model, processor, [prompt for prompt, _ in asked], whisper=False)
    assert np.mean([reply == expected for reply, (_, expected) in zip(replies, asked, strict=True)]) >= 0.85
    assert np.mean([item.right for item in draw_row("drawing", model, processor, None, 8, 93, 8)]) >= 0.75


@pytest.mark.parametrize("length", [1, 3, 40])
def test_experts_in_4_bit_are_dequantised_together(tmp_path, length):
    stacked_experts.decoder().save_pretrained(tmp_path)
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.15)):
        together, apart = (stacked_experts.load(tmp_path, stacked, dtype, device="cuda") for stacked in (None, False))
        ours, wanted = (stacked_experts.logits_of(model, length) for model in (together, apart))
        torch.testing.assert_close(ours, wanted, atol=tolerance, rtol=0)
        assert all(experts._stacks is not None for experts in stacked_experts.layers_of(together))


def test_layers_beyond_the_card_wait_in_main_memory(card, processor, asked):
    prompts = [prompt for prompt, _ in asked[::5]]
    shared = AutoModelForMultimodalLM.from_pretrained(
        ROOT, trust_remote_code=True, dtype=torch.float32, device_map="auto", max_memory={0: "12MB", "cpu": "2GB"}
    ).eval()
    assert {str(place) for place in shared.hf_device_map.values()} >= {"0", "cpu"}
    assert answer(shared, processor, prompts, whisper=False) == answer(card, processor, prompts, whisper=False)


def test_memory_of_a_card_is_the_computed_one(tmp_path):
    """The benchmark of the released sizes, with a tenth of the layers."""
    config = BailingMMConfig(
        llm_config={"num_hidden_layers": 2}, vision_config={"depth": 2, "fullatt_block_indexes": [1]}
    )
    costs = {(cost.way, cost.name): cost.value for cost in released.measure(folder=str(tmp_path), config=config)}
    for way in ("bfloat16", "4 bit"):
        computed, measured = (costs[way, f"weights (GiB), {kind}"] for kind in ("computed", "measured"))
        assert measured == pytest.approx(computed, rel=0.05)
        assert costs[way, "peak while loading / weights"] < 1.15


def test_the_benchmark_of_a_gpu_measures_everything():
    """The released sizes, with a tenth of the layers of the main model."""
    config = BailingMMConfig(
        llm_config={"num_hidden_layers": 2},
        vision_config={"depth": 2, "fullatt_block_indexes": [1]},
        talker_config={"llm_config": {"num_hidden_layers": 2}},
    )
    costs = gpu.measure(minutes=20, config=config)
    assert not [(cost.name, cost.way, cost.note) for cost in costs if cost.note]
    assert all(cost.peak >= cost.weights for cost in costs if cost.weights)


def test_a_training_step_lowers_the_loss(card, processor, asked):
    model = copy.deepcopy(card).train()
    inputs = prepare(processor, [prompt for prompt, _ in asked[:8]], model)
    labels, prompt = inputs["input_ids"].clone(), dict(inputs)
    attention_mask = prompt.pop("attention_mask")
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(4):
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = next_token_loss(model, *model.embed(**prompt), attention_mask, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
