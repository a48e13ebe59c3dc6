"""Where a model computes whose weights wait elsewhere."""

import torch


class ExecutionDevice:
    """Gives a `PreTrainedModel` a `device` to which inputs may be moved when its weights are offloaded.

    Offloaded weights are meta tensors until accelerate's hooks fetch them; the library's `device` would be theirs.
    """

    @property
    def device(self) -> torch.device:
        device = super().device
        if device.type != "meta":
            return device
        for module in self.modules():
            hook = getattr(module, "_hf_hook", None)
            for one in getattr(hook, "hooks", (hook,)):
                if (execution_device := getattr(one, "execution_device", None)) is not None:
                    return torch.device(execution_device)
        return device


__all__ = ["ExecutionDevice"]
