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
from ming.speech import PromptStates


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
        seed: of the random numbers; None takes a fresh one. Every job draws its own.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def options(self) -> dict[str, Any]:
        """Options of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False}
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        given = {name: value for name, value in given.items() if value is not None}
        # As in OpenAI's API every token can come unless top_k is given; the library would take the best 50.
        return {"do_sample": True, "top_k": 0, **given} if given else {}


class Job:
    """A request for the engine.

    Args:
        kind: "text", "speech" or "image", for the metrics; None for a part of another job.
        deliver: takes the events, in a thread of the engine; must not block.
    """

    def __init__(self, kind: str | None, deliver: Deliver):
        self.kind = kind
        self._deliver = deliver
        self._cancelled = threading.Event()
        self.ended: Finished | Failed | None = None
        self.audio_seconds = 0.0  # of the recordings that were sent, where the answer tells it
        self.on_end: Callable[[Job], None] | None = None  # told before the last event is delivered

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
        if isinstance(event, Finished | Failed):
            self.ended = event
            if self.on_end is not None:
                self.on_end(self)
        self._deliver(event)


class TextJob(Job):
    """A chat to answer in text, decoded together with others.

    Args:
        inputs: the processor's output for one chat, on the CPU.
        sampling: how tokens are chosen.
        max_new_tokens: of the reply.
        stop: strings that end the reply and are not part of it.
        prompt_states: gets the states of the prompt that the talker is told.
        kind: see `Job`.
    """

    def __init__(
        self,
        deliver: Deliver,
        inputs: dict[str, torch.Tensor],
        sampling: Sampling,
        max_new_tokens: int,
        stop: tuple[str, ...] = (),
        prompt_states: PromptStates | None = None,
        kind: str | None = "text",
    ):
        super().__init__(kind, deliver)
        self.inputs, self.sampling, self.max_new_tokens, self.stop = inputs, sampling, max_new_tokens, stop
        self.prompt_states = prompt_states

    @property
    def prompt_tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]


class StreamJob(Job):
    """Speech or images: events of an iterator that has not started yet. Jobs run side by side.

    Args:
        events: closing them cancels the work.
        text: a chat whose reply the events read aloud; the engine decodes it from when the events start.
    """

    def __init__(self, kind: str, deliver: Deliver, events: Generator[Event, None, None], text: TextJob | None = None):
        super().__init__(kind, deliver)
        self.events, self.text = events, text


__all__ = ["Deliver", "Event", "Failed", "Finished", "Job", "Sampling", "StreamJob", "TextJob"]
