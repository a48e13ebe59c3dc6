"""The directory of a fine-tuning run: its settings, so that only the same run continues in it."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from ming.cli.checks import find_model
from ming.files import replacing
from ming.training.loop import last_checkpoint

SETTINGS = "finetune.json"
# Options that may change when a run continues.
MAY_CHANGE = (
    *("output", "eval_data", "merge", "epochs", "steps", "save_steps", "logging_steps", "report_to", "workers"),
    "gradient_checkpointing",
)


def run_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of this run, with a digest of its data; a run that `--output` already holds must have the same.

    Raises:
        ValueError: the directory belongs to another run, or is the directory of the model.
        UsageError: there is no model.
    """
    find_model(args.model)
    output = Path(args.output)
    if output.resolve() == Path(args.model).resolve():
        raise ValueError(f"--output {output} is the model's own directory; give another one")
    settings = {name: value for name, value in vars(args).items() if name not in MAY_CHANGE}
    settings["data"] = hashlib.sha256(Path(args.data).read_bytes()).hexdigest()
    if not (output / SETTINGS).is_file():
        if last_checkpoint(output) is not None:
            raise ValueError(f"--output {output} holds checkpoints of another program; give another directory")
        return settings
    begun = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    names = sorted(name for name in settings.keys() | begun.keys() if settings.get(name) != begun.get(name))
    if names:
        shown = ", ".join(f"{name} {begun.get(name)!r}, now {settings.get(name)!r}" for name in names)
        raise ValueError(f"{output} was begun with {shown}; give the same, or another --output")
    return settings


def save_settings(output: str | Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run into its directory, which is made if it is missing."""
    Path(output).mkdir(parents=True, exist_ok=True)
    with replacing(Path(output) / SETTINGS) as path:
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
