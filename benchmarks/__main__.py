"""Command line of the benchmarks."""

import argparse
import sys

import torch

from . import growth, load, moe, speech, thinker


def main() -> None:
    """Run one benchmark and print its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=("growth", "load", "moe", "speech", "thinker"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="default: float32, of moe bfloat16")
    parser.add_argument("--model", default=str(speech.ROOT), help="speech: a repository whose model speaks")
    args = parser.parse_args()
    if args.name == "growth":
        sys.stdout.write(growth.table(growth.measure(args.device, getattr(torch, args.dtype or "float32"))) + "\n")
    elif args.name == "moe":
        sys.stdout.write(moe.table(moe.measure(args.device, getattr(torch, args.dtype or "bfloat16"))) + "\n")
    elif args.name == "thinker":
        sys.stdout.write(thinker.table(thinker.measure(args.device, getattr(torch, args.dtype or "float32"))) + "\n")
    elif args.name == "speech":
        sys.stdout.write(speech.table(speech.measure(args.model, args.device)) + "\n")
    else:
        for name, value in load.measure().items():
            sys.stdout.write(f"{name}: {value:.2f}\n")


if __name__ == "__main__":
    main()
