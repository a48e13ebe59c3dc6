"""Work in a thread whose results are read one by one: streams of text and of drawing steps."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria


class Arrivals:
    """Items that another thread puts in, and that are read one by one."""

    def __init__(self) -> None:
        self.items: queue.SimpleQueue = queue.SimpleQueue()
        self.finished = False
        self._error: BaseException | None = None
        self._end = object()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes; an error is raised in the reader."""
        self._error = error
        self.items.put(self._end)

    def __iter__(self) -> Iterator[Any]:
        """All items, until the work is finished."""
        while not self.finished:
            yield from self.read(wait=True)

    def read(self, wait: bool) -> Iterator[Any]:
        """The items that have come by now; with `wait`, at least one unless the work is finished."""
        while not self.finished:
            try:
                item = self.items.get(block=wait)
            except queue.Empty:
                return
            if item is self._end:
                self.finished = True
                if self._error is not None:
                    raise self._error
                return
            wait = False
            yield item


class BackgroundWork(Arrivals):
    """Runs `work(self)` in a thread; what it puts into `items` is read with `read`.

    An exception in the thread is raised in the reader. `close` sets `cancelled`, at which the work has to stop, and
    waits for it.
    """

    def __init__(self, work: Callable[["BackgroundWork"], None]):
        super().__init__()
        self.cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[["BackgroundWork"], None]) -> None:
        error: BaseException | None = None
        try:
            work(self)
        except BaseException as raised:  # handed to the reader, who raises it
            error = raised
        finally:
            self.end(error)

    def close(self) -> None:
        self.cancelled.set()
        self._thread.join()


class StopWhenSet(StoppingCriteria):
    """Ends decoding at the next token once an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


__all__ = ["Arrivals", "BackgroundWork", "StopWhenSet"]
