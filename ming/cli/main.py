"""Ming-Lite-Omni on the command line: files in, files out.

Answers go to stdout, everything else to stderr. Exit codes: 0 done, 2 wrong usage or input, 130 interrupted, 1 else.
"""

import argparse
import logging
import sys
from typing import NoReturn

from transformers.utils import logging as library_logging

from ming.cli import commands
from ming.cli.checks import UsageError, count, guidance, picture_size, seed
from ming.cli.session import DTYPES

USAGE_ERROR, INTERRUPTED = 2, 130


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, raised as `UsageError`."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The command line of all commands."""
    parser = Parser(prog="ming", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, *arguments: str):
        run = getattr(commands, name)
        command = subparsers.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        for argument, text in zip(arguments[::2], arguments[1::2], strict=True):
            command.add_argument(argument, help=text)
        command.set_defaults(run=run, name=name)
        _add_common_options(command)
        return command

    command = add("chat")
    command.add_argument("--system", metavar="TEXT", help="what stands above the conversation")
    _add_whisper(command)
    command = add("ask")
    command.add_argument("question", nargs="?", help="may be left out when --audio asks it")
    for medium, what in (("image", "picture"), ("video", "video"), ("audio", "recording")):
        command.add_argument(
            f"--{medium}", action="append", metavar="FILE", help=f"a {what}, file or address; may be repeated"
        )
    _add_whisper(command)
    command.add_argument("--speak", metavar="FILE", help="answer aloud, too, into this sound file")
    _add_voice(command)
    command = add("speak", "text", "what to say")
    command.add_argument("--out", required=True, metavar="FILE", help="sound file: .wav, .flac, .ogg or .mp3")
    _add_voice(command)
    _add_drawing(add("draw", "prompt", "what to draw"))
    _add_drawing(add("edit", "picture", "file or address", "instruction", "what to change"))
    command = add("transcribe")
    command.add_argument("recordings", nargs="+", metavar="recording", help="file or address")
    _add_whisper(command)
    return parser


def _add_common_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("common options")
    group.add_argument("--model", metavar="DIRECTORY_OR_ID", help="default: the repository the command runs in")
    group.add_argument("--device", help="cpu, cuda, cuda:1, mps, ...; default: a CUDA card if there is one")
    group.add_argument("--dtype", choices=tuple(DTYPES), help="default: float32 on a CPU, else bfloat16")
    group.add_argument("--load-in-4bit", action="store_true", help="a quarter of the memory (bitsandbytes)")
    group.add_argument("--max-new-tokens", type=count, default=512, metavar="N", help="longest answer (%(default)s)")
    group.add_argument("--seed", type=seed, metavar="N", help="the same seed repeats sound, picture or sampled text")
    group.add_argument("--json", action="store_true", help="one JSON object per result, a line each, on stdout")
    group.add_argument("--quiet", action="store_true", help="no progress bars and remarks on stderr")


def _add_whisper(command: argparse.ArgumentParser) -> None:
    command.add_argument("--whisper", action="store_true", help="listen with the Whisper encoder instead of SANM")


def _add_voice(command: argparse.ArgumentParser) -> None:
    command.add_argument("--voice", metavar="NAME", help="a voice of the repository; default: its first one")
    command.add_argument("--prompt-audio", metavar="FILE", help="speak in the voice of this recording (0.5 to 30 s)")
    command.add_argument("--prompt-text", metavar="WORDS", help="what is said in that recording")


def _add_drawing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", required=True, metavar="FILE", help="picture file: .png, .jpg, .webp, ...")
    command.add_argument("--size", type=picture_size, metavar="WxH", help="in pixels; default: the model's own size")
    command.add_argument("--steps", type=count, metavar="N", help="denoising steps; default: the model's own")
    command.add_argument("--guidance", type=guidance, metavar="SCALE", help="1: none; default: the model's own")


def set_up_logging(quiet: bool) -> None:
    """Our remarks and the library's go to stderr, with `quiet` only warnings (ours) and errors (theirs)."""
    log, handler = logging.getLogger("ming"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("ming: %(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.WARNING if quiet else logging.INFO)
    if quiet:
        library_logging.set_verbosity_error()
        library_logging.disable_progress_bar()
    else:
        library_logging.set_verbosity_warning()
        library_logging.enable_progress_bar()


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code. What is neither wrong input nor Ctrl-C is raised."""
    try:
        args = build_parser().parse_args(arguments)
        set_up_logging(args.quiet)
        args.run(args)
    except UsageError as error:
        sys.stderr.write(f"ming: error: {error}\n")
        return USAGE_ERROR
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    return 0
