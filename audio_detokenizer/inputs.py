"""Arguments of the detokenizer, checked and brought into one form; a wrong one is a ValueError before any work.

Shape letters: B batch, T codes, P codes of the prompt, F mel frames of the prompt, M mel channels.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch

from .configuration_audio_detokenizer import AudioDetokenizerConfig

# Codes and mel of a prompt may differ in length by this much: two front ends cut them from one recording.
PROMPT_TOLERANCE_SECONDS = 0.1
MOST_STEPS = 10_000

Rows: TypeAlias = Sequence[torch.Tensor] | torch.Tensor


def code_row(codes: torch.Tensor | Sequence[int], vocab_size: int, name: str) -> torch.Tensor:
    """One row of speech codes, which errors call `name` -> int64 [T], on the CPU unless it is a tensor elsewhere.

    Raises:
        TypeError: something else than numbers.
        ValueError: not one row of integers, or a code outside 0..vocab_size - 1.
    """
    if not isinstance(codes, torch.Tensor) and np.asarray(codes).dtype.kind not in "iuf":
        raise TypeError(f"{name}={codes!r:.80} must be integers of shape [T]")
    codes = torch.as_tensor(codes)
    if codes.ndim != 1 or codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"{name} must be integers of shape [T], not {codes.dtype} of shape {tuple(codes.shape)}")
    codes = codes.long()
    if len(codes):
        low, high = (int(value) for value in codes.aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"{name} holds {low if low < 0 else high}, but speech codes lie between 0 and {vocab_size - 1}; "
                "decode the ids of the language model with the codec BPE first"
            )
    return codes


def code_rows(codes: Rows, lengths: torch.Tensor | Sequence[int] | None, vocab_size: int) -> list[torch.Tensor]:
    """Codes as a list of rows [T] or as [B, T] with lengths -> checked rows int64 [T], none of them empty.

    Raises:
        ValueError: no rows, an empty row, lengths that do not fit, or what `code_row` refuses.
    """
    raise_if_no_rows("codes", codes)
    if isinstance(codes, torch.Tensor) and codes.ndim != 2:
        raise ValueError(f"codes must be a list of rows [T] or have shape [B, T], not {tuple(codes.shape)}")
    rows = list(codes)
    if lengths is not None:
        raise_if_no_rows("code_lengths", lengths)
        if not all(isinstance(length, Integral | torch.Tensor) for length in lengths):
            raise TypeError(f"code_lengths={lengths!r:.80} must be whole numbers, one per row")
        counts = [int(length) for length in lengths]
        longest = min((len(row) for row in rows), default=0)
        if len(counts) != len(rows) or not all(0 <= count <= longest for count in counts):
            raise ValueError(f"code_lengths {counts} do not fit codes of {len(rows)} rows of {longest}")
        rows = [row[:count] for row, count in zip(rows, counts, strict=True)]
    if not rows:
        raise ValueError("codes holds no rows; pass at least one")
    rows = [code_row(row, vocab_size, f"codes[{i}]") for i, row in enumerate(rows)]
    if empty := [i for i, row in enumerate(rows) if not len(row)]:
        raise ValueError(f"codes[{empty[0]}] is empty; there is nothing to speak, leave the row out")
    return rows


def speaker_rows(speaker_embedding: torch.Tensor, num_rows: int, width: int) -> torch.Tensor:
    """[B, width], or [1, width] for all rows -> [B, width].

    Raises:
        ValueError: another shape.
    """
    raise_if_no_tensor("speaker_embedding", speaker_embedding)
    shape = tuple(speaker_embedding.shape)
    if len(shape) != 2 or shape[1] != width or shape[0] not in (1, num_rows):
        raise ValueError(
            f"speaker_embedding must have shape [{num_rows}, {width}] (or [1, {width}] for one voice), not {shape}"
        )
    return speaker_embedding.expand(num_rows, -1)


def raise_if_no_tensor(name: str, value: Any) -> None:
    """Raise a TypeError for what is no tensor of floats."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise TypeError(f"{name}={value!r:.80} must be a tensor of floats")


def raise_if_no_rows(name: str, value: Any) -> None:
    """Raise a TypeError for what is neither a tensor nor an array nor a list of rows."""
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__len__") or not hasattr(value, "__getitem__"):
        raise TypeError(f"{name}={value!r:.80} must be a tensor, or a list of one per row")


def per_row(values: Rows | None, num_rows: int, name: str) -> list[Any]:
    """One value per row; a single value (or None) serves all rows.

    Raises:
        ValueError: another number of values.
    """
    if values is not None:
        raise_if_no_rows(name, values)
    rows = [None] if values is None else list(values)
    if len(rows) not in (1, num_rows):
        raise ValueError(f"{name} has {len(rows)} rows, codes has {num_rows}; pass one per row or one for all")
    return rows * num_rows if len(rows) == 1 else rows


def prompt_rows(
    prompt_codes: Rows | None, prompt_mel: Rows | None, num_rows: int, config: AudioDetokenizerConfig
) -> tuple[list[torch.Tensor], list[int]]:
    """Prompts as lists or stacked, [P] codes and [F, M] mel per row -> codes int64 [P] and frames F of every row.

    Raises:
        ValueError: codes without mel or the reverse, other shapes, or lengths that do not fit each other.
    """
    if (prompt_codes is None) != (prompt_mel is None):
        raise ValueError("prompt_codes and prompt_mel belong together: the mel says how much of the result to cut")
    all_codes: list[torch.Tensor] = []
    frames: list[int] = []
    mel_width = config.flow["output_size"]
    rows = zip(
        per_row(prompt_codes, num_rows, "prompt_codes"), per_row(prompt_mel, num_rows, "prompt_mel"), strict=True
    )
    for i, (codes, mel) in enumerate(rows):
        codes = torch.zeros(0, dtype=torch.int64) if codes is None else codes
        mel = torch.zeros(0, mel_width) if mel is None else mel
        codes = code_row(codes, config.flow["vocab_size"], f"prompt_codes[{i}]")
        raise_if_no_tensor(f"prompt_mel[{i}]", mel)
        if mel.ndim != 2 or mel.shape[1] != mel_width:
            raise ValueError(f"prompt_mel[{i}] must have shape [frames, {mel_width}], not {tuple(mel.shape)}")
        expected = config.num_frames(len(codes))
        if abs(len(mel) - expected) > PROMPT_TOLERANCE_SECONDS * config.sample_rate / config.hop_length:
            raise ValueError(
                f"prompt_mel[{i}] has {len(mel)} frames, but {len(codes)} prompt_codes make {expected}; "
                "take both from the same recording"
            )
        all_codes.append(codes)
        frames.append(len(mel))
    return all_codes, frames


def generator_rows(
    generator: torch.Generator | Sequence[torch.Generator | None] | None, num_rows: int
) -> list[torch.Generator | None]:
    """One generator per row, or one that all rows draw from in turn, or None.

    Raises:
        TypeError: no generator.
        ValueError: another number of generators.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * num_rows
    listed = isinstance(generator, (list, tuple))
    if not listed or not all(isinstance(each, torch.Generator | None) for each in generator):
        raise TypeError(f"generator={generator!r:.80} must be a torch.Generator, a list of one per row, or None")
    if len(generator) != num_rows:
        raise ValueError(f"{len(generator)} generators for {num_rows} rows; pass one per row, one for all, or None")
    return list(generator)


def raise_if_no_steps(num_steps: int | None) -> None:
    """Raise a ValueError for a number of solver steps that is not a whole number of 1 to `MOST_STEPS` (or None)."""
    if num_steps is None:
        return
    if isinstance(num_steps, bool) or not isinstance(num_steps, Integral) or num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps!r}: it counts the steps of the flow's solver")
    if num_steps > MOST_STEPS:
        raise ValueError(f"num_steps must be at most {MOST_STEPS:,}, not {str(num_steps)[:80]}")


def streaming_settings(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The configured settings of a stream, with those of `given` replaced.

    Raises:
        ValueError: an unknown setting, or a value that is too small.
    """
    if unknown := sorted(set(given) - set(defaults)):
        raise ValueError(f"unknown streaming settings {', '.join(unknown)}; known are {', '.join(defaults)}")
    settings = defaults | given
    for name, least in {"first_chunk": 1, "growth": 1, "max_chunk": 1}.items():
        if settings[name] < least:
            raise ValueError(f"{name} must be at least {least}, not {settings[name]}")
    if negative := [name for name, value in settings.items() if value < 0]:
        raise ValueError(f"{negative[0]} must not be negative, but is {settings[negative[0]]}")
    return settings
