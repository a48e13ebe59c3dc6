"""Options and kinds of values that several commands share."""

import argparse
import math
import re
from collections.abc import Callable

from image_gen.configuration_image_gen import MAX_SIDE, MIN_SIDE
from image_gen.modeling_image_gen import MOST
from ming.argument_checks import LARGEST_NUMBER
from ming.loading import DTYPES, PARTS, LoadOptions
from ming.media import MAX_PORT
from ming.randomness import MAX_SEED

LARGEST = 10**15  # of whole numbers without a limit of their own: more than bytes in any machine, and no overflow
LARGEST_REAL = math.nextafter(LARGEST_NUMBER, 0)


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


def real_number(minimum: float, maximum: float = LARGEST_REAL, hint: str = "") -> Callable[[str], float]:
    """The kind of an option that takes a finite number of `minimum` to `maximum`, for argparse.

    Args:
        hint: goes on behind the error.
    """

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not minimum <= number <= maximum:
            least = f"at least {minimum:g}" if not number > maximum else f"less than {LARGEST_NUMBER:g}"
            accepted = least if maximum >= LARGEST_REAL else f"{minimum:g} to {maximum:g}"
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number of {accepted}{hint}")
        return number

    return read


count = whole_number(1)
seed = whole_number(0, MAX_SEED - 1)
port = whole_number(1, MAX_PORT)
port_or_any = whole_number(0, MAX_PORT)


def image_size(min_side: int, max_side: int) -> Callable[[str], tuple[int, int]]:
    """The kind of an option that takes WIDTHxHEIGHT, (width, height) in pixels, for argparse."""

    def read(text: str) -> tuple[int, int]:
        match = re.fullmatch("([0-9]{1,9})[xX]([0-9]{1,9})", text)
        width, height = (int(match[1]), int(match[2])) if match else (0, 0)
        if not (min_side <= width <= max_side and min_side <= height <= max_side):
            sides = f"sides of {min_side} to {max_side} pixels, such as 512x512"
            raise argparse.ArgumentTypeError(f"{text} is not a size; give WIDTHxHEIGHT with {sides}")
        return width, height

    return read


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
    group.add_argument("--seed", type=seed, metavar="N", help="the same seed repeats speech, image or sampled text")
    group.add_argument("--json", action="store_true", help="one JSON object per result, a line each, on stdout")
    group.add_argument("--quiet", action="store_true", help="nothing but errors on stderr")


def add_length_option(group: argparse._ActionsContainer) -> None:
    """How much text the model writes."""
    group.add_argument("--max-new-tokens", type=count, default=512, metavar="N", help="longest text (%(default)s)")


def add_whisper_option(parser: argparse.ArgumentParser) -> None:
    """Which audio encoder is used."""
    parser.add_argument("--whisper", action="store_true", help="use the Whisper audio encoder instead of SANM")


def add_voice_options(parser: argparse.ArgumentParser) -> None:
    """In which voice the model speaks."""
    parser.add_argument("--voice", metavar="NAME", help="a voice of the repository; default: its first one")
    text = (
        "speak in the voice of this recording: 0.5 s to what the talker follows, 6 s of Ming-Tiny, 30 s of the release"
    )
    parser.add_argument("--prompt-audio", metavar="FILE", help=text)
    parser.add_argument("--prompt-text", metavar="WORDS", help="the words of that recording")


def add_drawing_options(parser: argparse.ArgumentParser) -> None:
    """Which image is drawn, and where it is written."""
    parser.add_argument("--out", required=True, metavar="FILE", help="image file: .png, .jpg, .webp, ...")
    parser.add_argument(
        "--size", type=image_size(MIN_SIDE, MAX_SIDE), metavar="WxH", help="in pixels; default: the model's own size"
    )
    steps = whole_number(1, MOST["num_inference_steps"])
    parser.add_argument("--steps", type=steps, metavar="N", help="denoising steps; default: the model's own")
    scale = real_number(1, hint=" (1: no guidance)")
    parser.add_argument("--guidance", type=scale, metavar="SCALE", help="1: none; default: the model's own")
