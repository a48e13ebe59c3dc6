"""Command line of the benchmarks."""

import argparse
import sys

import torch

from . import growth, load, speech


def main() -> None:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=("growth", "load", "speech"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", default=str(speech.ROOT), help="speech: a repository whose model speaks")
    args = parser.parse_args()
    if args.name == "growth":
        sys.stdout.write(growth.table(growth.measure(args.device, getattr(torch, args.dtype))) + "\n")
    elif args.name == "speech":
        sys.stdout.write(speech.table(speech.measure(args.model, args.device)) + "\n")
    else:
        for name, value in load.measure().items():
            sys.stdout.write(f"{name}: {value:.2f}\n")


if __name__ == "__main__":
    main()
