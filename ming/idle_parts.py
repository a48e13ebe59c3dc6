"""Parts of the model that a batch does not use, where several processes train or share the weights.

Processes wait for each other: DDP and ZeRO average the gradients of a weight when all processes have one, FSDP2 and
ZeRO-3 gather the weights of a part when all processes call it. A process that has text alone therefore calls the
encoders that another one feeds with an image or a recording. It gives them the smallest input there is and adds none
of their output: the value is unchanged, and the gradients of those weights are zeros.

A process alone waits for nobody. There unused parts are not called, and optimizers leave them alone: weights whose
gradient is zero still decay.
"""

import torch
from torch import nn


def is_one_of_several() -> bool:
    """Whether this process belongs to a group of processes, of one or more."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def must_have_gradients(part: nn.Module, is_training: bool) -> bool:
    """Whether every weight of a part that is not frozen needs a gradient here, be it of zeros."""
    is_trained = is_training and torch.is_grad_enabled() and is_one_of_several()
    return is_trained and any(weight.requires_grad for weight in part.parameters())


def must_be_called(part: nn.Module, is_training: bool) -> bool:
    """Whether every process has to call a part, be there input for it or not.

    It has to while the part is trained, and at any time if its weights are spread over the processes: by FSDP2
    (`placements`) or ZeRO-3 (`ds_id`).
    """
    if not is_one_of_several():
        return False
    is_spread = any(hasattr(weight, "placements") or hasattr(weight, "ds_id") for weight in part.parameters())
    return is_spread or must_have_gradients(part, is_training)


def add_nothing_of(rows: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
    """`embeds` [..., H] as they are, with a graph that leads to `rows` [..., H] as well; gradients there are zeros."""
    return embeds + rows[:0].sum().to(embeds.device, embeds.dtype)


__all__ = ["add_nothing_of", "is_one_of_several", "must_be_called", "must_have_gradients"]
