"""Four decoder layers of released width, for a prompt and for a generated token, against the limits of the machine.

The layers are complete: routers, routed and shared experts, attention over a cache, norms. A generated token reads
every weight it uses once, so its limit is the speed at which weights are read; a prompt is limited by multiplication.
Both limits are measured in the same run, as in `moe`. The products of attention and the reads of the cache do not
count as work. The library's Qwen3-MoE has the same experts, in the same memory, but no shared ones; it is compared by
the share of the limit that it reaches for its own work. The benchmark needs 10 GB.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, Qwen3MoeConfig, Qwen3MoeModel

from ming.configuration_bailingmm import BailingMoeConfig
from ming.modeling_bailing_moe import BailingMoeModel

from .moe import LIMIT_WEIGHTS, Cost, plot, table
from .timing import interleaved

UNLIKE_RELEASED = {"num_hidden_layers": 4, "vocab_size": 1024, "pad_token_id": 0}
CACHED = 128  # tokens in the cache when one is generated
PROMPT = 512
REPEATS = 7
IMPLEMENTATIONS = ("eager", "grouped_mm")
UNUSED = ("embed", "image_gate", "audio_gate")  # not multiplied with a text token


def models(config: BailingMoeConfig, dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """Ours, and the library's with the same experts; random weights."""
    names = (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "moe_intermediate_size", "num_experts", "num_experts_per_tok"),
    )
    qwen = Qwen3MoeConfig(**{name: getattr(config, name) for name in names}, norm_topk_prob=True)
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            ours, library = BailingMoeModel(config).eval(), Qwen3MoeModel(qwen).eval()
    finally:
        torch.set_default_dtype(usual)
    for layer, own in zip(ours.layers, library.layers, strict=True):
        own.mlp.experts.gate_up_proj = layer.mlp.experts.gate_up_proj
        own.mlp.experts.down_proj = layer.mlp.experts.down_proj
    return {"ours": ours, "library, Qwen3-MoE": library}


def used_weights(model: nn.Module, tokens: int = 1, size: Callable[[torch.Tensor], int] = torch.numel) -> float:
    """The number of weights that text tokens are multiplied with, where routing is even.

    Args:
        tokens: at once; together they use each weight once.
        size: of a weight, in another unit.
    """
    share = 1 - (1 - model.config.num_experts_per_tok / model.config.num_experts) ** tokens
    return sum(
        size(weight) * (share if ".experts." in name else 1)
        for name, weight in model.named_parameters()
        if not any(part in name for part in UNUSED)
    )


@torch.no_grad()
def measure(device: str = "cpu", dtype: torch.dtype = torch.bfloat16, **sizes) -> list[Cost]:
    """Time both models; `sizes` replace the released ones."""
    config = BailingMoeConfig(**{**UNLIKE_RELEASED, **sizes})
    states = torch.randn(1, CACHED + PROMPT, config.hidden_size, device=device, dtype=dtype)
    limit = torch.randn(LIMIT_WEIGHTS, config.hidden_size, device=device, dtype=dtype)
    compared = models(config, dtype, device)
    calls: dict[tuple[str, int], Callable[[], object]] = {}
    for tokens, cached in ((1, CACHED), (PROMPT, 0)):
        calls["limit", tokens] = partial(F.linear, states[:, :tokens], limit)
        for name, model in compared.items():
            for kind in IMPLEMENTATIONS:
                calls[f"{name}, {kind}", tokens] = _call(model, kind, states, tokens, cached)
    seconds = dict(zip(calls, interleaved(list(calls.values()), REPEATS), strict=True))
    work = {f"{name}, {kind}": used_weights(model) for name, model in compared.items() for kind in IMPLEMENTATIONS}
    return [
        Cost(name, tokens, 1000 * value, work[name] / limit.numel() * seconds["limit", tokens] / value)
        for (name, tokens), value in seconds.items()
        if name != "limit"
    ]


def _call(model: nn.Module, kind: str, states: torch.Tensor, tokens: int, cached: int) -> Callable[[], object]:
    """A call that reads `tokens` after `cached` others; it can be repeated."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        if cached:
            model(inputs_embeds=states[:, :cached], past_key_values=cache)

    def call():
        model.config._experts_implementation = kind
        model(inputs_embeds=states[:, cached : cached + tokens], past_key_values=cache)
        cache.crop(-tokens)

    return call


def hot(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Callable[[], object]:
    """The call for the profiler: generating a token."""
    config = BailingMoeConfig(**UNLIKE_RELEASED)
    states = torch.randn(1, CACHED + 1, config.hidden_size, device=device, dtype=dtype)
    return _call(models(config, dtype, device)["ours"], "grouped_mm", states, 1, CACHED)


__all__ = ["hot", "measure", "plot", "table"]
