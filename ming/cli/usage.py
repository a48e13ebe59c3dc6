"""Errors that the user can put right: every command prints one line and ends with exit code 2."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class UsageError(Exception):
    """Wrong usage or input; the message is one line that names the remedy."""


@contextmanager
def user_input(prefix: str = "") -> Iterator[None]:
    """A block that reads the user's values for the first time: errors in them become a `UsageError`."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        raise UsageError(prefix + " ".join(str(error).split())) from error


class Parser(argparse.ArgumentParser):
    """A parser for one command; wrong arguments raise a `UsageError`.

    Args:
        command: name of the command, as in `ming COMMAND`.
        description: text above the options in the help.
        epilog: text below them.
    """

    def __init__(self, command: str, description: str | None, epilog: str | None = None, **options: Any):
        super().__init__(
            prog=f"ming {command}".strip(),
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")
