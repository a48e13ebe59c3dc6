"""vLLM answers as `generate` does, in float32: run by `make test-vllm`, in an environment that has vLLM.

Answers hide a token that went to the wrong router, so the logarithms of the first token's probabilities are compared,
too. Questions are those of Ming-Tiny's test split; what recordings say is a tone, which both must take alike.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ming.loading import load_model
from ming.processing_bailingmm import BailingMMProcessor
from tests.test_tiny_world import ToneSpeaker
from training.tiny.world import sample_chat

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {
    "text_only": 30,
    "image_qa": 40,
    "image_count_describe": 40,
    "two_images": 40,
    "multi_turn": 30,
    "video_qa": 20,
    "asr_sanm": 20,
    "spoken_question": 20,
    "mixed": 20,
}
WHISPER_COUNT = 20
SEED, TOP, MAX_NEW_TOKENS = 9100000, 20, 60
ENGINES = {
    "eager": {"enforce_eager": True},
    "compiled": {},
    "chunked": {"enforce_eager": True, "max_num_batched_tokens": 64},
}
SHARE = float(os.environ.get("VLLM_SHARE", "1"))  # of the questions, to try a change


class TestSpeaker(ToneSpeaker):
    __test__ = False
    split = "test"


def questions() -> list[tuple[list[dict], bool]]:
    """Chats that end with a question, and whether their recordings are for Whisper."""
    chats = []
    for row, count in [*COUNTS.items(), ("asr_whisper", WHISPER_COUNT)]:
        rng = np.random.default_rng(SEED)
        for _ in range(max(1, int(count * SHARE))):
            messages = sample_chat(row, rng, "test", TestSpeaker()).messages
            chats.append((messages[:-1], row == "asr_whisper"))
    return chats


@pytest.fixture(scope="module")
def asked():
    return questions()


@pytest.fixture(scope="module")
def processor():
    return BailingMMProcessor.from_pretrained(ROOT)


@pytest.fixture(scope="module")
def expected(asked, processor):
    """Text and first token's log-probabilities [vocabulary] of every question, by `generate`."""
    model = load_model(str(ROOT), device="cpu", dtype=torch.float32)
    found = []
    for messages, whisper in asked:
        options = {"use_whisper_encoder": True} if whisper else {}
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=options
        )
        reply = model.generate(
            **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        text = processor.decode(reply.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append((text, reply.logits[0][0].log_softmax(-1)))
    return found


def request(processor, messages: list[dict], whisper: bool) -> dict:
    """A question as vLLM takes it: the rendered prompt, and its media."""
    images, videos, audios = processor.process_vision_info(messages)
    media = {
        "image": images,
        "video": videos and [video.permute(0, 2, 3, 1).numpy() for video in videos],
        "audio": audios and [(wave[0].numpy(), rate) for wave, rate in audios],
    }
    options = {"mm_processor_kwargs": {"use_whisper_encoder": True}} if whisper else {}
    data = {name: items for name, items in media.items() if items}
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return {"prompt": prompt, **({"multi_modal_data": data} if data else {}), **options}


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_and_probabilities_are_those_of_generate(engine, asked, processor, expected):
    from vllm import LLM, SamplingParams

    limits = {"image": 4, "audio": 4, "video": 2}
    llm = LLM(
        str(ROOT),
        trust_remote_code=True,
        dtype="float32",
        max_model_len=2048,
        max_num_seqs=16,
        limit_mm_per_prompt=limits,
        **ENGINES[engine],
    )
    sampling = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS, logprobs=TOP)
    outputs = llm.generate([request(processor, *question) for question in asked], sampling)
    differences, different = [], []
    for output, (text, scores) in zip(outputs, expected, strict=True):
        reply = output.outputs[0]
        first = reply.logprobs[0]
        differences.append(max(abs(found.logprob - scores[token].item()) for token, found in first.items()))
        if reply.text != text:
            different.append((text, reply.text))
    assert not different
    assert np.median(differences) <= 1e-4
    figures = f"median {np.median(differences):.1e}, most {max(differences):.1e}"
    sys.stdout.write(f"\n{engine}: {len(outputs)} questions, {figures}\n")
