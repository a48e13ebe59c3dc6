"""A bounded queue, and the threads that run its jobs on the model.

Jobs run in lanes, so that none of them waits for another kind: text, with one thread that decodes all chats side by
side (`running_batch.py`); speech, with a thread for each of so many spoken replies, one that says the pieces of all of
them side by side (`running_speech.py`), and one or a few for the flow of all (`running_audio.py`); images, with one
thread.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ming.serving.engine_jobs import Failed, Finished, Job, StreamJob, TextJob
from ming.serving.errors import ApiError, shutting_down
from ming.serving.metrics import Metrics
from ming.serving.running_audio import RunningAudio, passes_at_once
from ming.serving.running_batch import RunningBatch
from ming.serving.running_speech import RunningSpeech
from ming.serving.settings import EngineSettings

logger = logging.getLogger(__name__)


class Engine:
    """Starts the jobs of each lane in the order they came.

    A request first takes a place (`reserve`), so that a full queue is refused before its media are read, and gives it
    back (`release`) or submits a job in it (`submit`).

    Args:
        model, tokenizer: the model, and its thinker's tokenizer.
        settings, metrics: see there.
        merges_audio: whether the flow of several spoken replies is computed in common passes, see `RunningAudio`.

    Raises:
        ValueError: a model that threads cannot share, see `raise_if_offloaded`, or see `RunningBatch`.
    """

    def __init__(self, model, tokenizer, settings: EngineSettings, metrics: Metrics, merges_audio: bool = True):
        raise_if_offloaded(model)
        self.model, self.settings, self.metrics, self.merges_audio = model, settings, metrics, merges_audio
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Job, float]] = deque()
        self._places = 0
        self._running: dict[Job, float] = {}  # when it began
        self._closing = False
        self._batch = RunningBatch(model, tokenizer)
        self._running_parts: list[RunningSpeech | RunningAudio] = []
        lanes = [*["speech"] * settings.streams, "image"]
        self._threads = [threading.Thread(target=self._decode_texts, name="text", daemon=True)]
        self._threads += [threading.Thread(target=self._run_streams, args=(each,), daemon=True) for each in lanes]

    def start(self) -> None:
        """Start the threads."""
        if getattr(self.model, "talker", None) is not None:
            self._running_parts.append(RunningSpeech(self.model.talker, self.model.compile_decoding))
        if self.merges_audio and self.model.audio_detokenizer.is_loaded:
            detokenizer = self.model.audio_detokenizer.load()
            passes = passes_at_once(detokenizer.device)
            self._running_parts.append(RunningAudio(detokenizer, self.model.compile_decoding, passes))
        for part in self._running_parts:
            part.start()
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether all threads run."""
        return all(each.is_alive for each in self._running_parts) and all(each.is_alive() for each in self._threads)

    def close(self) -> None:
        """Cancel all jobs and wait for the threads' ends."""
        with self._changed:
            self._closing = True
            for job in [*self._running, *(job for job, _ in self._jobs)]:
                job.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for part in self._running_parts:
            part.close()

    def waiting_jobs(self) -> list[Job]:
        """Jobs that wait, oldest first."""
        with self._changed:
            return [job for job, _ in self._jobs]

    def reserve(self) -> None:
        """Take a place in the queue.

        Raises:
            ApiError: 429, the queue is full; 503, the server is shutting down.
        """
        with self._changed:
            self.check_room()
            self._count_places(1)

    def check_room(self) -> None:
        """Raise what `reserve` raises, without taking a place."""
        with self._changed:
            if self._closing:
                raise shutting_down()
            if self._places >= self.settings.queue:
                seconds = self.settings.retry_after
                raise ApiError(
                    f"{self._places} requests are waiting, and no more may; try again in {seconds} s",
                    status=429,
                    code="queue_full",
                    kind="rate_limit_error",
                    headers={"Retry-After": str(seconds)},
                )

    def release(self) -> None:
        """Give a place back."""
        with self._changed:
            self._count_places(-1)

    def submit(self, job: Job) -> None:
        """Let a job wait in a place that was taken with `reserve`."""
        job.on_end = self._count
        with self._changed:
            is_late = self._closing
            self._count_places(-1 if is_late else 0)
            if not is_late:
                self._jobs.append((job, time.monotonic()))
            self._changed.notify_all()
        if is_late:
            job.send(Finished("cancelled"))

    def _count_places(self, change: int) -> None:
        self._places += change
        self.metrics.waiting.set(self._places)

    def cancel(self, job: Job) -> None:
        """End a job: one that waits leaves the queue at once, one that runs stops at its next token, audio
        chunk or denoising step."""
        job.cancel()
        with self._changed:
            waiting = [entry for entry in self._jobs if entry[0] is job]
            for entry in waiting:
                self._jobs.remove(entry)
                self._count_places(-1 if job.kind else 0)
            self._changed.notify_all()
        if waiting:
            job.send(Finished("cancelled"))
        if isinstance(job, StreamJob) and job.text is not None:
            self.cancel(job.text)

    def _next(self, lane: str, has_room: Callable[[Any], bool], is_busy: Callable[[], bool]) -> Job | None:
        """Take the oldest job of a lane out of the queue, where there is room for it.

        Waits for a job unless the lane is busy; None without one means that the engine is closed and nothing waits.
        """
        with self._changed:
            self._changed.wait_for(lambda: is_busy() or self._closing or self._oldest(lane) is not None)
            entry = self._oldest(lane)
            if entry is None or not has_room(entry[0]):
                return None
            job, since = entry
            self._jobs.remove(entry)
            if job.kind is not None:
                self._count_places(-1)
                self.metrics.queue_seconds.observe(time.monotonic() - since)
            self._running[job] = time.monotonic()
            self._count_running()
            return job

    def _oldest(self, lane: str) -> tuple[Job, float] | None:
        return next((entry for entry in self._jobs if _lane(entry[0]) == lane), None)

    def _count_running(self) -> None:
        self.metrics.running.set(sum(job.kind is not None for job in self._running))

    def _decode_texts(self) -> None:
        """The lane of text: between two tokens of the running chats at most one more is read."""
        batch, limits = self._batch, self.settings
        while True:
            job = self._next(
                "text",
                lambda job: batch.has_room(job, limits.batch, limits.batch_tokens),
                lambda: not batch.is_idle,
            )
            if job is None and batch.is_idle:
                batch.close()
                return
            if isinstance(job, TextJob):
                batch.join(job)
            if batch.rows:
                self.metrics.batch_rows.observe(len(batch.rows))
            batch.step()

    def _run_streams(self, lane: str) -> None:
        """A lane of speech or images: one job after the other."""
        while (job := self._next(lane, lambda job: True, lambda: False)) is not None:
            if isinstance(job, StreamJob):
                self._run_stream(job)

    def _run_stream(self, job: StreamJob) -> None:
        try:
            if job.text is not None:
                self._submit_part(job.text)
            _send_events(job)
        except Exception as error:  # the client that waits for it gets the error; the thread goes on with other jobs
            logger.exception("a %s job failed", job.kind)
            job.send(Failed(error))
        finally:
            if job.text is not None:
                self.cancel(job.text)
        job.send(Finished("cancelled"))  # has no effect on a job that has ended

    def _submit_part(self, text: TextJob) -> None:
        """Let the text of a running job be decoded next: it has waited with that job."""
        text.on_end = self._count
        with self._changed:
            if self._closing:
                text.cancel()
            self._jobs.appendleft((text, time.monotonic()))
            self._changed.notify_all()

    def _count(self, job: Job) -> None:
        """Count a job that has ended, before its client is told."""
        with self._changed:
            began = self._running.pop(job, None)
            self._count_running()
        if job.kind is None:
            return
        self.metrics.seconds.labels(job.kind).observe(0.0 if began is None else time.monotonic() - began)
        ended = job.ended
        self.metrics.jobs.labels(job.kind, ended.reason if isinstance(ended, Finished) else "failed").inc()
        if isinstance(ended, Finished):
            self.metrics.prompt_tokens.inc(ended.prompt_tokens)
            self.metrics.new_tokens.inc(ended.completion_tokens)


def raise_if_offloaded(model) -> None:
    """Refuse weights that are fetched for each pass: one thread would take them away while another computes.

    Raises:
        ValueError: it names a weight.
    """
    away = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    if away is not None:
        raise ValueError(
            f"model: {away} is offloaded, and a server computes in several threads; load the model on one device, "
            "quantised where the memory is small"
        )


def _lane(job: Job) -> str:
    if isinstance(job, TextJob):
        return "text"
    return "image" if job.kind == "image" else "speech"


def _send_events(job: StreamJob) -> None:
    """Send the events of a job's iterator, until its end or until the job is cancelled."""
    try:
        for event in () if job.cancelled else job.events:
            if job.cancelled:
                return
            job.send(event)
    finally:
        job.events.close()


__all__ = ["Engine"]
