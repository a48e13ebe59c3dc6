"""How weights are read, and where a model computes whose weights wait elsewhere."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def sequential_loading() -> Iterator[None]:
    """Read weights one after another unless the user decided about `HF_DEACTIVATE_ASYNC_LOAD`.

    The library's loading threads run ahead of the fusing of experts and hold up to half a checkpoint on top of the
    model (`python -m benchmarks load`).
    """
    if "HF_DEACTIVATE_ASYNC_LOAD" in os.environ:
        yield
        return
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]


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


__all__ = ["ExecutionDevice", "sequential_loading"]
