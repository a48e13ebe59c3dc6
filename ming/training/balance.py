"""Balance between modalities (M2-omni, arXiv 2502.18778, which Ming-Omni follows).

Step-wise balance (pre-training): one optimizer step is one forward pass per modality; the losses are summed with
fixed weights. Dynamic adaptive balance (instruction tuning): the weights follow each modality's convergence.
"""

from collections import deque
from collections.abc import Mapping

import numpy as np
import torch


def weighted_sum(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> torch.Tensor:
    """Step-wise balance: the scalar sum of the modalities' losses times their weights (1 for a missing weight)."""
    return sum(weights.get(name, 1.0) * loss for name, loss in losses.items())


def relative_slope(losses: list[float]) -> float:
    """Slope of the least-squares line through equally spaced losses, per observation, relative to the mean loss."""
    values = np.asarray(losses, dtype=np.float64)
    slope, _ = np.polyfit(np.arange(len(values)), values, deg=1)
    return float(slope / max(values.mean(), 1e-8))


class DynamicBalance:
    """Weights from the convergence of recent validation losses.

    The paper fits a line to each modality's recent validation losses and lets the weights follow the convergence
    rates, so that the modalities finish together. It does not give the map from slopes to weights. We use progress
    p = -relative slope: a modality whose loss still falls gets a weight proportional to exp(-(p - mean p) /
    temperature), so slower ones get more. A modality whose loss rises is finished or overfits and gets `min_weight`.
    The weights of the falling ones have mean 1 before they are clipped to [min_weight, max_weight].

    Args:
        names: modalities.
        window: validation losses per fit; all weights are 1 until each modality has that many.
        temperature: difference in progress that changes the ratio of two weights by a factor of e.

    Raises:
        ValueError: `window` is below 2.
    """

    def __init__(
        self,
        names: list[str],
        window: int = 5,
        temperature: float = 0.05,
        min_weight: float = 0.5,
        max_weight: float = 2.0,
    ):
        if window < 2:
            raise ValueError(f"window must be at least 2 to fit a line, got {window}")
        self.history: dict[str, deque[float]] = {name: deque(maxlen=window) for name in names}
        self.window, self.temperature = window, temperature
        self.min_weight, self.max_weight = min_weight, max_weight

    def observe(self, losses: Mapping[str, float]) -> None:
        """Record one validation loss per modality.

        Raises:
            ValueError: an unknown modality, or a loss that is not finite.
        """
        for name, loss in losses.items():
            if name not in self.history:
                raise ValueError(f"unknown modality {name!r}; this balance follows {sorted(self.history)}")
            if not np.isfinite(loss):
                raise ValueError(f"validation loss of {name!r} is {loss}; training has diverged")
            self.history[name].append(float(loss))

    def weights(self) -> dict[str, float]:
        """The current weight of each modality."""
        if any(len(values) < self.window for values in self.history.values()):
            return dict.fromkeys(self.history, 1.0)
        progress = {name: -relative_slope(list(values)) for name, values in self.history.items()}
        falling = {name: p for name, p in progress.items() if p >= 0}
        if not falling:
            return dict.fromkeys(self.history, self.min_weight)
        mean = float(np.mean(list(falling.values())))
        raw = {name: float(np.exp(-(p - mean) / self.temperature)) for name, p in falling.items()}
        scale = float(np.mean(list(raw.values())))
        weights = dict.fromkeys(self.history, self.min_weight)
        weights.update(
            {name: float(np.clip(value / scale, self.min_weight, self.max_weight)) for name, value in raw.items()}
        )
        return weights

    def state_dict(self) -> dict[str, list[float]]:
        """The recorded losses, for a checkpoint."""
        return {name: list(values) for name, values in self.history.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Restore the losses that `state_dict` returned."""
        for name, values in state.items():
            self.history[name] = deque(values, maxlen=self.window)
