"""A bounded queue, and one thread that runs its jobs on the model.

Waiting text jobs that sample alike become one batch; speech and images are made one at a time.
"""

import logging
import threading
import time
from collections import deque

from ming.serving.batching import answer
from ming.serving.engine_jobs import Failed, Finished, Job, StreamJob, TextJob
from ming.serving.errors import ApiError, shutting_down
from ming.serving.metrics import Metrics
from ming.serving.settings import EngineSettings

logger = logging.getLogger(__name__)


class Engine:
    """Runs jobs in the order they came, in one thread.

    A request first takes a place (`reserve`), so that a full queue is refused before its media are read, and gives it
    back (`release`) or submits a job in it (`submit`).

    Args:
        model, tokenizer: the model, and its thinker's tokenizer.
        settings, metrics: see there.
    """

    def __init__(self, model, tokenizer, settings: EngineSettings, metrics: Metrics):
        self.model, self.tokenizer, self.settings, self.metrics = model, tokenizer, settings, metrics
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Job, float]] = deque()
        self._places = 0
        self._running: list[Job] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Cancel all jobs and wait for the thread's end."""
        with self._changed:
            self._closing = True
            for job in [*self._running, *(job for job, _ in self._jobs)]:
                job.cancel()
            self._changed.notify_all()
        self._thread.join()

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
        with self._changed:
            if self._closing:
                job.cancel()
            self._jobs.append((job, time.monotonic()))
            self._changed.notify_all()

    def _count_places(self, change: int) -> None:
        self._places += change
        self.metrics.waiting.set(self._places)

    def _work(self) -> None:
        while batch := self._next():
            self._run(batch)

    def cancel(self, job: Job) -> None:
        """End a job: one that waits leaves the queue at once, one that runs stops at its next token, audio
        chunk or denoising step."""
        job.cancel()
        with self._changed:
            waiting = [entry for entry in self._jobs if entry[0] is job]
            for entry in waiting:
                self._jobs.remove(entry)
                self._count_places(-1)
        if waiting:
            job.send(Finished("cancelled"))
            self._count(job, 0.0)

    def _next(self) -> list[Job]:
        """The jobs to run next; [] when the engine is closed and nothing waits."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    return []
                self._changed.wait_for(self._is_full, timeout=self.settings.window_ms / 1000)
                if self._jobs:  # the last one may have been cancelled meanwhile
                    return self._take(self._fitting())

    def _is_full(self) -> bool:
        """Whether no further text job could join the next batch."""
        alone = not self._jobs or not isinstance(self._jobs[0][0], TextJob)
        return alone or self._closing or len(self._fitting()) >= self.settings.batch

    def _take(self, batch: list[Job]) -> list[Job]:
        now = time.monotonic()
        for entry in [entry for entry in self._jobs if entry[0] in batch]:
            self.metrics.queue_seconds.observe(now - entry[1])
            self._jobs.remove(entry)
        self._count_places(-len(batch))
        self._running = batch
        return batch

    def _fitting(self) -> list[Job]:
        """The oldest waiting job and, if it is text, those that can be decoded together with it, oldest first."""
        first = self._jobs[0][0]
        if not isinstance(first, TextJob):
            return [first]
        batch: list[Job] = [first]
        length, width = first.prompt_tokens + first.max_new_tokens, first.audio_width
        for job, _ in list(self._jobs)[1:]:
            if len(batch) == self.settings.batch:
                break
            if not isinstance(job, TextJob) or job.group != first.group:
                continue
            longest = max(length, job.prompt_tokens + job.max_new_tokens)
            one_encoder = width is None or job.audio_width in (None, width)
            if one_encoder and longest * (len(batch) + 1) <= self.settings.batch_tokens:
                batch.append(job)
                length, width = longest, width or job.audio_width
        return batch

    def _run(self, batch: list[Job]) -> None:
        live = [job for job in batch if not job.cancelled]
        alone: list[Job] = []  # what one request brought down is tried again without its neighbours
        self.metrics.running.set(len(live))
        started = time.monotonic()
        try:
            if texts := [job for job in live if isinstance(job, TextJob)]:
                self.metrics.batch_rows.observe(len(texts))
                answer(self.model, self.tokenizer, texts)
            for job in live:
                if isinstance(job, StreamJob):
                    _send_events(job)
        except Exception as error:  # every client that waits for it gets the error; the thread goes on with other jobs
            logger.exception("%d %s job(s) failed", len(live), live[0].kind)
            alone = [job for job in live if len(live) > 1 and not job.has_begun]
            for job in live:
                if job not in alone:
                    job.send(Failed(error))
        self.metrics.running.set(0)
        for job in alone:
            self._run([job])
        for job in (job for job in batch if job not in alone):
            job.send(Finished("cancelled"))  # has no effect on a job that has ended
            self._count(job, time.monotonic() - started)

    def _count(self, job: Job, seconds: float) -> None:
        self.metrics.seconds.labels(job.kind).observe(seconds)
        ended = job.ended
        self.metrics.jobs.labels(job.kind, ended.reason if isinstance(ended, Finished) else "failed").inc()
        if isinstance(ended, Finished):
            self.metrics.prompt_tokens.inc(ended.prompt_tokens)
            self.metrics.new_tokens.inc(ended.completion_tokens)


def _send_events(job: StreamJob) -> None:
    """Send the events of a job's iterator, until its end or until the job is cancelled."""
    try:
        for event in job.events:
            if job.cancelled:
                return
            job.send(event)
    finally:
        job.events.close()


__all__ = ["Engine"]
