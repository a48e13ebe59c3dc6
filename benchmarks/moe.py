"""One mixture-of-experts layer of released width, against the library's layer and against the limit of the machine.

Decoding reads the experts of one token, so its limit is the speed at which weights are read (measured by one large
matrix times one vector). A prompt is limited by multiplication (measured by one large matrix product). Each row runs
an implementation of the experts, interleaved with all others; `share` is the part of the limit that it reaches.
`products alone` runs only the matrix products of all experts: no implementation with the same products is faster.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from ming.configuration_bailingmm import BailingMoeConfig
from ming.modeling_bailing_moe import BailingMoeExperts, BailingMoeSeparateExperts

from .report import Plot
from .timing import interleaved

TOKENS = (1, 8, 64, 512)
REPEATS = 7
BATCHED_UP_TO = 8  # tokens; gathering the experts of more costs minutes on a CPU
PRODUCTS = "products alone"
LIMIT_WEIGHTS = 8192  # rows of the matrix for measuring the limits


@dataclass(frozen=True)
class Cost:
    """One implementation at one number of tokens: milliseconds, and its share of the machine's limit."""

    implementation: str
    tokens: int
    milliseconds: float
    share: float


def implementations(config: BailingMoeConfig, dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """Experts by name; all have the same weights."""
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            stacked = BailingMoeExperts(config)
            nn.init.normal_(stacked.gate_up_proj, std=0.02)
            nn.init.normal_(stacked.down_proj, std=0.02)
            library = Qwen3MoeExperts(
                Qwen3MoeConfig(
                    num_experts=config.num_experts,
                    hidden_size=config.hidden_size,
                    moe_intermediate_size=config.moe_intermediate_size,
                )
            )
            with torch.device("meta"):
                apart = BailingMoeSeparateExperts(config)
    finally:
        torch.set_default_dtype(usual)
    library.gate_up_proj, library.down_proj = stacked.gate_up_proj, stacked.down_proj
    for number, expert in enumerate(apart):
        gate, up = stacked.gate_up_proj[number].chunk(2)
        parts = {"gate_proj": gate, "up_proj": up, "down_proj": stacked.down_proj[number]}
        for name, weight in parts.items():
            getattr(expert, name).weight = nn.Parameter(weight, requires_grad=False)
    return {"ours": stacked, "library": library, "modules (as quantised)": apart}


def routes(tokens: int, config: BailingMoeConfig, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Random distinct experts [T, K] and weights [T, K] per token."""
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, config.num_experts, generator=generator)
    weights, index = scores.topk(config.num_experts_per_tok)
    return index.to(device), weights.softmax(dim=-1).to(device)


@torch.no_grad()
def measure(device: str = "cpu", dtype: torch.dtype = torch.bfloat16, **sizes) -> list[Cost]:
    """Time every implementation; `sizes` replace the released ones."""
    config = BailingMoeConfig(**sizes)
    modules = implementations(config, dtype, device)
    calls: list[tuple[str, int, Callable[[], object]]] = []
    limit = torch.randn(LIMIT_WEIGHTS, config.hidden_size, device=device, dtype=dtype)
    for tokens in TOKENS:
        states = torch.randn(tokens, config.hidden_size, device=device, dtype=dtype)
        index, weights = routes(tokens, config, device)
        calls.append(("limit", tokens, partial(F.linear, states, limit)))
        for name, module in modules.items():
            kinds = ("eager", "grouped_mm", "batched_mm") if name != "modules (as quantised)" else ("eager",)
            for kind in (kind for kind in kinds if kind != "batched_mm" or tokens <= BATCHED_UP_TO):
                call = _call(module, kind, states, index, weights)
                calls.append((f"{name}, {kind}" if len(kinds) > 1 else name, tokens, call))
        calls.append((PRODUCTS, tokens, _products(modules["ours"], states, index)))
    times = interleaved([call for _, _, call in calls], REPEATS)
    seconds = {(name, tokens): value for (name, tokens, _), value in zip(calls, times, strict=True)}
    per_expert = 3 * config.hidden_size * config.moe_intermediate_size
    costs = []
    for (name, tokens), value in seconds.items():
        if name == "limit":
            continue
        # Weights per token over those of the limit: both are read once for one token, and multiplied once per token.
        work = per_expert * config.num_experts_per_tok * tokens / (LIMIT_WEIGHTS * config.hidden_size * tokens)
        costs.append(Cost(name, tokens, 1000 * value, work * seconds["limit", tokens] / value))
    return costs


def _call(module: nn.Module, kind: str, *inputs: torch.Tensor) -> Callable[[], object]:
    def call():
        if hasattr(module, "config"):
            module.config._experts_implementation = kind
        return module(*inputs)

    return call


def _products(module: BailingMoeExperts, states: torch.Tensor, index: torch.Tensor) -> Callable[[], object]:
    """The matrix products of every selected expert, without gathering its rows."""
    hit = [(expert, count) for expert, count in enumerate(index.flatten().bincount().tolist()) if count]
    rows = states[:1].expand(max(count for _, count in hit), -1).contiguous()
    inner = rows[:, :1].expand(-1, module.down_proj.shape[2]).contiguous()

    def call():
        for expert, count in hit:
            F.linear(rows[:count], module.gate_up_proj[expert])
            F.linear(inner[:count], module.down_proj[expert])

    return call


def hot(device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Callable[[], object]:
    """The call for the profiler: the tokens of a prompt, which miss the target share."""
    config = BailingMoeConfig()
    module = implementations(config, dtype, device)["ours"]
    states = torch.randn(TOKENS[-1], config.hidden_size, device=device, dtype=dtype)
    return _call(module, "grouped_mm", states, *routes(TOKENS[-1], config, device))


def table(costs: list[Cost]) -> str:
    """Markdown table, the fastest first for every number of tokens."""
    lines = ["| tokens | implementation | ms | share of the limit |", "|---|---|---|---|"]
    for tokens in dict.fromkeys(cost.tokens for cost in costs):
        rows = sorted((cost for cost in costs if cost.tokens == tokens), key=lambda cost: cost.milliseconds)
        lines += [
            f"| {tokens} | {cost.implementation} | {cost.milliseconds:.2f} | {cost.share:.2f} |" for cost in rows
        ]
    return "\n".join(lines)


def plot(costs: list[Cost]) -> Plot:
    """Share of the machine's limit over tokens."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for cost in costs:
        tokens, shares = lines.setdefault(cost.implementation, ([], []))
        tokens.append(cost.tokens)
        shares.append(cost.share)
    return Plot("share of the machine's limit", "tokens", lines, level=1.0, logarithmic=True)
