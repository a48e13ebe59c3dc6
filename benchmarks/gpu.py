"""All that is to be known of a GPU in one go, each figure beside the limit of the device: see `gpu_calls`.

    python -m benchmarks gpu --minutes 8

Measurements are ordered by importance, those with a bar first; one for which too little time is left is left out, and
one that fails leaves the others alone. Results are written after each, so that a run that is ended loses nothing.
`--device cpu --sizes tiny` tries the command with Ming-Tiny where there is no GPU.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import CompileConfig

from ming.cli.memory import GIB
from ming.configuration_bailingmm import BailingMMConfig

from . import gpu_calls
from .gpu_calls import Bench, Call
from .gpu_models import FOUR_BIT, HEAD, WHOLE, WORK, Models, Work
from .report import Plot

logger = logging.getLogger(__name__)

FACTOR = "real-time factor"
NO_TIME, FAILED = "no time left", "failed"
APART = "not compiled: its experts are called one by one"
HIGHER = ("tokens/s", "images/min", "steps/s", "GB/s", "TFLOP/s")  # units in which more is better


@dataclass(frozen=True)
class Cost:
    """One figure.

    Args:
        way: which models, and in which dtype.
        value: in `unit`; None: it was not measured, and `note` says why.
        limit: of the device, in the same unit.
        bar: what the value must reach, or stay below; for the released sizes on a GPU.
        peak: GiB at most while it was measured. weights: GiB of the models in memory.
        compiling: seconds of the first calls beyond those of later ones.
    """

    name: str
    way: str
    unit: str
    value: float | None = None
    limit: float | None = None
    bar: float | None = None
    peak: float | None = None
    weights: float | None = None
    compiling: float | None = None
    note: str = ""

    @property
    def share(self) -> float | None:
        """The part of the limit that is reached; None without a limit."""
        if not self.value or not self.limit:
            return None
        return self.value / self.limit if self.unit in HIGHER else self.limit / self.value

    @property
    def holds(self) -> bool | None:
        """Whether the bar is reached; None without a bar or a value."""
        if self.value is None or self.bar is None:
            return None
        return self.value >= self.bar if self.unit in HIGHER else self.value <= self.bar


@dataclass(frozen=True)
class Task:
    """A measurement: what it is called, on which models, and how it is made.

    Args:
        kind: of the models, see `gpu_models`.
        graphs: names of those that are compiled.
    """

    name: str
    unit: str
    kind: str
    call: Call
    bar: float | None = None
    graphs: tuple[str, ...] = ()


def _writing(rows: int, kind: str, compiles: bool, bar: float | None = None) -> Task:
    name = f"tokens written, {rows} at once" if rows > 1 else "tokens written"
    call = partial(gpu_calls.writing, rows=rows, compiles=compiles)
    return Task(name, "tokens/s", kind, call, bar, (f"thinker {rows}",) if compiles else ())


def _saying(rows: int, compiles: bool, bar: float | None = None) -> Task:
    name = f"talker, {rows} people at once" if rows > 1 else "talker"
    call = partial(gpu_calls.saying, rows=rows, compiles=compiles)
    return Task(name, FACTOR, WHOLE, call, bar, (f"talker {rows}",) if compiles else ())


def _drawing(rows: int, compiles: bool, bar: float | None = None) -> Task:
    graphs = (f"image head {rows}",) if compiles else ()
    if rows == 1:
        return Task("an image", "s", HEAD, partial(gpu_calls.drawing, count=1, compiles=compiles), bar, graphs)
    call = partial(gpu_calls.drawing_many, count=rows, compiles=compiles)
    return Task(f"images, {rows} at once", "images/min", HEAD, call, bar, graphs)


def _denoising(compiles: bool) -> Task:
    call = partial(gpu_calls.denoising, compiles=compiles)
    return Task("denoising", "steps/s", HEAD, call, None, ("image head 1",) if compiles else ())


def _reading(work: Work, kind: str, bar: float | None = None) -> Task:
    return Task(f"{work.prompt} tokens read", "tokens/s", kind, gpu_calls.reading, bar)


def _barred(work: Work) -> list[Task]:
    """What the bars are about."""
    first, both = partial(gpu_calls.sounding_first, compiles=True), ("thinker 1", "talker 1", "flow, a chunk")
    return [
        _writing(1, WHOLE, compiles=True, bar=150),
        _saying(1, compiles=True, bar=0.15),
        Task("prompt to first sound", "s", WHOLE, first, 0.5, both),
        _writing(1, FOUR_BIT, compiles=False, bar=60),
        _reading(work, FOUR_BIT, bar=15_000),
        _writing(1, FOUR_BIT, compiles=True, bar=120),
        _drawing(1, compiles=False, bar=1.5),
        _drawing(1, compiles=True, bar=1.5),
    ]


def _further(work: Work) -> list[Task]:
    """The other measurements; what must be compiled for them alone comes last."""
    many = work.batches[1:]
    return [
        _denoising(compiles=True),
        _denoising(compiles=False),
        _drawing(work.pictures, compiles=False),
        Task("vision tower", "s", WHOLE, gpu_calls.seeing),
        Task("SANM", "s", WHOLE, partial(gpu_calls.hearing, whisper=False)),
        Task("Whisper", "s", WHOLE, partial(gpu_calls.hearing, whisper=True)),
        _reading(work, WHOLE),
        *(_writing(rows, WHOLE, compiles=False) for rows in work.batches),
        Task("audio detokenizer", FACTOR, WHOLE, partial(gpu_calls.sounding, compiles=False)),
        Task("audio detokenizer", FACTOR, WHOLE, partial(gpu_calls.sounding, compiles=True), None, ("flow",)),
        Task("speech", FACTOR, WHOLE, partial(gpu_calls.speaking, compiles=True), None, ("talker 1", "flow")),
        _saying(1, compiles=False),
        *(_writing(rows, FOUR_BIT, compiles=False) for rows in many),
        *(_writing(rows, FOUR_BIT, compiles=True) for rows in many),
        _saying(work.people, compiles=True),
        *(_writing(rows, WHOLE, compiles=True) for rows in many),
        _drawing(work.pictures, compiles=True),
    ]


def tasks(work: Work) -> list[Task]:
    """All measurements in order."""
    limits = [Task("copying", "GB/s", "", gpu_calls.bandwidth), Task("matrix product", "TFLOP/s", "", gpu_calls.rate)]
    return [*limits, *_barred(work), *_further(work)]


def _way(task: Task, dtype: torch.dtype) -> str:
    """Models of a task, in words."""
    form = "4 bit" if task.kind == FOUR_BIT else str(dtype).removeprefix("torch.")
    return f"{form}, compiled" if task.graphs else form


def _needed(task: Task, bench: Bench) -> float:
    """Seconds that a task takes at most."""
    work, is_built = bench.work, task.kind in ("", bench.models.kind)
    missing = set(task.graphs) - (bench.models.compiled if is_built else set())
    return (0.0 if is_built else work.building) + len(missing) * work.compiling + work.running


def _cost(task: Task, bench: Bench, with_bars: bool) -> Cost:
    """Make a measurement, or say why not.

    A measurement that fails is told to the log and to the table; the others must not be lost with it.
    """
    about: dict[str, Any] = {"name": task.name, "way": _way(task, bench.models.dtype), "unit": task.unit}
    about["bar"] = task.bar if with_bars else None
    if time.monotonic() + _needed(task, bench) > bench.deadline:
        return Cost(**about, note=NO_TIME)
    is_cuda, bench.warming = torch.cuda.is_available(), 0.0
    try:
        if task.kind:
            bench.models.use(task.kind)
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        if task.kind == FOUR_BIT and task.graphs and not bench.models.has_stacks():
            return Cost(**about, note=APART)
        found = task.call(bench)
    except Exception as error:
        logger.exception("%s, %s", task.name, about["way"])
        first_line = str(error).partition("\n")[0]
        return Cost(**about, note=f"{FAILED}: {type(error).__name__}: {first_line}")
    peak = torch.cuda.max_memory_allocated() / GIB if is_cuda else None
    weights = bench.models.weights() / GIB if task.kind else None
    compiling = bench.warming if task.graphs else None
    bench.models.compiled.update(task.graphs)
    return Cost(**about, value=found.value, limit=found.limit, peak=peak, weights=weights, compiling=compiling)


def measure(
    device: str = "cuda",
    dtype: torch.dtype | None = None,
    sizes: str = "released",
    minutes: float = 8.0,
    backend: str | None = None,
    config: BailingMMConfig | None = None,
    after_each: Callable[[list[Cost]], None] = lambda costs: None,
) -> list[Cost]:
    """Measure as much as the time allows.

    Args:
        dtype: of what is not quantised; None: bfloat16 on a GPU, float32 elsewhere.
        sizes: "released" (random weights) or "tiny" (Ming-Tiny).
        minutes: after which nothing is begun.
        backend: of `torch.compile` where steps are compiled; None: as `compile=True` does, which needs a compiler for
            C++ on a CPU.
        config: other sizes of the main model than the released ones.
        after_each: is called with all costs so far.

    Raises:
        RuntimeError: there is no CUDA GPU.
        ValueError: unknown sizes.
    """
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda and not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA GPU here; --device cpu --sizes tiny tries the command without one")
    if sizes not in WORK:
        raise ValueError(f"sizes={sizes!r}; give one of {', '.join(WORK)}")
    dtype = dtype or (torch.bfloat16 if is_cuda else torch.float32)
    compiled = True if backend is None else CompileConfig(fullgraph=True, dynamic=False, mode=None, backend=backend)
    models, deadline = Models(sizes, device, dtype, config), time.monotonic() + 60 * minutes
    bench, costs = Bench(models, WORK[sizes], compiled, deadline), []
    for task in tasks(bench.work):
        costs.append(_cost(task, bench, is_cuda and sizes == "released"))
        after_each(costs)
    models.free()
    return costs


def _shown(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else f"{value:{form}}"


def table(costs: list[Cost]) -> str:
    """Markdown table."""
    lines = [
        "| measurement | models | value | unit | limit | share | bar | peak (GiB) | weights (GiB) | compiling (s) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cost in costs:
        sign = "≥" if cost.unit in HIGHER else "≤"
        bar = "" if cost.bar is None else f"{sign} {cost.bar:g}"
        bar += "" if cost.holds is None else ", held" if cost.holds else ", **missed**"
        value = cost.note or _shown(cost.value, ".4g")
        cells = [cost.name, cost.way, value, cost.unit, _shown(cost.limit, ".4g"), _shown(cost.share), bar]
        cells += [_shown(cost.peak), _shown(cost.weights), _shown(cost.compiling, ".0f")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(costs: list[Cost]) -> Plot:
    """Bars of the share of the limit."""
    bars: dict[str, tuple[list[str], list[float]]] = {}
    for cost in costs:
        if cost.share is not None:
            names, shares = bars.setdefault(cost.way, ([], []))
            names.append(cost.name)
            shares.append(cost.share)
    return Plot("share of the limit", "", bars, level=1.0)


def record_name(options: dict[str, Any]) -> str:
    """Of the files with the results, so that a trial does not replace the figures of a GPU."""
    device, sizes = options.get("device", "cuda"), options.get("sizes", "released")
    return "gpu" if (device, sizes) == ("cuda", "released") else f"gpu_{sizes}_{torch.device(device).type}"


def failures(costs: list[Cost]) -> list[str]:
    """What failed, for the end of the command."""
    return [f"{cost.name}, {cost.way}: {cost.note}" for cost in costs if cost.note.startswith(FAILED)]
