"""Odd values: what a caller may hand over by mistake. A recipe is a name of `ODD` or a plain value."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

NUMBERS = [0, -1, 1, 2, 3, 7, 0.5, -0.5, 1e-30, 1e30, 2**31, 2**32, 2**63, 2**64, 10**9, 10**30]
NUMBERS += [float("inf"), float("-inf"), float("nan"), True, False]
TEXTS = ["", "x", "no", "3", "auto", "\x00", "é" * 300, "</s>", "\ud800", "../x"]
# Made when they are used: tensors and objects cannot be printed as recipes.
ODD: dict[str, Callable[[], Any]] = {
    "object": object,
    "function": lambda: len,
    "empty tensor": lambda: torch.tensor([]),
    "scalar tensor": lambda: torch.tensor(3),
    "flag tensor": lambda: torch.tensor([True, False]),
    "float tensor": lambda: torch.rand(2, 5),
    "id tensor": lambda: torch.arange(30, 40).reshape(2, 5),
    "cube": lambda: torch.zeros(2, 5, 3),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.ones(2, 5, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2, 5), 1.0, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "complex": lambda: torch.ones(2, 5) * 1j,
    "half": lambda: torch.ones(2, 5, dtype=torch.float16),
    "array": lambda: np.zeros((2, 5)),
    "object array": lambda: np.array([object()]),
    "text array": lambda: np.array(["x", "y"]),
    "generator": torch.Generator,
    "set": lambda: {1, 2},
    "bytes": lambda: b"\x00\xff",
    "class": lambda: dict,
    "numpy int": lambda: np.int64(2),
    "numpy float": lambda: np.float32(0.5),
}


def plain() -> st.SearchStrategy:
    """Plain values, some of them in lists and dicts."""
    single = st.one_of(st.none(), st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.integers(-200, 200))
    listed = st.lists(single, max_size=3)
    return st.one_of(
        single, listed, st.dictionaries(st.sampled_from(["a", "url", "type", "data"]), single, max_size=2)
    )


def odd() -> st.SearchStrategy:
    """Recipes of odd values."""
    return st.one_of(plain(), st.sampled_from(sorted(ODD)).map(lambda name: {"odd": name}))


def made(recipe: Any) -> Any:
    """The value of a recipe."""
    if isinstance(recipe, dict) and recipe.keys() == {"odd"}:
        return ODD[recipe["odd"]]()
    return recipe
