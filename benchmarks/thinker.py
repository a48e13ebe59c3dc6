"""Decoding at Ming-Tiny's sizes against the library's own mixture of experts of the same sizes.

At these sizes time is overhead: Python, kernel launches, the loop of `generate`. Both models run under the library's
`generate`, greedily, from random weights; repeats take turns.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from configuration_bailingmm import BailingMMConfig
from modeling_bailing_moe import BailingMoeForCausalLM

from .timing import interleaved

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW = 32, 64  # tokens
BATCHES = (1, 8)
REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """Tokens per second of all rows together."""

    model: str
    batch: int
    tokens_per_second: float


def models(device: str, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Ours and the library's, of the bundled checkpoint's sizes."""
    config = BailingMMConfig.from_pretrained(ROOT).llm_config
    torch.manual_seed(0)
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    names += ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "max_position_embeddings")
    library = Qwen3MoeConfig(**{name: getattr(config, name) for name in names}, norm_topk_prob=True)
    both = {"ours": BailingMoeForCausalLM(config), "library (no shared experts)": Qwen3MoeForCausalLM(library)}
    return {name: model.to(device, dtype).eval() for name, model in both.items()}


def measure(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Cost]:
    """Decode with both models at every batch size."""
    cases = [(name, model, batch) for batch in BATCHES for name, model in models(device, dtype).items()]
    prompts = {batch: torch.arange(batch * PROMPT, device=device).view(batch, PROMPT) % 700 for batch in BATCHES}
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    times = interleaved([partial(model.generate, prompts[batch], **options) for _, model, batch in cases], REPEATS)
    return [Cost(name, batch, batch * NEW / seconds) for (name, _, batch), seconds in zip(cases, times, strict=True)]


def table(costs: list[Cost]) -> str:
    """Markdown table; ratios are to the library's model and to a batch of one."""
    speeds = {(cost.model, cost.batch): cost.tokens_per_second for cost in costs}
    library = next(cost.model for cost in costs if cost.model.startswith("library"))
    lines = ["| model | batch | tokens/s | / library | / batch of 1 |", "|---|---|---|---|---|"]
    for (name, batch), speed in speeds.items():
        ratios = (speed / speeds[library, batch], speed / speeds[name, costs[0].batch])
        lines.append(f"| {name} | {batch} | {speed:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return "\n".join(lines)
