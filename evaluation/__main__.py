"""Command line of the evaluation: `python -m evaluation table image --model DIR`; see docs/evaluation.md."""

import argparse
import sys
from pathlib import Path

from ming.cli.arguments import count, seed
from ming.cli.usage import UsageError
from ming.loading import DTYPES

from .run import TINY, Settings, TableRun
from .tables import NAMES, read_table

OUTPUT = Path("runs") / "evaluation"
TINY_SAMPLES = 12


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table", help="measure a table of the paper, beside the published values")
    table.add_argument("names", nargs="+", metavar="TABLE", help=f"{', '.join(NAMES)}, or all")
    table.add_argument("--model", required=True, help="checkpoint directory or Hub id")
    table.add_argument(
        "--data", help=f"directory of the data of our own tasks, or {TINY}: small local copies of Ming-Tiny's world"
    )
    table.add_argument("--rows", nargs="+", help="names of rows; default: all")
    table.add_argument("--limit", type=count, help=f"samples per task; default: all, of {TINY} copies {TINY_SAMPLES}")
    table.add_argument("--batch-size", type=count, default=8)
    table.add_argument("--seed", type=seed, default=0, help="of copies, images and sampled text")
    table.add_argument("--device", help="default: the first GPU, or the CPU")
    table.add_argument("--dtype", choices=tuple(DTYPES), help="default: float32 on a CPU, else bfloat16")
    table.add_argument("--whisper", action="store_true", help="recordings go through Whisper, not SANM")
    table.add_argument("--output", type=Path, default=OUTPUT, help=f"folder of the results; default: {OUTPUT}")
    return parser


def main() -> None:
    """Measure tables and print them; a wrong argument is one line and exit code 2."""
    parser = build_parser()
    args = parser.parse_args()
    limit = args.limit or (TINY_SAMPLES if args.data == TINY else None)
    settings = Settings(args.model, args.data, limit, args.seed, args.dtype, args.whisper)
    try:
        tables = [read_table(name) for name in (NAMES if args.names == ["all"] else args.names)]
        for table in tables:
            text = TableRun(table, settings, args.output, args.batch_size, args.device).measure(args.rows)
            sys.stdout.write(f"{text}\n\n")
            sys.stdout.flush()
    except (UsageError, ValueError, RuntimeError) as error:
        parser.exit(2, f"python -m evaluation: {error}\n")


if __name__ == "__main__":
    main()
