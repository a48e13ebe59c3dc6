"""Command line of the benchmarks."""

import argparse
import sys

import torch

from . import growth, load


def main() -> None:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=("growth", "load"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    if args.name == "growth":
        sys.stdout.write(growth.table(growth.measure(args.device, getattr(torch, args.dtype))) + "\n")
    else:
        for name, value in load.measure().items():
            sys.stdout.write(f"{name}: {value:.2f}\n")


if __name__ == "__main__":
    main()
