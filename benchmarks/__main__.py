"""Command line of the benchmarks."""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from . import report
from .timing import profiled, share_table

NAMES = ("moe", "layers", "thinker", "vision", "audio", "speech", "image", "load", "growth")
ON_A_CARD = ("released",)  # not among "all"
OF_A_MODEL = ("speech",)
PROFILED = ("moe", "layers", "thinker")


def typed(options: dict) -> dict:
    """Options of the command line as `measure` and `hot` take them: a dtype is given by its name."""
    return {**options, "dtype": getattr(torch, options["dtype"])} if "dtype" in options else options


def run(name: str, output: Path, options: dict) -> str:
    """Measure, and write JSON and plot -> the table.

    `options` are those of the benchmark's `measure`; see `typed`.
    """
    benchmark = importlib.import_module(f"{__package__}.{name}")
    costs = benchmark.measure(**typed(options))
    report.save(output, name, costs, benchmark.plot(costs), options)
    return benchmark.table(costs)


def main() -> None:
    """Run benchmarks and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios within one run; see README.md.")
    parser.add_argument("name", choices=(*NAMES, *ON_A_CARD, "all"))
    parser.add_argument("--device", help="default: cpu; cuda for released")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: see each table")
    parser.add_argument(
        "--folder", help="released: where 38 GB are written for a while; default: the temporary folder"
    )
    parser.add_argument("--model", help="speech: a repository whose model speaks; default: this one")
    parser.add_argument(
        "--profile", action="store_true", help=f"instead, where the time of one call goes: {', '.join(PROFILED)}"
    )
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="directory of JSON and plots")
    args = parser.parse_args()
    options = {"device": args.device or ("cuda" if args.name in ON_A_CARD else "cpu")}
    options |= {"dtype": args.dtype} if args.dtype else {}
    if args.profile:
        if args.name not in PROFILED:
            parser.error(f"--profile is there for {', '.join(PROFILED)}, not for {args.name}")
        benchmark = importlib.import_module(f"{__package__}.{args.name}")
        sys.stdout.write(f"{share_table(profiled(benchmark.hot(**typed(options))))}\n")
        return
    for name in NAMES if args.name == "all" else (args.name,):
        own = {"model": args.model} if args.model and name in OF_A_MODEL else {}
        own |= {"folder": args.folder} if args.folder and name in ON_A_CARD else {}
        sys.stdout.write(f"## {name}\n\n{run(name, args.output, options | own)}\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
