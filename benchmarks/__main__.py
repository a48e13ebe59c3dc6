"""Command line of the benchmarks; `README.md` in this folder has the results."""

import argparse
import importlib
import sys
from pathlib import Path

import torch

from ming.cli.arguments import number_above_zero

from . import gpu, report
from .timing import profiled, share_table

NAMES = ("moe", "layers", "thinker", "vision", "audio", "speech", "image", "processor", "load", "server", "growth")
ON_GPU = ("released", "gpu")  # not part of "all"
IN_VLLM = ("vllm",)  # not part of "all": in the environment of `make test-vllm`
LONG = ("load_test",)  # not part of "all"
WITH_MODEL = ("speech", "load_test")
PROFILED = ("moe", "layers", "thinker")


def typed(options: dict) -> dict:
    """Options of the command line with the dtype in place of its name, for `measure` and `hot`."""
    return {**options, "dtype": getattr(torch, options["dtype"])} if "dtype" in options else options


def run(name: str, output: Path, options: dict) -> str:
    """Measure, write JSON and plot, and return the table.

    Args:
        output: directory of the files.
        options: arguments of the benchmark's `measure`, see `typed`.
    """
    benchmark = importlib.import_module(f"{__package__}.{name}")
    costs = benchmark.measure(**typed(options))
    report.save(output, name, costs, benchmark.plot(costs), options)
    return benchmark.table(costs)


def run_gpu(output: Path, options: dict) -> None:
    """Measure a GPU, print the table line by line, and write the results after each measurement.

    Raises:
        SystemExit: a measurement failed; the others are written.
    """
    name, shown = gpu.record_name(options), 0

    def after_each(costs: list[gpu.Cost]) -> None:
        nonlocal shown
        lines = gpu.table(costs).splitlines()
        report.write(output, name, costs, options, "\n".join(lines))
        sys.stdout.write("".join(f"{line}\n" for line in lines[shown:]))
        sys.stdout.flush()
        shown = len(lines)

    costs = gpu.measure(**typed(options), after_each=after_each)
    report.save(output, name, costs, gpu.plot(costs), options)
    if failures := gpu.failures(costs):
        sys.exit("\n".join(failures))


def parsed() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ratios within one run; see README.md.")
    parser.add_argument("name", choices=(*NAMES, *ON_GPU, *IN_VLLM, *LONG, "all"))
    parser.add_argument("--device", help=f"default: cpu; cuda for {', '.join(ON_GPU)}")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: see each table")
    parser.add_argument(
        "--folder", help="released: directory for 38 GB of temporary files; default: the temporary folder"
    )
    parser.add_argument("--model", help="speech, load_test: a repository with a model that speaks; default: this one")
    parser.add_argument("--minutes", type=number_above_zero(10_000.0), help="load_test, gpu: how long; default: 15, 8")
    parser.add_argument("--sizes", choices=gpu.WORK, help="gpu: of the models; default: released")
    parser.add_argument("--backend", help="gpu: of torch.compile, such as eager; default: as compile=True")
    parser.add_argument("--trust-remote-code", action="store_true", help="vllm: it runs the code of this checkpoint")
    parser.add_argument("--profile", action="store_true", help=f"profile one call instead: {', '.join(PROFILED)}")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="directory of JSON and plots")
    return parser, parser.parse_args()


def main() -> None:
    """Run benchmarks and print their tables."""
    parser, args = parsed()
    options = {"device": args.device or ("cuda" if args.name in ON_GPU else "cpu")}
    options |= {"dtype": args.dtype} if args.dtype else {}
    if args.profile:
        if args.name not in PROFILED:
            parser.error(f"--profile supports {', '.join(PROFILED)}, not {args.name}")
        benchmark = importlib.import_module(f"{__package__}.{args.name}")
        sys.stdout.write(f"{share_table(profiled(benchmark.hot(**typed(options))))}\n")
        return
    if args.name == "gpu":
        own = {"sizes": args.sizes, "minutes": args.minutes, "backend": args.backend}
        run_gpu(args.output, options | {name: value for name, value in own.items() if value is not None})
        return
    trust_remote_code = args.trust_remote_code
    for name in NAMES if args.name == "all" else (args.name,):
        own = {"model": args.model} if args.model and name in WITH_MODEL else {}
        own |= {"folder": args.folder} if args.folder and name == "released" else {}
        own |= {"minutes": args.minutes} if args.minutes and name in LONG else {}
        own |= {"trust_remote_code": trust_remote_code} if name in IN_VLLM else {}
        sys.stdout.write(f"## {name}\n\n{run(name, args.output, options | own)}\n\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
