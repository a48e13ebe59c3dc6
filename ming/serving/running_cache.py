"""Keys and values of rows that are decoded side by side, where rows come and go between two passes.

Rows are padded on the left, up to the longest of them. Keys hold the position that they were rotated to, so that a row
may move along the cache.

Letters: B rows, L tokens, H heads, D width of a head.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from ming.compiled import CompiledDecoding, max_length, padded_rows

Layers = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [B, H, L, D] of each layer


class CachedRow(Protocol):
    """What the cache must know of a row.

    Attributes:
        length: its tokens in the cache.
        tokens_left: for how many more there must be room.
    """

    length: int

    @property
    def tokens_left(self) -> int: ...


RowT = TypeVar("RowT", bound=CachedRow)


class RunningCache(Generic[RowT]):
    """The rows that are being decoded, and the cache that holds them.

    Args:
        model: computes.
        decoding: what the model keeps for compiled steps.
        is_compiled: whether its step is compiled: then the cache is static and its sizes are few.

    Attributes:
        rows: in the order in which they came.
        cache: for the next pass.
        padding: int64 [B, 1], how many places each row of a pass lacks; it changes when rows come and go alone.
    """

    def __init__(self, model: PreTrainedModel, decoding: CompiledDecoding, is_compiled: bool):
        self.model, self.decoding, self.is_compiled = model, decoding, is_compiled
        self.rows: list[RowT] = []
        self.padding = torch.zeros(0, 1, dtype=torch.long)
        self.cache: Cache = DynamicCache()  # every token in every layer: a sliding window is a matter of the mask
        self._leases = ExitStack()  # of a static cache

    @property
    def width(self) -> int:
        """Tokens in the cache, padding included."""
        return max((row.length for row in self.rows), default=0)

    @property
    def padded_rows(self) -> list[RowT]:
        """The rows of a pass: for a compiled one with copies of the last, up to a power of two, which nobody sees."""
        size = padded_rows(len(self.rows)) if self.is_compiled else len(self.rows)
        return [*self.rows, *[self.rows[-1]] * (size - len(self.rows))]

    def add(self, rows: Sequence[RowT], layers: Layers) -> None:
        """Let rows run beside the others.

        Args:
            layers: their keys and values, padded on the left.
        """
        self._place([*self.rows, *rows], _beside(self._layers(), layers) if self.rows else layers)

    def keep(self, places: Sequence[int]) -> None:
        """Take all other rows out, and the padding that only they needed."""
        if len(places) == len(self.rows):
            return
        rows = [self.rows[place] for place in places]
        cut = self.width - max((row.length for row in rows), default=0)
        self._place(rows, part_of(self._layers(), places, cut))

    def make_room(self) -> None:
        """See that a static cache has room for the next token of every row."""
        if self.is_compiled and max_length(self.cache) <= self.width:
            self._place(self.rows, [(keys.clone(), values.clone()) for keys, values in self._layers()])

    def clear(self) -> None:
        """Take all rows out, and give the cache back."""
        self._leases.close()
        self.rows, self.cache = [], DynamicCache()

    def _layers(self) -> Layers:
        count, width = len(self.rows), self.width
        layers = ((layer.keys, layer.values) for layer in self.cache.layers)
        return [(keys[:count, :, :width], values[:count, :, :width]) for keys, values in layers]

    def _place(self, rows: list[RowT], layers: Layers) -> None:
        """Rows with keys and values that are no views of the present cache."""
        self.clear()
        self.rows = rows
        if not rows:
            return
        more = len(self.padded_rows) - len(rows)
        self.padding = torch.tensor([[self.width - row.length] for row in self.padded_rows], device=self.model.device)
        if self.is_compiled:
            length = self.width + max(row.tokens_left for row in rows)
            lease = self.decoding.cache(self.model, len(rows) + more, length)
            self.cache = self._leases.enter_context(lease)
        for index, pair in enumerate(layers):
            keys, values = (torch.cat([part, *[part[-1:]] * more]) if more else part for part in pair)
            self.cache.update(keys, values, index)


def part_of(layers: Layers, places: Sequence[int], cut: int) -> Layers:
    """The rows at these places, without their first `cut` tokens."""
    kept = list(places)
    return [(keys[kept, :, cut:], values[kept, :, cut:]) for keys, values in layers]


def _beside(first: Layers, second: Layers) -> Layers:
    """The rows of both, padded on the left to one length."""
    length = max(first[0][0].shape[2], second[0][0].shape[2])
    joined: Layers = []
    for pairs in zip(first, second, strict=True):
        keys, values = (
            torch.cat([F.pad(part, (0, 0, length - part.shape[2], 0)) for part in parts])
            for parts in zip(*pairs, strict=True)
        )
        joined.append((keys, values))
    return joined


__all__ = ["Layers", "RunningCache", "part_of"]
