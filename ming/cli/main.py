"""Ming-Lite-Omni on the command line.

Answers go to stdout, everything else to stderr. Exit codes: 0 done, 2 wrong usage or input, 130 interrupted, 1 else.
"""

import importlib
import importlib.util
import sys
from dataclasses import dataclass

from ming.cli.logs import logging_as_before
from ming.cli.usage import Parser, UsageError, exit_code


@dataclass(frozen=True)
class Command:
    """A command: a module with a function `main(arguments)`, imported when the command runs.

    Args:
        module: its full name.
        summary: one line for the list of commands.
        extra: the optional dependencies that it needs, a key of `EXTRAS`.
    """

    module: str
    summary: str
    extra: str | None = None


COMMANDS = {
    "chat": Command("ming.cli.chat", "hold a conversation in the terminal, or answer the lines of stdin"),
    "ask": Command("ming.cli.ask", "answer one question about any files, aloud too if asked for"),
    "speak": Command("ming.cli.speak", "read a text aloud into an audio file"),
    "draw": Command("ming.cli.draw", "draw an image from a text"),
    "edit": Command("ming.cli.edit", "change an image as a text says"),
    "transcribe": Command("ming.cli.transcribe", "write down the words of audio files"),
    "serve": Command("ming.cli.serve", "serve a model over HTTP with the API of OpenAI", "serving"),
    "page": Command("ming.cli.page", "show a page to try a model in the browser", "page"),
    "cluster": Command("ming.cli.cluster", "serve a model by several processes or machines", "cluster"),
    "adopt": Command("ming.cli.adopt", "make a checkpoint of this package from a released one"),
    "memory": Command("ming.cli.memory", "estimate the memory that a checkpoint needs, without loading it"),
    "finetune": Command("ming.training.finetune", "fine-tune a checkpoint on your own chats", "finetuning"),
}
# Optional dependencies of the package and the modules that they bring.
SERVING_MODULES = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "python_multipart", "httpx")
EXTRAS = {
    "serving": SERVING_MODULES,
    "cluster": (*SERVING_MODULES, "ray"),
    "page": ("gradio",),
    "finetuning": ("peft",),
}


def build_parser() -> Parser:
    """The parser of `ming` itself; it leaves the arguments of a command alone."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    listing = "\n".join(["commands:", *lines, "", "ming COMMAND --help shows the options of a command."])
    parser = Parser("", __doc__, listing, usage="ming COMMAND ...", add_help=False)
    parser.add_argument("-h", "--help", action="help", help="show this help")
    parser.add_argument("command", metavar="COMMAND", choices=tuple(COMMANDS), help="one of those below")
    return parser


def raise_if_not_installed(name: str, extra: str | None) -> None:
    """Raise a `UsageError` with the remedy when a command lacks optional dependencies."""
    if extra is None:
        return
    missing = [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(
            f'ming {name} needs {", ".join(missing)}; install what is missing: pip install "ming-lite-omni[{extra}]"'
        )


def run(arguments: list[str]) -> None:
    """Run the command that the first argument names with the other arguments.

    Raises:
        UsageError: the command, its arguments or its input are wrong, or it is not installed.
    """
    name = build_parser().parse_args(arguments[:1]).command
    command = COMMANDS[name]
    raise_if_not_installed(name, command.extra)
    importlib.import_module(command.module).main(arguments[1:])


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit code; errors that the user cannot put right are raised."""
    with logging_as_before():
        return exit_code("ming", lambda: run(sys.argv[1:] if arguments is None else arguments))
