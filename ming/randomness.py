"""Random numbers: every row of a batch has a generator of its own, and PyTorch's global one is never touched.

From a row's generator each piece of text gets two more, one for the talker and one for the audio detokenizer. The
speech of a row therefore depends neither on its neighbours nor on whether it is streamed.
"""

import secrets
from numbers import Integral

import torch

MAX_SEED = 2**62


def row_generators(
    seed: int | list[int] | None, generator: torch.Generator | list[torch.Generator] | None, rows: int
) -> list[torch.Generator]:
    """One generator per row. One seed serves all rows, as if each were alone; no seed is a fresh one.

    Raises:
        ValueError: as `raise_if_unusable`.
    """
    raise_if_unusable(seed, generator, rows)
    if isinstance(generator, torch.Generator):
        seed = torch.randint(MAX_SEED, (rows,), generator=generator, device=generator.device).tolist()
    elif generator is not None:
        return list(generator)
    if seed is None:
        seed = [secrets.randbelow(MAX_SEED) for _ in range(rows)]
    seeds = [seed] * rows if isinstance(seed, int | Integral) else list(seed)
    return [torch.Generator().manual_seed(int(value)) for value in seeds]


def raise_if_unusable(
    seed: int | list[int] | None, generator: torch.Generator | list[torch.Generator] | None, rows: int
) -> None:
    """Raise for arguments that `row_generators` cannot take; draws nothing.

    Raises:
        ValueError: both were given, or a list of another length.
    """
    if seed is not None and generator is not None:
        raise ValueError("pass either seed or generator, not both")
    if generator is not None and not isinstance(generator, torch.Generator) and len(generator) != rows:
        raise ValueError(f"{len(generator)} generators for {rows} rows; give one per row")
    if seed is not None and not isinstance(seed, int | Integral) and len(seed) != rows:
        raise ValueError(f"{len(seed)} seeds for {rows} rows; give one per row, or one for all")


class PieceGenerators:
    """Deals out, piece after piece, the generators of the talker and of the audio detokenizer for a row."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def next_pair(self) -> tuple[torch.Generator, torch.Generator]:
        """The generators (talker, audio detokenizer) of the next piece."""
        draws = torch.randint(MAX_SEED, (2,), generator=self.generator, device=self.generator.device)
        talker, detokenizer = draws.tolist()
        return torch.Generator().manual_seed(talker), torch.Generator().manual_seed(detokenizer)


__all__ = ["MAX_SEED", "PieceGenerators", "raise_if_unusable", "row_generators"]
