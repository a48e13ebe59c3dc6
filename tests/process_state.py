"""What a library must leave as it found it: the settings of a process that belong to the user.

This file is also run in fresh processes, as text before the script of a test; it imports nothing of ours.
"""

import ast
import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import torch

PLAIN_LOGGER = (logging.NOTSET, (), (), True, False)


def libraries(folders) -> None:
    """Import the libraries that the code in some folders imports, wherever it does: the baseline of our imports."""
    own = {Path(folder).name for folder in folders}
    for path in sorted(path for folder in folders for path in Path(folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            if names and not {name.split(".")[0] for name in names} & own:
                with suppress(ImportError):  # an optional package
                    exec(compile(ast.Module([node], []), str(path), "exec"), {})


def _logger_state(logger: logging.Logger) -> tuple:
    return logger.level, tuple(logger.handlers), tuple(logger.filters), logger.propagate, logger.disabled


def loggers() -> dict[str, tuple]:
    """All loggers that are not as `logging.getLogger` makes them."""
    known = {name: each for name, each in logging.root.manager.loggerDict.items() if isinstance(each, logging.Logger)}
    states = {name: _logger_state(logger) for name, logger in {"": logging.root, **known}.items()}
    return {name: state for name, state in states.items() if state != PLAIN_LOGGER}


def random_states() -> dict[str, object]:
    """Of the three global generators."""
    kind, keys, *rest = np.random.get_state()
    return {
        "random numbers of torch": torch.get_rng_state().tolist(),
        "random numbers of numpy": (kind, keys.tolist(), *rest),
        "random numbers of Python": random.getstate(),
    }


def process_state() -> dict[str, object]:
    """Everything, by name."""
    return {
        **random_states(),
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "modes of torch": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
            torch.backends.mkldnn.enabled,
            torch.is_anomaly_enabled(),
        ),
        "errors of numpy": np.geterr(),
        "warning filters": list(warnings.filters),
        "showing of warnings": warnings.showwarning,
        "loggers": loggers(),
        "level below which all loggers are silent": logging.root.manager.disable,
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "locale": locale.setlocale(locale.LC_ALL),
        "working directory": os.getcwd(),
        "temporary directory": tempfile.gettempdir(),
        "environment": dict(os.environ),
        "import path": list(sys.path),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
        "recursion limit": sys.getrecursionlimit(),
        "garbage collection": (gc.isenabled(), gc.get_threshold()),
        "time limit of sockets": socket.getdefaulttimeout(),
        "limits of Pillow": (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES),
    }


def changes(before: dict, after: dict) -> dict[str, tuple]:
    """What differs, by name: before and after; of dictionaries, only the entries that differ."""
    found = {}
    for name, was in before.items():
        now = after[name]
        if was == now:
            continue
        if isinstance(was, dict):
            keys = [key for key in {**was, **now} if was.get(key) != now.get(key)]
            was, now = ({key: state.get(key) for key in keys} for state in (was, now))
        found[name] = (str(was)[:2000], str(now)[:2000])
    return found


@contextmanager
def leaves_no_trace():
    """The block must change nothing, and leave no thread behind."""
    before, running = process_state(), set(threading.enumerate())
    yield
    found = changes(before, process_state())
    assert not found, found
    # The first progress bar of a process starts a thread of tqdm's.
    left = [each for each in threading.enumerate() if each not in running and type(each).__name__ != "TMonitor"]
    assert not left, left
