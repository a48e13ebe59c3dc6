"""What an input may end in: an answer, a refusal that helps, or a fault."""

import linecache
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REFUSALS = (ValueError, TypeError, OSError)  # what our documentation lists
# Python's own words for a misspelt or missing argument name it already.
CALL_ERRORS = ("unexpected keyword argument", "required positional argument", "multiple values for")
# Whose `generate` checks some of its options itself, in words of its own.
LIBRARIES = ("site-packages/transformers/", "site-packages/huggingface_hub/")
SECONDS, MEMORY_BYTES = 20.0, 4 << 30  # that an input may take


class Broken(Exception):
    """An answer that breaks a promise; the text says which."""


def expect(holds: bool, promise: str, *details: Any) -> None:
    """A promise about an answer."""
    if not holds:
        raise Broken(f"{promise}: {details!r}"[:500])


def judged(trial: Callable[[], None]) -> tuple[str, str]:
    """Run a trial -> its outcome ("answer", "refusal" or "fault"), and what it was: "" or the error with its place."""
    try:
        trial()
    except Broken as error:
        return "fault", f"broken promise: {error}"
    except Exception as error:
        return ("refusal" if is_refusal(error) else "fault"), f"{place(error)}: {type(error).__name__}: {error}"[:500]
    return "answer", ""


def is_refusal(error: Exception) -> bool:
    """Whether an error was meant: of a documented class, and raised by a `raise` that somebody wrote for it."""
    if not isinstance(error, REFUSALS) or len(str(error)) < 10:
        return False
    if isinstance(error, TypeError) and any(words in str(error) for words in CALL_ERRORS):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    own = Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename
    written = linecache.getline(frame.filename, frame.lineno or 0).lstrip().startswith("raise ")
    return written and (own or any(library in frame.filename for library in LIBRARIES))


def place(error: Exception) -> str:
    """Where an error comes from: its last frame in this repository, and its last one at all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and "/fuzz/" not in frame.filename]
    chosen = [*own[-1:], *[frame for frame in frames[-1:] if frame not in own]]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in chosen)
