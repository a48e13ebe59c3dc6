"""Jobs of the engine, and the events that they send back.

A job sends `TextDelta`, `AudioChunk`, `ImageProgress` and `ImageDone` of the model,
then exactly one of `Finished` and `Failed`.
"""

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch

from ming.events import AudioChunk, ImageDone, ImageProgress, TextDelta


@dataclass(frozen=True)
class Finished:
    """The end of a job.

    Args:
        reason: "stop", "length" or "cancelled".
        prompt_tokens, completion_tokens: how many the model read and wrote, 0 where it wrote no text.
    """

    reason: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Failed:
    """The job ended with an error."""

    error: Exception


Event = TextDelta | AudioChunk | ImageProgress | ImageDone | Finished | Failed
Deliver = Callable[[Event], None]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. None leaves a setting to the model's generation config.

    Args:
        temperature: 0 takes the likeliest token.
        top_p, top_k: keep the likeliest tokens only.
        seed: of the random numbers; a job with a seed is decoded alone, so that other jobs draw none of its numbers.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    @property
    def is_seeded(self) -> bool:
        return self.seed is not None and self.temperature != 0

    def options(self) -> dict[str, Any]:
        """Options of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False}
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in given.items() if value is not None}
        # As in OpenAI's API every token can come unless top_k is given; the library would take the best 50.
        return {"do_sample": True, "top_k": 0, **given} if given else {}


class Job:
    """A request for the engine's thread.

    Args:
        kind: "text", "speech" or "image", for the metrics.
        deliver: takes the events, in the engine's thread; must not block.
    """

    def __init__(self, kind: str, deliver: Deliver):
        self.kind = kind
        self._deliver = deliver
        self._cancelled = threading.Event()
        self.ended: Finished | Failed | None = None
        self.has_begun = False  # whether any event was sent

    def cancel(self) -> None:
        """Ask for the end; from any thread, also after the end."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def send(self, event: Event) -> None:
        """Deliver an event; nothing follows the last one."""
        if self.ended is not None:
            return
        self.has_begun = True
        if isinstance(event, Finished | Failed):
            self.ended = event
        self._deliver(event)


class TextJob(Job):
    """A chat to answer in text, decoded together with others.

    Args:
        inputs: the processor's output for one chat, on the CPU.
        sampling: how tokens are chosen.
        max_new_tokens: of the reply.
        stop: strings that end the reply and are not part of it.
    """

    def __init__(
        self,
        deliver: Deliver,
        inputs: dict[str, torch.Tensor],
        sampling: Sampling,
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
    ):
        super().__init__("text", deliver)
        self.inputs, self.sampling, self.max_new_tokens, self.stop = inputs, sampling, max_new_tokens, stop

    @property
    def prompt_tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def group(self) -> tuple:
        """Jobs of equal groups choose their tokens alike."""
        return self.sampling, id(self) if self.sampling.is_seeded else None

    @property
    def audio_width(self) -> int | None:
        """Width of the audio features, which names the audio encoder; None without audio."""
        return self.inputs["audio_feats"].shape[-1] if "audio_feats" in self.inputs else None


class StreamJob(Job):
    """Speech or images: events of an iterator that has not started yet, one job at a time.

    Closing the iterator cancels the work.
    """

    def __init__(self, kind: str, deliver: Deliver, events: Generator[Event, None, None]):
        super().__init__(kind, deliver)
        self.events = events


__all__ = ["Deliver", "Event", "Failed", "Finished", "Job", "Sampling", "StreamJob", "TextJob"]
