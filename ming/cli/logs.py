"""What a command writes to stderr beside its errors; the process may go on to other work afterwards."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as library_logging

log = logging.getLogger("ming")


def set_up_logging(quiet: bool) -> None:
    """Our remarks and the warnings of libraries go to stderr; with `quiet` errors alone, whoever writes them.

    For the block of `logging_as_before`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("ming: %(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    if quiet:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        library_logging.disable_progress_bar()


@contextmanager
def logging_as_before() -> Iterator[None]:
    """Undo behind the block what `set_up_logging` does in it."""
    handlers, propagate, level = log.handlers, log.propagate, log.level
    disabled, has_bars = logging.root.manager.disable, library_logging.is_progress_bar_enabled()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)
        logging.disable(disabled)
        if has_bars:
            library_logging.enable_progress_bar()


__all__ = ["log", "logging_as_before", "set_up_logging"]
