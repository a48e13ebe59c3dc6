"""The model of lmms-eval: `lmms-eval --model ming --model_args pretrained=DIR,...`."""

import json
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

from ming.evaluation.answering import DEFAULT_MAX_NEW_TOKENS, Answerer
from ming.evaluation.journal import Journal
from ming.loading import LoadOptions
from ming.video import VideoOptions

DECODING = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams", "no_repeat_ngram_size")
SAMPLING = ("temperature", "top_p", "top_k")


class Ming(lmms):
    """Ming-Lite-Omni for tasks that give messages.

    Args:
        pretrained: directory or Hub id.
        batch_size: questions answered at once.
        device: default: the first GPU, or the CPU.
        dtype: "float32", "bfloat16" or "float16"; default: float32 on a CPU, else bfloat16.
        use_whisper_encoder: whether recordings go through Whisper, not SANM.
        seed: of sampled text.
        video: further arguments are options of `ming.video.VideoOptions`, such as `max_frames`, `fps`, `sample`; and
            `journal`: a file that keeps the answers, so that an interrupted run goes on.

    Raises:
        ValueError, UsageError: an unknown argument, or no such model or device.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        use_whisper_encoder: bool = False,
        **video: Any,
    ):
        super().__init__()
        path, seed = video.pop("journal", None), int(video.pop("seed", 0))
        video.pop("max_batch_size", None)  # lmms-eval's own
        if unknown := sorted(set(video) - VideoOptions.names()):
            known = ", ".join(sorted(VideoOptions.names()))
            raise ValueError(f"unknown model_args {', '.join(unknown)}; options of videos are {known}")
        VideoOptions(**video)
        self.batch_size, self.video = int(batch_size), video
        self.answerer = Answerer(str(pretrained), LoadOptions(device, dtype), seed, use_whisper_encoder)
        settings = {"model": str(pretrained), "dtype": dtype, "whisper": use_whisper_encoder, "video": video}
        self.journal = Journal(Path(path), {**settings, "seed": seed}) if path else None
        self.answerer.load("vision", self.answerer.hearing)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers to requests, in their order."""
        found: dict[int, str] = {}
        waiting: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            known = self.journal.records.get(self._key(request)) if self.journal else None
            if known:
                found[index] = known["answer"]
            else:
                waiting.setdefault(json.dumps(request.args[2], sort_keys=True, default=str), []).append(index)
        for indices in waiting.values():  # a batch shares its decoding
            for start in tqdm(range(0, len(indices), self.batch_size), desc="answering"):
                batch = indices[start : start + self.batch_size]
                found |= zip(batch, self._answer([requests[index] for index in batch]), strict=True)
        return [found[index] for index in range(len(requests))]

    def _answer(self, requests: list[Instance]) -> list[str]:
        chats = []
        for _, doc_to_messages, _, doc_id, task, split in (request.args for request in requests):
            messages = heard(doc_to_messages(self.task_dict[task][split][doc_id]))
            chats.append(ChatMessages(messages=messages).to_hf_messages(video_kwargs=self.video))
        asked = requests[0].args[2]
        answers = [cut(answer, asked.get("until")) for answer in self.answerer.answers(chats, **decoding(asked))]
        if self.journal:
            records = zip(requests, answers, strict=True)
            self.journal.add({"key": self._key(request), "answer": answer} for request, answer in records)
        return answers

    @staticmethod
    def _key(request: Instance) -> str:
        _, _, asked, doc_id, task, split = request.args
        return json.dumps([task, split, doc_id, request.idx, asked], sort_keys=True, default=str)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: tasks for chats ask for text."""
        raise NotImplementedError("the model ming answers in text; choose a task of output_type generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered."""
        raise NotImplementedError("the model ming answers one round; choose a task of output_type generate_until")


def heard(messages: list[dict]) -> list[dict]:
    """Messages in which decoded recordings are audio: lmms-eval 0.7.3 takes every dict for a video."""

    def item(content: dict) -> dict:
        value = content.get("url")
        is_recording = isinstance(value, dict) and {"array", "sampling_rate"} <= value.keys()
        return {**content, "type": "audio"} if is_recording else content

    return [{**message, "content": [item(content) for content in message["content"]]} for message in messages]


def decoding(asked: dict[str, Any]) -> dict[str, Any]:
    """Options of `generate` from lmms-eval's of a task: greedy unless a temperature above 0 is asked for."""
    options = {name: asked[name] for name in DECODING if asked.get(name) is not None}
    options.setdefault("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    sampled = options.get("temperature", 0) > 0 and options.get("do_sample", True)
    options = {name: value for name, value in options.items() if sampled or name not in SAMPLING}
    return {**options, "do_sample": sampled}


def cut(answer: str, until: list[str] | str | None) -> str:
    """The answer up to the first of the strings that end it."""
    for end in [until] if isinstance(until, str) else until or ():
        answer = answer.split(end)[0] if end else answer
    return answer.strip()
