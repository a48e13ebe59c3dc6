"""Muon for matrices and AdamW for everything else, as one optimizer."""

import math
from collections import defaultdict

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Approximate U V^T of the singular value decomposition of each matrix [N, m, n], bfloat16 [N, m, n].

    This is the quintic Newton-Schulz iteration of Muon, which `torch.optim.Muon` runs on one matrix at a time.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) on matrices [m, n] and on stacks of matrices [N, m, n], such as experts.

    `torch.optim.Muon` takes no stacks. Matrices of equal size also go through the iteration together. Updates are
    scaled to the root mean square of AdamW's (Liu et al., arXiv 2502.16982).
    """

    def __init__(self, params, lr: float, weight_decay: float = 0.01, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """One update; `closure` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            by_size = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_size[parameter.shape[-2:]].append(parameter)
            for size, parameters in by_size.items():
                updates = [self._momentum(parameter, group["momentum"]).view(-1, *size) for parameter in parameters]
                directions = orthogonalize(torch.cat(updates)).split([len(update) for update in updates])
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.view_as(parameter), alpha=-0.2 * math.sqrt(max(size)) * group["lr"])

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> torch.Tensor:
        """The gradient of a parameter with Nesterov momentum, in the shape of the parameter."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum_buffer"], momentum)


class MuonAdamW(torch.optim.Optimizer):
    """Muon on hidden weight matrices, AdamW on the other parameters.

    Both parts share `param_groups` with this object, so learning-rate schedulers and checkpoints see one optimizer.

    Args:
        module: Muon takes its trainable 2-D parameters and the stacked ones of experts, except those of `head_names`.
        learning_rate: for both parts.
        head_names: substrings of the names of embeddings and output heads, which stay with AdamW.
        scales: substring of a parameter name -> factor on the learning rate, for modules that were trained before.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        head_names: tuple[str, ...] = ("word_embeddings", "lm_head", "head.", "heads.", "gate.weight"),
        scales: dict[str, float] | None = None,
    ):
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, value in module.named_parameters():
            if value.requires_grad:
                is_matrix = value.ndim == 2 or ".experts." in name
                is_hidden = is_matrix and not any(part in name for part in head_names)
                scale = next((factor for part, factor in (scales or {}).items() if part in name), 1.0)
                groups.setdefault((is_hidden, scale), []).append(value)
        matrices, others = (
            [
                {"params": values, "lr": scale * learning_rate}
                for (is_hidden, scale), values in groups.items()
                if is_hidden == wanted
            ]
            or [{"params": []}]  # a part may have no parameters
            for wanted in (True, False)
        )
        options = {"lr": learning_rate, "weight_decay": weight_decay}
        self.muon = Muon(matrices, **options)
        self.adamw = torch.optim.AdamW(others, betas=betas, **options)
        super().__init__([value for values in groups.values() for value in values], {"lr": learning_rate})
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        """One update of both parts; `closure` is not supported."""
        if closure is not None:
            raise ValueError("MuonAdamW takes no closure")
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of both parts."""
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        """The state of both parts."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the state that `state_dict` returned."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups
