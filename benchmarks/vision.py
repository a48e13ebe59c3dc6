"""The vision tower against the library's class of the same widths and weights.

The layers are the library's in both; ours runs all windows of one length as one batch, the library one after another
(its flash attention, which needs a card, does as we do). `quadratic` attends over the whole picture in every block,
what a tower without windows costs.
"""

from functools import partial

import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from ming.configuration_bailingmm import BailingMMVisionConfig
from ming.modeling_encoders import BailingMMVisionTransformer

from .report import REFERENCE, Versus, versus, versus_plot, versus_table

SIDES = ((224, 1), (448, 1), (672, 1), (224, 8))  # pixels a side, pictures
REPEATS = 3


def towers(device: str, dtype: torch.dtype, **sizes) -> dict[str, torch.nn.Module]:
    """Released widths, 4 of 32 blocks of which one sees the whole picture; the same weights in all."""
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
    """Time every tower on pictures of several sizes."""
    cases, implementations = [], towers(device, dtype, **sizes)
    for side, count in sides:
        patches = side // 14
        pixels = torch.randn(count * patches**2, 1176, device=device, dtype=dtype)
        grid = torch.tensor([[1, patches, patches]] * count, device=device)
        name = f"{side} x {side} px" if count == 1 else f"{count} of {side} x {side} px"
        for implementation, tower in implementations.items():
            cases.append((name, implementation, partial(tower, pixels, grid_thw=grid)))
    return versus(cases, REPEATS)


table, plot = versus_table, versus_plot
