"""The released sizes on one GPU, with random weights: loading, and memory against `ming memory`.

The benchmark writes a random checkpoint of decoder, encoders and talker (38 GB; `--folder` names a directory with as
much space, possibly in main memory), loads it in bfloat16 and in 4 bit as users do, and measures. The values of the
weights do not matter. Speeds are measured by `gpu`.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ming.cli.memory import GIB, QUANTIZATION, Workload, estimate
from ming.configuration_bailingmm import BailingMMConfig, BailingMMTalkerConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

from .gpu_models import random_model
from .report import Plot

PROMPT = 2048  # tokens
WAYS = {"bfloat16": None, "8 bit": "8bit", "4 bit": "4bit"}


@dataclass(frozen=True)
class Cost:
    """One measured number of one way to load."""

    way: str
    name: str
    value: float


def random_checkpoint(folder: Path, device: str, config: BailingMMConfig) -> None:
    """Write a checkpoint with random bfloat16 weights."""
    random_model(config, device, torch.bfloat16).save_pretrained(folder, max_shard_size="4GB")


def _timed(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


@torch.no_grad()
def costs_of(way: str, folder: Path, device: str) -> list[Cost]:
    """Load in one way, and measure."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, holder = torch.cuda.memory_allocated(), []
    quantization = WAYS[way]
    config = QUANTIZATION[quantization] if quantization else None
    options = {"dtype": torch.bfloat16, "device_map": device, "quantization_config": config}
    load = BailingMMNativeForConditionalGeneration.from_pretrained
    seconds = _timed(lambda: holder.append(load(folder, **options).eval()))
    (model,) = holder
    weights, loading = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    work = Workload(context=PROMPT, images=0, seconds=0)
    computed = estimate(str(folder), quantization=quantization, work=work)
    ids = torch.randint(1000, 2000, (1, PROMPT), device=device)
    read = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model(**read, logits_to_keep=1)
    torch.cuda.reset_peak_memory_stats()
    model(**read, logits_to_keep=1)
    peak = torch.cuda.max_memory_allocated() - before - weights
    text = next(item for item in computed if item.part == "text")
    found = {
        "seconds to load": seconds,
        "weights (GiB), computed": sum(item.weights for item in computed) / GIB,
        "weights (GiB), measured": weights / GIB,
        "peak while loading / weights": loading / weights,
        f"peak of reading {PROMPT} tokens (GiB), computed": (text.activations + text.cache) / GIB,
        f"peak of reading {PROMPT} tokens (GiB), measured": peak / GIB,
    }
    return [Cost(way, name, value) for name, value in found.items()]


def measure(
    device: str = "cuda",
    folder: str | None = None,
    ways: tuple[str, ...] = ("bfloat16", "4 bit"),
    config: BailingMMConfig | None = None,
) -> list[Cost]:
    """Memory and loading time of the ways to load.

    Args:
        folder: directory for the temporary checkpoint; None is the temporary folder.
        config: other sizes than the released ones.

    Raises:
        RuntimeError: there is no CUDA GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            "this benchmark needs a CUDA GPU; ming memory released estimates the memory of the released sizes"
        )
    directory = Path(tempfile.mkdtemp(dir=folder))
    try:
        random_checkpoint(directory, device, config or BailingMMConfig(talker_config=BailingMMTalkerConfig()))
        return [cost for way in ways for cost in costs_of(way, directory, device)]
    finally:
        shutil.rmtree(directory)


def table(costs: list[Cost]) -> str:
    """Markdown table."""
    ways = list(dict.fromkeys(cost.way for cost in costs))
    values = {(cost.name, cost.way): cost.value for cost in costs}
    lines = ["| | " + " | ".join(ways) + " |", "|---|" + "---|" * len(ways)]
    for name in dict.fromkeys(cost.name for cost in costs):
        lines.append(f"| {name} | " + " | ".join(f"{values[name, way]:.2f}" for way in ways) + " |")
    return "\n".join(lines)


def plot(costs: list[Cost]) -> Plot:
    """Bars of the weights."""
    bars: dict[str, tuple[list[str], list[float]]] = {}
    for cost in costs:
        if cost.name.startswith("weights"):
            names, values = bars.setdefault(cost.way, ([], []))
            names.append(cost.name.removeprefix("weights (GiB), "))
            values.append(cost.value)
    return Plot("GiB", "weights", bars)
