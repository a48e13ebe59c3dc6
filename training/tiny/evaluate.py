"""Measure how Ming-Tiny understands: `python -m training.tiny.evaluate`, one table row per ability.

The samples come from the test split (unseen combinations, voices and sentences). Decoding is greedy, with one question
per sample. The rows with speech need espeak-ng or a speech pool (`--speech`).
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForMultimodalLM, AutoProcessor

from ming.cli.arguments import count, seed
from ming.cli.checks import check_output
from ming.cli.memory import QUANTIZATION
from ming.cli.usage import UsageError
from ming.files import replacing
from ming.loading import DTYPES
from ming.training.chats import prompt_batch

from .speech import LiveSpeaker, SpeechPool
from .world import sample_chat

ROOT = Path(__file__).resolve().parents[2]
EVALUATION_SEED = 7_000_000  # training seeds are far below


@dataclass(frozen=True)
class Row:
    """An ability and its bar, in percent: exact answers (higher is better) or word error rate (lower is better)."""

    name: str
    title: str
    bar: float
    metric: str = "exact"
    whisper: bool = False
    world_row: str | None = None


# Unit and direction of the bar per metric.
UNITS = {"exact": ("% exact", ">="), "wer": ("% WER", "<="), "difference": ("% off", "<=")}
ROWS = (
    Row("image_qa", "image QA: colour, shape, position", 97),
    Row("image_count_describe", "counting, yes/no, describe", 93),
    Row("two_images", "two images in one prompt", 93),
    Row("multi_turn", "multi-turn", 95),
    Row("video_qa", "video QA", 97),
    Row("asr_sanm", "speech recognition, SANM, clean", 3, "wer"),
    Row("asr_whisper", "speech recognition, Whisper, clean", 3, "wer", whisper=True),
    Row("asr_noisy", "speech recognition, SANM, 15 dB SNR", 8, "wer"),
    Row("asr_noisy_whisper", "speech recognition, Whisper, 15 dB SNR", 8, "wer", True, "asr_noisy"),
    Row("spoken_question", "spoken question about a picture", 93),
    Row("mixed", "image + audio + video + text in one prompt", 90),
    Row("text_only", "language only", 95),
)


@dataclass(frozen=True)
class Result:
    """One line of the table; `value` in percent."""

    row: str
    title: str
    metric: str
    value: float
    bar: float
    samples: int
    questions: int

    @property
    def passed(self) -> bool:
        """Whether the bar is reached."""
        return self.value >= self.bar if self.metric == "exact" else self.value <= self.bar


def word_errors(reference: str, hypothesis: str) -> int:
    """Word edit distance (insertions, deletions, substitutions)."""
    target, found = reference.split(), hypothesis.split()
    distances = list(range(len(found) + 1))
    for i, word in enumerate(target, start=1):
        diagonal, distances[0] = distances[0], i
        for j, other in enumerate(found, start=1):
            substituted = diagonal + (word != other)
            diagonal, distances[j] = distances[j], min(substituted, distances[j] + 1, distances[j - 1] + 1)
    return distances[-1]


def questions_of(messages: list[dict]) -> Iterator[tuple[list[dict], str]]:
    """Every prompt of a chat with its expected answer; earlier answers in the prompt are the expected ones."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            yield messages[:index], message["content"][0]["text"]


@torch.no_grad()
def answer(model, processor, prompts: list[list[dict]], whisper: bool, max_new_tokens: int = 64) -> list[str]:
    """Greedy answers to a batch of chats."""
    inputs = prompt_batch(processor, prompts, whisper).to(model.device, model.dtype)
    sequences = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def evaluate_row(
    row: Row, model, processor, speaker, samples: int, seed: int, batch_size: int, note: Callable[[dict], None]
) -> Result:
    """Measure one ability; `note` is called with every wrong answer."""
    asked = []
    for index in range(samples):
        rng = np.random.default_rng((seed, ROWS.index(row), index))
        chat = sample_chat(row.world_row or row.name, rng, "test", speaker)
        asked += list(questions_of(chat.messages))
    errors = total = 0
    for start in tqdm(range(0, len(asked), batch_size), desc=row.name, leave=False):
        batch = asked[start : start + batch_size]
        replies = answer(model, processor, [prompt for prompt, _ in batch], row.whisper)
        for (prompt, expected), reply in zip(batch, replies, strict=True):
            wrong = word_errors(expected, reply) if row.metric == "wer" else int(reply.strip() != expected)
            errors += wrong
            total += len(expected.split()) if row.metric == "wer" else 1
            if wrong:
                texts = [item["text"] for item in prompt[-1]["content"] if item["type"] == "text"]
                note({"row": row.name, "question": " ".join(texts), "expected": expected, "reply": reply})
    value = 100 * errors / total
    return Result(
        row.name,
        row.title,
        row.metric,
        round(value if row.metric == "wer" else 100 - value, 2),
        row.bar,
        samples,
        len(asked),
    )


def table(results: list[Result]) -> str:
    """Markdown table."""
    lines = ["| ability | measured | bar | | samples |", "|---|---|---|---|---|"]
    for result in results:
        unit, sign = UNITS[result.metric]
        mark = "reached" if result.passed else "**not reached**"
        lines.append(
            f"| {result.title} | {result.value:.1f} {unit} | {sign} {result.bar:g} % | {mark} | {result.samples} |"
        )
    return "\n".join(lines)


def measuring_parser(module: str, description: str | None, batch_size: int) -> argparse.ArgumentParser:
    """Options of all measurements."""
    parser = argparse.ArgumentParser(prog=f"python -m training.tiny.{module}", description=description)
    parser.add_argument("--model", default=str(ROOT), help="checkpoint directory or Hub id")
    parser.add_argument("--samples", type=count, default=200, help="samples per row")
    parser.add_argument("--seed", type=seed, default=EVALUATION_SEED)
    parser.add_argument("--batch-size", type=count, default=batch_size)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=tuple(DTYPES))
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantise the weights with bitsandbytes")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--errors", type=Path, help="write the wrong answers here, one JSON object per line")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; files that cannot be written are an error before anything is measured."""
    args = parser.parse_args()
    try:
        for option in ("json", "errors", "sheet"):
            if path := getattr(args, option, None):
                check_output(f"--{option}", str(path))
    except UsageError as error:
        parser.error(str(error))
    return args


def load(args: argparse.Namespace) -> tuple:
    """The model to measure and its processor."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    processor = AutoProcessor.from_pretrained(args.model)
    quantization = QUANTIZATION[f"{args.bits}bit"] if args.bits else None
    options = {"dtype": args.dtype, "quantization_config": quantization, "device_map": args.device}
    model = AutoModelForMultimodalLM.from_pretrained(args.model, **options)
    return model.eval(), processor


def report(args: argparse.Namespace, results: list[Result], wrong: list[dict], started: float) -> None:
    """Print the table, and write the files of `--json` and `--errors`; `started` is a time of `time.monotonic`."""
    seconds = time.monotonic() - started
    settings = f"seed {args.seed}, {seconds:.0f} s, {args.bits or args.dtype}, {args.device}"
    sys.stdout.write(f"{table(results)}\n\n{settings}\n")
    if args.json:
        with replacing(args.json) as path:
            path.write_text(json.dumps([{**asdict(r), "passed": r.passed} for r in results], indent=1) + "\n")
    if args.errors:
        with replacing(args.errors) as path:
            path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in wrong))


def main() -> None:
    """Command line."""
    parser = measuring_parser("evaluate", __doc__, batch_size=32)
    parser.add_argument(
        "--speech", type=Path, help="speech pool of the test split; default: espeak-ng speaks while measuring"
    )
    parser.add_argument("--rows", nargs="*", choices=[row.name for row in ROWS], help="only these rows")
    args = parse(parser)
    model, processor = load(args)
    speaker = SpeechPool(args.speech) if args.speech else LiveSpeaker("test")
    wrong: list[dict] = []
    started = time.monotonic()
    results = [
        evaluate_row(row, model, processor, speaker, args.samples, args.seed, args.batch_size, wrong.append)
        for row in ROWS
        if not args.rows or row.name in args.rows
    ]
    report(args, results, wrong, started)


if __name__ == "__main__":
    main()
