"""Random numbers: every row of a batch has a generator of its own, and PyTorch's global one is never touched.

From a row's generator each piece of text gets two more, one for the talker and one for the audio detokenizer. The
speech of a row therefore depends neither on its neighbours nor on whether it is streamed.
"""

import secrets
from numbers import Integral
from typing import Any

import numpy as np
import torch

from .argument_checks import shown

MAX_SEED = 2**62
SEEDS = (-(2**63), 2**64 - 1)  # lowest and highest that a generator of PyTorch takes


def row_generators(
    seed: int | list[int] | None, generator: torch.Generator | list[torch.Generator] | None, rows: int
) -> list[torch.Generator]:
    """One generator per row. One seed serves all rows, as if each were alone; no seed is a fresh one.

    Raises:
        ValueError: as `raise_if_unusable`.
    """
    raise_if_unusable(seed, generator, rows)
    seed = plain_seed(seed)
    if isinstance(generator, torch.Generator):
        seed = torch.randint(MAX_SEED, (rows,), generator=generator, device=generator.device).tolist()
    elif generator is not None:
        return list(generator)
    if seed is None:
        seed = [secrets.randbelow(MAX_SEED) for _ in range(rows)]
    seeds = seed if isinstance(seed, list) else [seed] * rows
    return [torch.Generator().manual_seed(int(value)) for value in seeds]


def raise_if_unusable(
    seed: int | list[int] | None,
    generator: torch.Generator | list[torch.Generator] | None,
    rows: int | None = None,
) -> None:
    """Raise for arguments that `row_generators` cannot take; draws nothing.

    Without `rows`, any number of them is fine.

    Raises:
        ValueError: both were given, a list of another length, or a number that is no seed.
        TypeError: no seed, or no generator.
    """
    if seed is not None and generator is not None:
        raise ValueError("pass either seed or generator, not both")
    seeds = plain_seed(seed)
    for value in () if seeds is None else seeds if isinstance(seeds, list) else [seeds]:
        _raise_if_no_seed(value)
    generators = generator if isinstance(generator, (list, tuple)) else (generator,)
    if generator is not None and not all(isinstance(each, torch.Generator) for each in generators):
        raise TypeError(f"generator={shown(generator)} must be a torch.Generator, or a list of one per row")
    if rows is None:
        return
    if generator is not None and not isinstance(generator, torch.Generator) and len(generator) != rows:
        raise ValueError(f"{len(generator)} generators for {rows} rows; give one per row")
    if isinstance(seeds, list) and len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} rows; give one per row, or one for all")


def plain_seed(seed: Any) -> Any:
    """Seeds as a list and one seed as itself, also where an array or a tensor holds them."""
    if isinstance(seed, (np.ndarray, torch.Tensor)):
        seed = seed.tolist()
    return list(seed) if isinstance(seed, tuple) else seed


def _raise_if_no_seed(value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"seed={shown(value)} must be a whole number, or a list of one per row")
    if not SEEDS[0] <= int(value) <= SEEDS[1]:
        raise ValueError(f"seed={shown(value)} must be a whole number of 64 bits")


class PieceGenerators:
    """Deals out, piece after piece, the generators of the talker and of the audio detokenizer for a row."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def next_pair(self) -> tuple[torch.Generator, torch.Generator]:
        """The generators (talker, audio detokenizer) of the next piece."""
        draws = torch.randint(MAX_SEED, (2,), generator=self.generator, device=self.generator.device)
        talker, detokenizer = draws.tolist()
        return torch.Generator().manual_seed(talker), torch.Generator().manual_seed(detokenizer)


__all__ = ["MAX_SEED", "PieceGenerators", "plain_seed", "raise_if_unusable", "row_generators"]
