"""The velocity network of the flow as one graph for each of few lengths.

It takes most of the detokenizer's time: every code passes it once for each step of the solver, and twice with
guidance. Frames are padded to the next length and masked, which changes a row by no more than rounding. Chunks of a
stream have a handful of lengths, and streams of several people use the same graphs.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CompileConfig

SHORTEST = 64  # frames: 0.74 s; the next lengths are 96, 128, 192, 256 and so on
GRAPHS = 128  # of an estimator; PyTorch would give up after 8
_one_step = threading.Lock()

# x, mask, mu, timesteps, speaker, cond -> velocity, as `VelocityEstimator.forward`.
Velocity = Callable[..., torch.Tensor]


def padded_length(frames: int) -> int:
    """The least of 64, 96, 128, 192, 256, 384 and so on that is not less."""
    power = max(SHORTEST, 1 << (frames - 1).bit_length())
    return power * 3 // 4 if power > SHORTEST and frames <= power * 3 // 4 else power


class CompiledEstimator:
    """The compiled call of an estimator.

    Args:
        estimator: its weights are the ones that are computed with.
        options: of `torch.compile`.
    """

    def __init__(self, estimator: nn.Module, options: dict[str, Any]):
        self.options = options
        self._call: Velocity = torch.compile(estimator.__call__, **options)

    def __call__(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        mu: torch.Tensor,
        timesteps: torch.Tensor,
        speaker: torch.Tensor,
        cond: torch.Tensor,
    ) -> torch.Tensor:
        """As `VelocityEstimator`."""
        frames = x.shape[2]
        mask = torch.ones_like(x[:, :1]) if mask is None else mask
        lacking = padded_length(frames) - frames
        x, mask, mu, cond = (F.pad(each, (0, lacking)) for each in (x, mask, mu, cond))
        # CUDA graphs share memory: the results of one are gone when the next one runs, in any thread.
        with _one_step:
            return self._call(x, mask, mu, timesteps, speaker, cond)[:, :, :frames].clone()


class EstimatorGraphs:
    """What a detokenizer keeps for compiled steps."""

    def __init__(self) -> None:
        self._compiled: CompiledEstimator | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a detokenizer starts with nothing: what was compiled computes with the original's weights."""
        return {**vars(self), "_compiled": None}

    def of(self, estimator: nn.Module, compiled: bool | CompileConfig, device: torch.device) -> CompiledEstimator:
        """The estimator, compiled as `compiled` says."""
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
            self._compiled = CompiledEstimator(estimator, options)
        return self._compiled


def raise_if_not_compilable(compiled: bool | CompileConfig, estimator: Any) -> None:
    """Refuse what `compile=` cannot be.

    Raises:
        TypeError: neither a flag nor a `CompileConfig`.
        ValueError: it is asked for, and the estimator does not compile: it names the reason and the remedy.
    """
    if not isinstance(compiled, (bool, CompileConfig)):
        raise TypeError(f"compile={str(compiled)[:80]!r} must be True, False or a CompileConfig of transformers")
    if compiled and not estimator.mask_padding:
        raise ValueError("compile: frames are padded, which mask_padding=False changes; leave one of them out")
    if compiled and any(hasattr(module, "_hf_hook") for module in estimator.modules()):
        raise ValueError(
            "compile: parts of the audio detokenizer are moved to the device when they are called; load all of it "
            "there, or leave compile out"
        )


__all__ = ["CompiledEstimator", "EstimatorGraphs", "Velocity", "padded_length", "raise_if_not_compilable"]
