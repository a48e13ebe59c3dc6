"""Decoding at Ming-Tiny's sizes against the library's own mixtures of experts of the same sizes.

At these sizes time is overhead: Python, kernel launches, the loop of `generate`. All models run under the library's
`generate`, greedily, from random weights; repeats take turns. Aria's text model has shared experts as ours, Qwen3's
has none. `compiled` is a static cache and `torch.compile(fullgraph=True)`, at a batch of one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AriaTextConfig,
    AriaTextForCausalLM,
    CompileConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailing_moe import BailingMoeForCausalLM

from .report import Plot
from .timing import interleaved

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW = 32, 64  # tokens
# The end is an id that no model writes: all write equally much, and no logits processor has to forbid the end.
OPTIONS = {"max_new_tokens": NEW, "eos_token_id": 1 << 20, "do_sample": False}
BATCHES = (1, 8)
REPEATS = 5
OURS, LIBRARY = "ours", "library, Aria"


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
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {name: getattr(config, name) for name in (*names, "head_dim", "max_position_embeddings")}
    qwen = Qwen3MoeConfig(
        **sizes,
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        moe_intermediate_size=config.moe_intermediate_size,
        norm_topk_prob=True,
    )
    aria = AriaTextConfig(
        **sizes,
        intermediate_size=config.moe_intermediate_size,
        moe_num_experts=config.num_experts,
        moe_topk=config.num_experts_per_tok,
        moe_num_shared_experts=config.num_shared_experts,
    )
    everyone = {
        OURS: BailingMoeForCausalLM(config),
        LIBRARY: AriaTextForCausalLM(aria),
        "library, Qwen3-MoE": Qwen3MoeForCausalLM(qwen),
    }
    return {name: model.to(device, dtype).eval() for name, model in everyone.items()}


def compiled() -> dict:
    """Options of `generate`."""
    config = CompileConfig(fullgraph=True, dynamic=False, mode=None)
    config._compile_all_devices = True  # the library compiles on accelerators only
    return {"cache_implementation": "static", "compile_config": config}


def measure(
    device: str = "cpu", dtype: torch.dtype = torch.float32, batches: tuple[int, ...] = BATCHES, compile: bool = True
) -> list[Cost]:
    """Decode with all models at every batch size."""
    cases = []
    for batch in batches:
        prompts = torch.arange(batch * PROMPT, device=device).view(batch, PROMPT) % 700
        for name, model in models(device, dtype).items():
            cases.append((name, batch, partial(model.generate, prompts, **OPTIONS)))
            if compile and batch == 1 and name in (OURS, LIBRARY):
                call = partial(model.generate, prompts, **OPTIONS, **compiled())
                cases.append((f"{name}, compiled", batch, call))
    times = interleaved([call for _, _, call in cases], REPEATS)
    return [Cost(name, batch, batch * NEW / time) for (name, batch, _), time in zip(cases, times, strict=True)]


def hot(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """What is profiled: a batch of one, which misses the speed that we aim at."""
    prompt = torch.arange(PROMPT, device=device)[None] % 700
    return partial(models(device, dtype)[OURS].generate, prompt, **OPTIONS)


def table(costs: list[Cost]) -> str:
    """Markdown table; ratios are to the library's model with shared experts and to a batch of one."""
    speeds = {(cost.model, cost.batch): cost.tokens_per_second for cost in costs}
    lines = [f"| model | batch | tokens/s | / {LIBRARY} | / batch of 1 |", "|---|---|---|---|---|"]
    for (name, batch), speed in speeds.items():
        ratios = (speed / speeds[LIBRARY, batch], speed / speeds[name, costs[0].batch])
        lines.append(f"| {name} | {batch} | {speed:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return "\n".join(lines)


def plot(costs: list[Cost]) -> Plot:
    """Bars of the speed in the library's."""
    speeds = {(cost.model, cost.batch): cost.tokens_per_second for cost in costs}
    lines: dict[str, tuple[list[str], list[float]]] = {}
    for (name, batch), speed in speeds.items():
        places, ratios = lines.setdefault(name, ([], []))
        places.append(f"batch of {batch}")
        ratios.append(speed / speeds[LIBRARY, batch])
    return Plot(f"tokens/s / {LIBRARY}", "", lines, level=1.0)
