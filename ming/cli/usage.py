"""Errors that the user can put right: every command prints one line and ends with exit code 2."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ming.argument_checks import in_words_of_request
from ming.files import SavingError

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


class UsageError(Exception):
    """Wrong usage or input; the message is one line that names the remedy."""


@contextmanager
def user_input(prefix: str = "") -> Iterator[None]:
    """A block that reads the user's values for the first time: errors in them become a `UsageError`.

    Its remedies are those for files: who writes a command line has no arrays and no options of Python.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        raise UsageError(prefix + " ".join(in_words_of_request(error).split())) from error


def exit_code(name: str, command: Callable[[], object]) -> int:
    """Run a command and return its exit code; errors that the user cannot put right are raised.

    Args:
        name: of the program, for its messages.
    """
    try:
        command()
    except (UsageError, FloatingPointError) as error:  # the latter names a layer and a remedy, see `ming/finite.py`
        sys.stderr.write(f"{name}: error: {error}\n")
        return USAGE_ERROR
    except SavingError as error:
        sys.stderr.write(f"{name}: error: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    return 0


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
