"""Comparisons, plots and result files of the benchmarks."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ming.files import replacing

from .timing import interleaved

RESULTS = Path(__file__).parent / "results"
REFERENCE = "library"  # the implementation that others are compared with
Case = tuple[str, str, Callable[[], object]]  # input, implementation, call


@dataclass(frozen=True)
class Versus:
    """One implementation on one input."""

    input: str
    implementation: str
    milliseconds: float


@dataclass(frozen=True)
class Plot:
    """Lines over numbers, or bars over names.

    Args:
        y, x: labels of the axes.
        lines: label -> (x values, y values); all x values are numbers, or all are names.
        level: a target value, drawn as a horizontal line.
        logarithmic: whether both axes of lines are logarithmic.
    """

    y: str
    x: str
    lines: Mapping[str, tuple[Sequence[float] | Sequence[str], Sequence[float]]]
    level: float | None = None
    logarithmic: bool = False


def versus(cases: list[Case], repeats: int) -> list[Versus]:
    """Time all cases; their repeats take turns."""
    times = interleaved([call for _, _, call in cases], repeats)
    return [Versus(name, kind, 1000 * time) for (name, kind, _), time in zip(cases, times, strict=True)]


def versus_table(costs: list[Versus], reference: str = REFERENCE) -> str:
    """Markdown table; a ratio is the time of the reference on the same input over the own time, above 1 is faster."""
    times = {(cost.input, cost.implementation): cost.milliseconds for cost in costs}
    lines = [f"| input | implementation | ms | {reference} / it |", "|---|---|---|---|"]
    for (name, implementation), value in times.items():
        lines.append(f"| {name} | {implementation} | {value:.1f} | {times[name, reference] / value:.2f} |")
    return "\n".join(lines)


def versus_plot(costs: list[Versus], reference: str = REFERENCE) -> Plot:
    """Bars of the ratios of `versus_table`."""
    times = {(cost.input, cost.implementation): cost.milliseconds for cost in costs}
    lines: dict[str, tuple[list[str], list[float]]] = {}
    for (name, implementation), value in times.items():
        if implementation != reference:
            names, ratios = lines.setdefault(implementation, ([], []))
            names.append(name)
            ratios.append(times[name, reference] / value)
    return Plot(f"speed / {reference}", "input", lines, level=1.0)


def draw(plot: Plot, path: Path) -> None:
    """Write a plot as a PNG file."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    names = list(dict.fromkeys(str(x) for places, _ in plot.lines.values() for x in places if isinstance(x, str)))
    for index, (label, (places, values)) in enumerate(plot.lines.items()):
        if names:
            width = 0.8 / len(plot.lines)
            left = [names.index(str(place)) + (index + 0.5) * width - 0.4 for place in places]
            axes.bar(left, values, width, label=label)
        else:
            axes.plot(places, values, marker="o", label=label)
    if names:
        axes.set_xticks(range(len(names)), names, rotation=20 if max(map(len, names)) > 8 else 0)
    elif plot.logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
    if plot.level is not None:
        axes.axhline(plot.level, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def save(directory: Path, name: str, costs: list[Any], plot: Plot, options: dict[str, Any]) -> None:
    """Write `NAME.json` (options, machine, every cost) and `NAME.png`."""
    write(directory, name, costs, options)
    draw(plot, directory / f"{name}.png")


def write(directory: Path, name: str, costs: list[Any], options: dict[str, Any], table: str | None = None) -> None:
    """Write `NAME.json` and, if there is a table, `NAME.md`."""
    directory.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    record = {"options": options, "machine": machine, "costs": [asdict(cost) for cost in costs]}
    with replacing(directory / f"{name}.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if table is not None:
        with replacing(directory / f"{name}.md") as path:
            path.write_text(table + "\n", encoding="utf-8")


__all__ = [
    "REFERENCE",
    "RESULTS",
    "Case",
    "Plot",
    "Versus",
    "draw",
    "save",
    "versus",
    "versus_plot",
    "versus_table",
    "write",
]
