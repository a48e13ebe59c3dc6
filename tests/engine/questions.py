"""Questions for vLLM, what `generate` makes of them, and how far vLLM is from it.

Answers hide a token that went to the wrong router, so the logarithms of the first token's probabilities are compared,
too. Questions are those of Ming-Tiny's test split; what recordings say is a tone, which both must take alike.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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
    "asr_whisper": 20,
    "spoken_question": 20,
    "mixed": 20,
}
SEED, TOP, MAX_NEW_TOKENS = 9100000, 20, 60
BOUND = 1e-4  # of the median of the differences of a row: float32 on both sides
SHARE = float(os.environ.get("VLLM_SHARE", "1"))  # of the questions, to try a change


class TestSpeaker(ToneSpeaker):
    __test__ = False
    split = "test"


@dataclass(frozen=True)
class Question:
    """A chat that ends with a question, the row of the README's table it belongs to."""

    row: str
    messages: list[dict]

    @property
    def options(self) -> dict:
        return {"use_whisper_encoder": True} if self.row == "asr_whisper" else {}


@dataclass(frozen=True)
class Reply:
    """A text, and log-probabilities of its first token by id: of all tokens, or of the likeliest ones."""

    text: str
    scores: torch.Tensor | dict[int, float]


def questions(share: float = SHARE) -> list[Question]:
    """At least one question of each row."""
    asked = []
    for row, count in COUNTS.items():
        rng = np.random.default_rng(SEED)
        for _ in range(max(1, int(count * share))):
            asked.append(Question(row, sample_chat(row, rng, "test", TestSpeaker()).messages[:-1]))
    return asked


def answer(model, processor: BailingMMProcessor, messages: list[dict], **options) -> Reply:
    """What `generate` makes of a chat; `options` are the processor's."""
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=options
    )
    reply = model.generate(
        **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    text = processor.decode(reply.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return Reply(text, reply.logits[0][0].log_softmax(-1))


def request(processor: BailingMMProcessor, question: Question) -> dict:
    """A question as vLLM takes it: the rendered prompt, and its media."""
    images, videos, audios = processor.process_vision_info(question.messages)
    media = {
        "image": images,
        "video": videos and [video.permute(0, 2, 3, 1).numpy() for video in videos],
        "audio": audios and [(wave[0].numpy(), rate) for wave, rate in audios],
    }
    options = {"mm_processor_kwargs": question.options} if question.options else {}
    data = {name: items for name, items in media.items() if items}
    prompt = processor.apply_chat_template(question.messages, add_generation_prompt=True)
    return {"prompt": prompt, **({"multi_modal_data": data} if data else {}), **options}


def ask(checkpoint: Path, processor: BailingMMProcessor, asked: list[Question], **options) -> list[Reply]:
    """What vLLM makes of questions, in one batch; `options` are the engine's."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(checkpoint),
        trust_remote_code=True,
        dtype="float32",
        max_model_len=2048,
        max_num_seqs=16,
        limit_mm_per_prompt={"image": 4, "audio": 4, "video": 2},
        **options,
    )
    sampling = SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS, logprobs=TOP)
    outputs = llm.generate([request(processor, question) for question in asked], sampling)
    llm.llm_engine.engine_core.shutdown()
    replies = [output.outputs[0] for output in outputs]
    return [
        Reply(reply.text, {token: found.logprob for token, found in reply.logprobs[0].items()}) for reply in replies
    ]


def difference(found: Reply, wanted: Reply) -> float:
    """The largest difference of the log-probabilities of the likeliest first tokens."""
    return max(abs(score - wanted.scores[token].item()) for token, score in found.scores.items())
