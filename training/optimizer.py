"""Muon for matrices, AdamW for everything else, as one optimizer."""

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, as in `torch.optim.Muon`) on hidden weight matrices, AdamW on the other parameters.

    Both parts share `param_groups` with this object, so learning-rate schedulers and checkpoints see one optimizer.

    Args:
        module: its trainable 2-D parameters go to Muon, except embeddings and output heads (by name).
        learning_rate: of AdamW. Muon's updates are scaled to AdamW's root mean square ("match_rms_adamw"), so that
            one value serves both.
        head_names: parts of parameter names that stay with AdamW.
        scales: part of a parameter name -> factor on its learning rate, for parts that were trained before.
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
                is_matrix = value.ndim == 2 and not any(part in name for part in head_names)
                scale = next((factor for part, factor in (scales or {}).items() if part in name), 1.0)
                groups.setdefault((is_matrix, scale), []).append(value)
        matrices, others = (
            [
                {"params": values, "lr": scale * learning_rate}
                for (is_matrix, scale), values in groups.items()
                if is_matrix == wanted
            ]
            for wanted in (True, False)
        )
        options = {"lr": learning_rate, "weight_decay": weight_decay}
        self.muon = torch.optim.Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw", **options)
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
        """Restore what `state_dict` gave."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups
