"""The vision tower against the library's class of the same widths and weights.

Both use the layers of the library. Ours runs all windows of one length as one batch, the library one after another
(its flash attention, which needs a GPU, does the same as ours). `quadratic` attends over the whole image in every
block, the cost of a tower without windows.
"""

from functools import partial

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from ming.configuration_bailingmm import BailingMMVisionConfig
from ming.modeling_encoders import BailingMMVisionTransformer

from .report import REFERENCE, Case, Versus, versus, versus_plot, versus_table

SIDES = ((224, 1), (448, 1), (672, 1), (224, 8))  # pixels per side, number of images
REPEATS = 3


def towers(device: str, dtype: torch.dtype, **sizes) -> dict[str, torch.nn.Module]:
    """Released widths, 4 of 32 blocks, one of which attends to the whole image; all have the same weights."""
    torch.manual_seed(0)
    sizes = {"depth": 4, "fullatt_block_indexes": [3], **sizes}
    everywhere = {"fullatt_block_indexes": list(range(sizes["depth"]))}
    library = Qwen2_5_VisionTransformerPretrainedModel(
        Qwen2_5_VLVisionConfig(**BailingMMVisionConfig(**sizes).to_dict())
    )
    ours = BailingMMVisionTransformer(BailingMMVisionConfig(**sizes))
    quadratic = BailingMMVisionTransformer(BailingMMVisionConfig(**{**sizes, **everywhere}))
    for tower in (library, quadratic):
        tower.load_state_dict(ours.state_dict())
    both = {REFERENCE: library, "ours": ours, "quadratic": quadratic}
    return {name: tower.to(device, dtype).eval() for name, tower in both.items()}


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32, sides=SIDES, **sizes) -> list[Versus]:
    """Time every tower on images of several sizes."""
    cases: list[Case] = []
    implementations = towers(device, dtype, **sizes)
    for side, count in sides:
        patches = side // 14
        pixels = torch.randn(count * patches**2, 1176, device=device, dtype=dtype)
        grid = torch.tensor([[1, patches, patches]] * count, device=device)
        name = f"{side} x {side} px" if count == 1 else f"{count} of {side} x {side} px"
        for implementation, tower in implementations.items():
            cases.append((name, implementation, partial(tower, pixels, grid_thw=grid)))
    return versus(cases, REPEATS)


table, plot = versus_table, versus_plot
