"""Decoding at Ming-Tiny's sizes against the library's own mixtures of experts of the same sizes.

At these sizes most time is overhead: Python, kernel launches, the loop of `generate`. All models have random weights
and decode greedily with the library's `generate`; repeats take turns. Aria's text model has shared experts like ours,
Qwen3's has none. `compiled` means a static cache and `torch.compile(fullgraph=True)`, at a batch size of one.
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

from ming.compat import compiles_on_all_devices
from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailing_moe import BailingMoeForCausalLM

from .report import Plot
from .timing import interleaved

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW = 32, 64  # tokens
# No model generates the end token: all generate the same number, and no logits processor has to forbid the end.
OPTIONS = {"max_new_tokens": NEW, "eos_token_id": -1, "do_sample": False}
BATCHES = (1, 8)
REPEATS = 5
OURS, LIBRARY = "ours", "library, Aria"


@dataclass(frozen=True)
class Cost:
    """Tokens per second, summed over all rows."""

    model: str
    batch: int
    tokens_per_second: float


def models(device: str, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Our model and the library's, with the sizes of the bundled checkpoint."""
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
    compared = {
        OURS: BailingMoeForCausalLM(config),
        LIBRARY: AriaTextForCausalLM(aria),
        "library, Qwen3-MoE": Qwen3MoeForCausalLM(qwen),
    }
    return {name: model.to(device, dtype).eval() for name, model in compared.items()}


def compiled() -> dict:
    """Options of `generate` for a compiled model."""
    config = compiles_on_all_devices(CompileConfig(fullgraph=True, dynamic=False, mode=None))
    return {"cache_implementation": "static", "compile_config": config}


def measure(
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batches: tuple[int, ...] = BATCHES,
    compiled_too: bool = True,
) -> list[Cost]:
    """Decode with all models at every batch size."""
    cases = []
    for batch in batches:
        prompts = torch.arange(batch * PROMPT, device=device).view(batch, PROMPT) % 700
        for name, model in models(device, dtype).items():
            cases.append((name, batch, partial(model.generate, prompts, **OPTIONS)))
            if compiled_too and batch == 1 and name in (OURS, LIBRARY):
                call = partial(model.generate, prompts, **OPTIONS, **compiled())
                cases.append((f"{name}, compiled", batch, call))
    times = interleaved([call for _, _, call in cases], REPEATS)
    return [Cost(name, batch, batch * NEW / time) for (name, batch, _), time in zip(cases, times, strict=True)]


def hot(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Callable[[], object]:
    """The call for the profiler: a batch of one, which misses the target speed."""
    prompt = torch.arange(PROMPT, device=device)[None] % 700
    return partial(models(device, dtype)[OURS].generate, prompt, **OPTIONS)


def table(costs: list[Cost]) -> str:
    """Markdown table; the ratios are relative to the library's model with shared experts and to a batch of one."""
    speeds = {(cost.model, cost.batch): cost.tokens_per_second for cost in costs}
    lines = [f"| model | batch | tokens/s | / {LIBRARY} | / batch of 1 |", "|---|---|---|---|---|"]
    for (name, batch), speed in speeds.items():
        ratios = (speed / speeds[LIBRARY, batch], speed / speeds[name, costs[0].batch])
        lines.append(f"| {name} | {batch} | {speed:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return "\n".join(lines)


def plot(costs: list[Cost]) -> Plot:
    """Bars of the speed relative to the library's."""
    speeds = {(cost.model, cost.batch): cost.tokens_per_second for cost in costs}
    lines: dict[str, tuple[list[str], list[float]]] = {}
    for (name, batch), speed in speeds.items():
        places, ratios = lines.setdefault(name, ([], []))
        places.append(f"batch of {batch}")
        ratios.append(speed / speeds[LIBRARY, batch])
    return Plot(f"tokens/s / {LIBRARY}", "", lines, level=1.0)
