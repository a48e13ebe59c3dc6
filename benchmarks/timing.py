"""Timing that all tables share."""

import time
from collections.abc import Callable
from statistics import median

import torch


@torch.no_grad()
def interleaved(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each call; the repeats of all calls take turns, a first round warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, record in zip(calls, times, strict=True):
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                record.append(time.perf_counter() - started)
    return [median(record) for record in times]
