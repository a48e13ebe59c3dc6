"""The directory of a fine-tuning run: its settings, so that only the same run continues in it."""

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ming.cli.checks import find_model
from ming.files import replacing
from ming.training.loop import last_checkpoint

SETTINGS = "finetune.json"
# Options that may change when a run continues.
MAY_CHANGE = (
    *("output", "eval_data", "merge", "epochs", "steps", "save_steps", "logging_steps", "report_to", "workers"),
    *("gradient_checkpointing", "changed_data"),
)


def run_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of this run, with a digest of its data; a run that `--output` already holds must have the same.

    With `--changed-data` its data may be others.

    Raises:
        ValueError: the directory belongs to another run, is the directory of the model, or cannot be written.
        UsageError: there is no model.
    """
    find_model(args.model)
    output = Path(args.output)
    if output.resolve() == Path(args.model).resolve():
        raise ValueError(f"--output {output} is the model's own directory; give another one")
    _raise_if_not_writable(output)
    settings = {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
    settings |= {"model": _resolved(args.model), "data": hashlib.sha256(Path(args.data).read_bytes()).hexdigest()}
    begun = _begun(output)
    if begun is None:
        if last_checkpoint(output) is not None:
            raise ValueError(f"--output {output} holds checkpoints of another program; give another directory")
        return settings
    names = {name for name in settings.keys() | begun.keys() if settings.get(name) != begun.get(name)}
    if others := sorted(names - {"data"}):
        shown = ", ".join(_difference(name, begun.get(name), settings.get(name)) for name in others)
        raise ValueError(f"{output} was begun with {shown}; give the same, or another --output")
    if names and not args.changed_data:
        raise ValueError(
            f"the chats of {args.data} have changed since {output} was begun; give --changed-data to go on with them "
            "from its last checkpoint, or another --output to begin anew"
        )
    return settings


def are_checked(args: argparse.Namespace, settings: dict[str, Any]) -> bool:
    """Whether the run that `--output` holds was begun with the same chats, which were checked then."""
    begun = _begun(Path(args.output))
    return begun is not None and begun.get("data") == settings["data"]


def _begun(output: Path) -> dict[str, Any] | None:
    """The settings of the run in a directory, None if there is none."""
    path = output / SETTINGS
    if not path.is_file():
        return None
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); give another --output") from error
    if not isinstance(begun, dict):
        raise ValueError(f"{path} holds no settings; give another --output")
    return begun | {"model": _resolved(str(begun.get("model")))}


def _resolved(model: str) -> str:
    """The absolute path of a directory; a Hub id as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _raise_if_not_writable(output: Path) -> None:
    """Raise a `ValueError` for a directory that cannot be made, or not be written."""
    there = next(path for path in (output, *output.resolve().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"--output {output}: {there} is a file; give a directory")
    if not os.access(there, os.W_OK):
        raise ValueError(f"--output {output}: no permission to write in {there}; give another directory")


def _difference(name: str, before: Any, now: Any) -> str:
    """An option that differs, in words of the command line."""
    option = name if name == "target" else f"--{name.replace('_', '-')}"
    if isinstance(before, bool) or isinstance(now, bool):
        return f"{option}, now without it" if before else f"no {option}, now with it"
    first, second = (" ".join(value) if isinstance(value, list) else value for value in (before, now))
    if first is None:
        return f"no {option}, now {second}"
    return f"{option} {first}, now {'without it' if second is None else second}"


def save_settings(output: str | Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run into its directory, which is made if it is missing."""
    Path(output).mkdir(parents=True, exist_ok=True)
    with replacing(Path(output) / SETTINGS) as path:
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
