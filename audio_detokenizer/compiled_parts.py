"""Velocity network of the flow, and vocoder, each as one graph for each of few lengths.

They take nearly all of the detokenizer's time: every code passes the network once for each step of the solver, and
twice with guidance.

Frames are padded to the next length and masked, which changes a row by no more than rounding. Chunks of a stream have
a handful of lengths, and streams of several people use the same graphs.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import CompileConfig

SHORTEST = 64  # frames: 0.74 s; the next lengths are 96, 128, 192, 256 and so on
GRAPHS = 128  # of a part; PyTorch would give up after 8
_one_step = threading.Lock()

# x, mask, mu, timesteps, speaker, cond -> velocity, as `VelocityEstimator.forward`.
Velocity = Callable[..., torch.Tensor]
# mel, phase, noise, known_f0, cycles -> waveform, pitch, cycles, as `HiFT.render`.
Render = Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class Parts(Protocol):
    """What computes in the places of the detokenizer's own velocity network and vocoder."""

    @property
    def estimator(self) -> Velocity: ...

    @property
    def vocoder(self) -> Render: ...


def padded_length(frames: int) -> int:
    """The least of 64, 96, 128, 192, 256, 384 and so on that is not less."""
    power = max(SHORTEST, 1 << (frames - 1).bit_length())
    return power * 3 // 4 if power > SHORTEST and frames <= power * 3 // 4 else power


def padded_lengths(most: int) -> list[int]:
    """All lengths that up to so many frames are padded to."""
    lengths = [padded_length(1)]
    while lengths[-1] < most:
        lengths.append(padded_length(lengths[-1] + 1))
    return lengths


def padded(x: torch.Tensor, length: int) -> torch.Tensor:
    """[..., T] -> [..., length], zero at the end; always with the same strides, which a graph is bound to."""
    wide = x.new_zeros(*x.shape[:-1], length)
    wide[..., : x.shape[-1]] = x
    return wide


class CompiledEstimator:
    """The compiled call of an estimator.

    Args:
        estimator: its weights are the ones that are computed with.
        options: of `torch.compile`.
    """

    def __init__(self, estimator: nn.Module, options: dict[str, Any]):
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
        x, mask, mu, cond = (padded(each, padded_length(frames)) for each in (x, mask, mu, cond))
        # CUDA graphs share memory: the results of one are gone when the next one runs, in any thread.
        with _one_step:
            return self._call(x, mask, mu, timesteps, speaker, cond)[:, :, :frames].clone()


class CompiledVocoder:
    """The compiled `render` of a vocoder.

    Args:
        render: computes with the weights of its vocoder.
        hop_length: samples of a frame.
        unknown_f0: stands for a pitch that is to be predicted.
        options: of `torch.compile`.
    """

    def __init__(self, render: Render, hop_length: int, unknown_f0: float, options: dict[str, Any]):
        self.hop_length, self.unknown_f0 = hop_length, unknown_f0
        self._call: Render = torch.compile(render, **options)

    def __call__(
        self,
        mel: torch.Tensor,
        phase: torch.Tensor,
        noise: torch.Tensor,
        known_f0: torch.Tensor | None = None,
        cycles: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `HiFT.render`, for rows without padding."""
        frames, hop = mel.shape[2], self.hop_length
        known_f0 = torch.full_like(mel[:, 0], self.unknown_f0) if known_f0 is None else known_f0
        cycles = torch.zeros_like(phase, dtype=torch.float64) if cycles is None else cycles
        length, harmonics = padded_length(frames), phase.shape[1]
        mel, known_f0, mask = (padded(each, length) for each in (mel, known_f0, torch.ones_like(mel[:, :1])))
        noise, phase, cycles = padded(noise, length * hop), padded(phase, harmonics), padded(cycles, harmonics)
        with _one_step:  # as above
            waveform, f0, turned = self._call(mel, phase, noise, known_f0, cycles, mask)
            return waveform[:, : frames * hop].clone(), f0[:, :frames].clone(), turned[:, :, : frames + 1].clone()


@dataclass(frozen=True)
class CompiledParts:
    """Both in the places of the detokenizer's own ones.

    Args:
        options: of `torch.compile`.
    """

    estimator: CompiledEstimator
    vocoder: CompiledVocoder
    options: dict[str, Any]


class PartGraphs:
    """What a detokenizer keeps for compiled steps."""

    def __init__(self) -> None:
        self._compiled: CompiledParts | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a detokenizer starts with nothing: what was compiled computes with the original's weights."""
        return {**vars(self), "_compiled": None}

    def of(
        self, estimator: nn.Module, vocoder: Any, compiled: bool | CompileConfig, device: torch.device
    ) -> CompiledParts:
        """The estimator and the vocoder, compiled as `compiled` says."""
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
            render = CompiledVocoder(vocoder.render, vocoder.hop_length, vocoder.UNKNOWN_F0, options)
            self._compiled = CompiledParts(CompiledEstimator(estimator, options), render, options)
        return self._compiled


def raise_if_not_compilable(compiled: bool | CompileConfig, estimator: Any, vocoder: nn.Module) -> None:
    """Refuse what `compile=` cannot be.

    Raises:
        TypeError: neither a flag nor a `CompileConfig`.
        ValueError: it is asked for, and a part does not compile: it names the reason and the remedy.
    """
    if not isinstance(compiled, (bool, CompileConfig)):
        raise TypeError(f"compile={str(compiled)[:80]!r} must be True, False or a CompileConfig of transformers")
    if compiled and not estimator.mask_padding:
        raise ValueError("compile: frames are padded, which mask_padding=False changes; leave one of them out")
    if compiled and any(hasattr(part, "_hf_hook") for module in (estimator, vocoder) for part in module.modules()):
        raise ValueError(
            "compile: parts of the audio detokenizer are moved to the device when they are called; load all of it "
            "there, or leave compile out"
        )


__all__ = [
    "CompiledEstimator",
    "CompiledParts",
    "CompiledVocoder",
    "PartGraphs",
    "Parts",
    "Render",
    "Velocity",
    "padded",
    "padded_length",
    "padded_lengths",
    "raise_if_not_compilable",
]
