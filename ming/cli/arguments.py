"""Options and kinds of values that several commands share."""

import argparse
import math
import re
from collections.abc import Callable

from image_gen.configuration_image_gen import MAX_SIDE, MIN_SIDE
from ming.loading import DTYPES, PARTS, LoadOptions
from ming.randomness import MAX_SEED

LARGEST = 10**15  # of whole numbers without a limit of their own: more than bytes in any machine, and no overflow


def whole_number(minimum: int, maximum: int = LARGEST) -> Callable[[str], int]:
    """The kind of an option that takes a whole number of `minimum` to `maximum`, for argparse."""

    def read(text: str) -> int:
        number = int(text) if re.fullmatch("[0-9]{1,40}", text) else -1
        if not minimum <= number <= maximum:
            most = f"at most {maximum}" if number > maximum else f"at least {minimum}"
            accepted = most if maximum == LARGEST else f"{minimum} to {maximum}"
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give a whole number of {accepted}")
        return number

    return read


def image_size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT -> (width, height) in pixels."""
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
    width, height = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise argparse.ArgumentTypeError(
            f"{text} is not a size; give WIDTHxHEIGHT with sides of {MIN_SIDE} to {MAX_SIDE} pixels, such as 512x512"
        )
    return width, height


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """A whole number that can be a seed."""
    if not text.isascii() or not text.isdigit() or int(text) >= MAX_SEED:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a whole number of 0 to {MAX_SEED - 1}")
    return int(text)


def guidance(text: str) -> float:
    """A finite number of at least 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number of at least 1 (1: no guidance)")
    return value


def add_device_options(group: argparse._ActionsContainer) -> None:
    """Where and how precisely the model computes."""
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps, ...; default: a CUDA GPU if there is one")
    group.add_argument("--dtype", choices=tuple(DTYPES), help="default: float32 on a CPU, else bfloat16")
    group.add_argument("--load-in-4bit", action="store_true", help="a quarter of the memory (bitsandbytes)")
    text = "compile the steps of text, speech and images: faster, after a first answer that waits for the compiler"
    group.add_argument("--compile", action="store_true", help=text)


def load_options(args: argparse.Namespace) -> LoadOptions:
    """What the options of `add_device_options` say."""
    return LoadOptions(args.device, args.dtype, args.load_in_4bit, args.compile)


def add_without_option(group: argparse._ActionsContainer) -> None:
    """Which parts of the model are not loaded."""
    text = f"parts to leave out: {', '.join(PARTS)}"
    group.add_argument("--without", nargs="+", choices=PARTS, default=[], metavar="PART", help=text)


def number_above_zero(most: float) -> Callable[[str], float]:
    """The kind of an option that takes a number above 0 and at most `most`, for argparse."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number above 0, at most {most:,.10g}")
        return value

    return read


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options of all commands that answer in the terminal."""
    group = parser.add_argument_group("common options")
    group.add_argument("--model", metavar="DIRECTORY_OR_ID", help="default: the repository the command runs in")
    add_device_options(group)
    group.add_argument("--max-new-tokens", type=count, default=512, metavar="N", help="longest answer (%(default)s)")
    group.add_argument("--seed", type=seed, metavar="N", help="the same seed repeats speech, image or sampled text")
    group.add_argument("--json", action="store_true", help="one JSON object per result, a line each, on stdout")
    group.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")


def add_whisper_option(parser: argparse.ArgumentParser) -> None:
    """Which audio encoder is used."""
    parser.add_argument("--whisper", action="store_true", help="use the Whisper audio encoder instead of SANM")


def add_voice_options(parser: argparse.ArgumentParser) -> None:
    """In which voice the model speaks."""
    parser.add_argument("--voice", metavar="NAME", help="a voice of the repository; default: its first one")
    parser.add_argument("--prompt-audio", metavar="FILE", help="speak in the voice of this recording (0.5 to 30 s)")
    parser.add_argument("--prompt-text", metavar="WORDS", help="the words of that recording")


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Which image is drawn, and where it is written."""
    parser.add_argument("--out", required=True, metavar="FILE", help="image file: .png, .jpg, .webp, ...")
    parser.add_argument("--size", type=image_size, metavar="WxH", help="in pixels; default: the model's own size")
    parser.add_argument("--steps", type=count, metavar="N", help="denoising steps; default: the model's own")
    parser.add_argument("--guidance", type=guidance, metavar="SCALE", help="1: none; default: the model's own")
