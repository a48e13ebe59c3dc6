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
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        head_names: tuple[str, ...] = ("word_embeddings", "lm_head", "heads.", "gate.weight"),
    ):
        trainable = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
        is_matrix = {
            name: value.ndim == 2 and not any(part in name for part in head_names) for name, value in trainable
        }
        self.muon = torch.optim.Muon(
            [value for name, value in trainable if is_matrix[name]],
            lr=learning_rate,
            weight_decay=weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = torch.optim.AdamW(
            [value for name, value in trainable if not is_matrix[name]],
            lr=learning_rate,
            weight_decay=weight_decay,
            betas=betas,
        )
        super().__init__([value for _, value in trainable], {"lr": learning_rate})
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
