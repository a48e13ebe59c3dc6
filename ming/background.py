"""Work in a thread whose results are read one by one: streams of text and of drawing steps."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria


class BackgroundWork:
    """Runs `work(self)` in a thread; what it puts into `items` is read with `read`.

    An exception in the thread is raised in the reader. `close` sets `cancelled`, at which the work has to stop, and
    waits for it.
    """

    def __init__(self, work: Callable[["BackgroundWork"], None]):
        self.items: queue.SimpleQueue = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self.finished = False
        self._error: BaseException | None = None
        self._end = object()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[["BackgroundWork"], None]) -> None:
        try:
            work(self)
        except BaseException as error:  # handed to the reader, who raises it
            self._error = error
        finally:
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

    def close(self) -> None:
        self.cancelled.set()
        self._thread.join()


class StopWhenSet(StoppingCriteria):
    """Ends decoding at the next token once an event is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


__all__ = ["BackgroundWork", "StopWhenSet"]
