"""Timing and profiling."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

OUTSIDE = "outside operators (Python)"


@torch.no_grad()
def interleaved(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each call; the repeats of all calls take turns, after a warm-up round."""
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


@dataclass(frozen=True)
class Share:
    """The share of an operator in the time of a call, and how often it is called."""

    operator: str
    share: float
    calls: int


@torch.no_grad()
def profiled(call: Callable[[], object], rows: int = 8) -> list[Share]:
    """The operators with the largest shares of a call's CPU time, after a warm-up, and the time outside operators.

    The cost of the profiler counts as time outside operators.
    """
    call()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        started = time.perf_counter()
        call()
        seconds = time.perf_counter() - started
    operators = sorted(record.key_averages(), key=lambda item: item.self_cpu_time_total, reverse=True)
    shares = [Share(item.key, item.self_cpu_time_total / 1e6 / seconds, item.count) for item in operators]
    outside = Share(OUTSIDE, max(0.0, 1 - sum(item.share for item in shares)), 0)
    return sorted([*shares[:rows], outside], key=lambda item: item.share, reverse=True)


def share_table(shares: list[Share]) -> str:
    """Markdown table."""
    lines = [f"| {item.operator} | {item.share:.1%} | {item.calls or ''} |" for item in shares]
    return "\n".join(["| operator | share of the time | calls |", "|---|---|---|", *lines])
