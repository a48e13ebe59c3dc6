"""Velocities that several spoken replies ask for, computed in few passes.

Each reply makes its audio in a thread of its own (`DetokenizerStream`, `AudioDetokenizer.decode`). Most of the time is
in the flow's velocity network: hundreds of small operations, for which many threads would wait for each other longer
than they compute. So they ask one thread, and what is asked for at the same time are rows of one pass; or a few
threads, if cores are left for them, which share the rows.

Letters: B rows, M mel channels, T frames.
"""

import logging
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from audio_detokenizer.compiled_parts import Render, Velocity, padded, padded_length
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.compiled import step_config
from ming.serving.errors import shutting_down

logger = logging.getLogger(__name__)

MOST_ROWS = 64  # of a pass; each stream has two, with guidance and without
MOST_PASSES = 4  # at once: the small operations between the large ones wait for each other
GATHER_SHARE = 0.15  # of a pass's time: the next one waits at most so long for those who got a velocity to ask again


class Frames(NamedTuple):
    """What the velocity network is given, see `VelocityEstimator.forward`."""

    x: torch.Tensor
    mask: torch.Tensor | None
    mu: torch.Tensor
    timesteps: torch.Tensor
    speaker: torch.Tensor
    cond: torch.Tensor


@dataclass(eq=False)
class _Asked:
    """A thread waits for a velocity."""

    frames: Frames
    velocity: Future[torch.Tensor] = field(default_factory=Future)
    thread: int = field(default_factory=threading.get_ident)


@dataclass(frozen=True)
class _Pass:
    """Whom a thread answered last, how long it took, and when (as `time.perf_counter`)."""

    threads: set[int] = field(default_factory=set)
    seconds: float = 0.0
    ended: float = 0.0


class RunningAudio:
    """Stands in for the parts of an audio detokenizer between `start` and `close`.

    Frames of about the same length are padded to one, and masked. Where that would change results
    (`mask_padding=False`), and where parts are compiled (for few lengths, and each number of rows anew), every
    velocity is computed alone.

    Args:
        detokenizer: its weights are the ones that are computed with.
        compile_decoding: whether its parts are compiled; see `step_config`.
        passes: computed at the same time at most; one if parts are compiled.

    Attributes:
        vocoder: computes in the thread that calls it.
    """

    def __init__(self, detokenizer: AudioDetokenizer, compile_decoding, passes: int = 1):
        self.detokenizer = detokenizer
        own = detokenizer.flow.decoder.estimator
        compiled = detokenizer.parts(step_config(detokenizer.device, compile_decoding) or False)
        self._estimator: Velocity = own if compiled is None else compiled.estimator
        self.vocoder: Render = detokenizer.hift.render if compiled is None else compiled.vocoder
        self._merges = compiled is None and own.mask_padding
        self._changed = threading.Condition()
        self._asked: list[_Asked] = []
        self._idle = 0  # threads that wait for something to compute
        self._closing = False
        count = passes if compiled is None else 1
        self._threads = [threading.Thread(target=self._run, name="audio", daemon=True) for _ in range(count)]

    def start(self) -> None:
        """Start the threads."""
        self.detokenizer.together = self
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether all threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Let the detokenizer compute by itself again; who waits gets an error."""
        self.detokenizer.together = None
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def estimator(self, *frames: torch.Tensor | None) -> torch.Tensor:
        """As `VelocityEstimator.forward`.

        Raises:
            ApiError: the server is shutting down.
            Exception: it could not be computed.
        """
        asked = _Asked(Frames(*frames))
        with self._changed:
            if self._closing:
                raise shutting_down()
            self._asked.append(asked)
            self._changed.notify_all()
        return asked.velocity.result()

    @torch.no_grad()
    def _run(self) -> None:
        last = _Pass()
        try:
            while together := self._next(last):
                seconds = self._answer(together)
                last = _Pass({each.thread for each in together}, seconds, time.perf_counter())
        finally:  # nobody may wait for threads that have ended
            with self._changed:
                self._closing = True
                asked, self._asked = self._asked, []
                self._changed.notify_all()
            for each in asked:
                each.velocity.set_exception(shutting_down())

    def _next(self, last: _Pass) -> list[_Asked]:
        """What this thread computes next, after its last pass; nothing when it closes.

        It is what was asked for first and what fits to it, shared with the threads that wait for work.
        """
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._asked or self._closing)
            if self._merges:
                left = last.ended + GATHER_SHARE * last.seconds - time.perf_counter()
                self._changed.wait_for(lambda: self._closing or self._ask_again(last), max(0.0, left))
                self._changed.wait_for(lambda: self._asked or self._closing)  # another thread may have taken all
            sharing, self._idle = self._idle, self._idle - 1
            if self._closing:
                return []
            first = self._asked[0]
            fitting = [each for each in self._asked if self._merges and _length(each) == _length(first)]
            share = min(-(-len(fitting) // sharing), MOST_ROWS // len(first.frames.x))
            together = fitting[: max(1, share)] or [first]
            self._asked = [each for each in self._asked if each not in together]
        return together

    def _ask_again(self, last: _Pass) -> bool:
        return last.threads <= {each.thread for each in self._asked}

    def _answer(self, together: list[_Asked]) -> float:
        """Compute, at once or where that fails each alone, and answer those who wait: the seconds that it took."""
        started = time.perf_counter()
        try:
            velocities = self._velocities([each.frames for each in together])
        except Exception as error:
            if len(together) == 1:
                together[0].velocity.set_exception(error)
                return 0.0
            logger.warning("a pass over %d replies failed; each goes on alone", len(together), exc_info=error)
        else:
            seconds = time.perf_counter() - started
            for each, velocity in zip(together, velocities, strict=True):
                each.velocity.set_result(velocity)
            return seconds
        return sum(self._answer([each]) for each in together)  # what the failed pass held is free now

    def _velocities(self, rows: list[Frames]) -> list[torch.Tensor]:
        """The velocities [B, M, T] of each of them."""
        if len(rows) == 1:
            return [self._estimator(*rows[0])]
        lengths = [each.x.shape[2] for each in rows]
        most = max(lengths)
        mask = None
        if min(lengths) < most or any(each.mask is not None for each in rows):
            masks = [torch.ones_like(each.x[:, :1]) if each.mask is None else each.mask for each in rows]
            mask = torch.cat([padded(each, most) for each in masks])
        velocity = self._estimator(
            torch.cat([padded(each.x, most) for each in rows]),
            mask,
            torch.cat([padded(each.mu, most) for each in rows]),
            torch.cat([each.timesteps for each in rows]),
            torch.cat([each.speaker for each in rows]),
            torch.cat([padded(each.cond, most) for each in rows]),
        )
        parts = velocity.split([len(each.x) for each in rows])
        return [part[:, :, :length] for part, length in zip(parts, lengths, strict=True)]


def passes_at_once(device: torch.device) -> int:
    """How many passes to compute at the same time: on a CPU as many as leave a core to each of their threads."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_PASSES, cores // torch.get_num_threads()))


def _length(asked: _Asked) -> int:
    """What its frames would be padded to."""
    return padded_length(asked.frames.x.shape[2])


__all__ = ["RunningAudio", "passes_at_once"]
