"""Options and settings that the command lines of single stages share."""

import argparse
import logging
from pathlib import Path

import torch

from ming.cli.arguments import count, number_above_zero, seed
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
SEED = 2506


def stage_parser(name: str, description: str, actions: tuple[str, ...]) -> argparse.ArgumentParser:
    """Parser of `python -m training.tiny.NAME ACTION`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m training.tiny.{name}",
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("action", choices=actions)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "tiny", help="checkpoints and logs")
    parser.add_argument("--speech", type=Path, default=ROOT / ".cache" / "tiny" / "speech_train", help="speech pool")
    parser.add_argument("--thinker", type=Path, default=ROOT, help="checkpoint directory of the trained thinker")
    parser.add_argument("--steps", type=count)
    parser.add_argument("--batch-size", type=count)
    parser.add_argument("--learning-rate", type=number_above_zero(1.0))
    parser.add_argument("--seed", type=seed, default=SEED, help="give another one for other data than an earlier run")
    parser.add_argument("--threads", type=count, default=1, help="CPU threads")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16: faster where the CPU has it")
    return parser


def start_stage(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, then set up logging, threads and RUNS."""
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.runs.mkdir(parents=True, exist_ok=True)
    return args


def frozen_thinker(directory: Path) -> BailingMMNativeForConditionalGeneration:
    """The frozen thinker of a stage, in float32, on the GPU if there is one."""
    thinker = BailingMMNativeForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    return thinker.eval().requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")
