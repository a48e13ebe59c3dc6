"""The diffusion transformer as one graph for each size of its inputs, called as the pipeline calls the transformer.

Sizes are native ones, of which there are few, times the number of images. On CUDA a graph is recorded as a CUDA graph,
too.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import CompileConfig

GRAPHS = 128  # of a transformer; PyTorch would give up after 8
_one_step = threading.Lock()


class CompiledTransformer:
    """The compiled call of a transformer.

    Args:
        transformer: its weights are the ones that are computed with.
        options: of `torch.compile`.
    """

    def __init__(self, transformer: nn.Module, options: dict[str, Any]):
        self.config, self.options = transformer.config, options
        self._transformer = transformer
        self._call: Callable[..., Any] = torch.compile(transformer.__call__, **options)

    @property
    def dtype(self) -> torch.dtype:
        """The pipeline gives inputs of it."""
        return self._transformer.dtype

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        """As the transformer with `return_dict=False`."""
        # CUDA graphs share memory: the results of one are gone when the next one runs, in any thread.
        with _one_step:
            return tuple(output.clone() for output in self._call(*args, **kwargs))


class TransformerGraphs:
    """What an image head keeps for compiled steps."""

    def __init__(self) -> None:
        self._compiled: CompiledTransformer | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of an image head starts with nothing: what was compiled computes with the original's weights."""
        return {**vars(self), "_compiled": None}

    def of(self, transformer: nn.Module, compiled: bool | CompileConfig, device: torch.device) -> CompiledTransformer:
        """The transformer, compiled as `compiled` says."""
        if isinstance(compiled, CompileConfig):
            options = compiled.to_dict()
        else:
            options = {
                "fullgraph": True,
                "dynamic": False,
                "mode": "reduce-overhead" if device.type == "cuda" else "default",
                "recompile_limit": GRAPHS,
                "isolate_recompiles": True,
            }
        if self._compiled is None or self._compiled.options != options:
            self._compiled = CompiledTransformer(transformer, options)
        return self._compiled


def raise_if_not_compilable(transformer: nn.Module) -> None:
    """Refuse a transformer whose step is no graph.

    Raises:
        ValueError: it names the reason and the remedy.
    """
    modules = list(transformer.modules())
    if any(hasattr(module, "_hf_hook") for module in modules):
        raise ValueError(
            "compile: parts of the image head are moved to the device when they are called; load all of it there, or "
            "leave compile out"
        )
    if any(type(module).__name__ == "Linear8bitLt" for module in modules):
        raise ValueError(
            "compile: an image head in 8 bit is not compiled; load it in 4 bit or without quantization, or leave "
            "compile out"
        )


__all__ = ["CompiledTransformer", "TransformerGraphs", "raise_if_not_compilable"]
