"""Checkpoints are read whole or not at all."""

from typing import Any

NAMES_SHOWN = 8


def raise_if_incomplete(source: Any, info: dict[str, Any], ignore_mismatched_sizes: bool = False) -> None:
    """Refuse a checkpoint that does not fit its model, instead of leaving layers random.

    Args:
        source: name of the checkpoint, for the message.
        info: the library's loading info: `missing_keys`, `unexpected_keys` and `mismatched_keys`, the last as
            (name, shape in the checkpoint, shape in the model).

    Raises:
        ValueError: names that are missing from the checkpoint, that the model does not know, or, unless
            `ignore_mismatched_sizes`, that have another shape.
    """
    shapes = [f"{name} {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    problems = {
        "missing keys": info["missing_keys"],
        "unexpected keys": info["unexpected_keys"],
        "wrong shapes": [] if ignore_mismatched_sizes else shapes,
    }
    for problem, found in problems.items():
        if names := sorted(found):
            more = f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
            raise ValueError(
                f"{source}: {problem}: {', '.join(names[:NAMES_SHOWN])}{more}. "
                "The checkpoint and its config.json do not belong together."
            )


__all__ = ["NAMES_SHOWN", "raise_if_incomplete"]
