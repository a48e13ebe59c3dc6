"""Time and peak memory of loading a checkpoint, against reading and casting the same files.

It writes a random checkpoint, then reads and loads it alternately, each time in a fresh process: memory that a process
has used before costs less time than new memory.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

from .report import Plot

ROOT = Path(__file__).resolve().parents[1]
# Only anonymous memory counts: mapped pages of the checkpoint file can be dropped at any time. Both ways import the
# same modules and keep what they read.
PROBE = """
import json, sys, threading, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from safetensors.torch import load_file
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
def anonymous():
    status = open("/proc/self/status").read()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])
def read():
    shards = sorted(Path({path!r}).glob("*.safetensors"))
    return [tensor.to({device!r}, {dtype}) for shard in shards for tensor in load_file(shard).values()]
def load():
    options = {{"dtype": {dtype}, "device_map": {device!r}}}
    return list(BailingMMNativeForConditionalGeneration.from_pretrained({path!r}, **options).parameters())
peak = before = anonymous()
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
started = time.perf_counter()
tensors = {way}()
seconds = time.perf_counter() - started
size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
sys.stdout.write(json.dumps({{"seconds": seconds, "peak": peak - before, "size": size}}))
"""


def random_checkpoint(directory: Path, layers: int) -> None:
    """A checkpoint of released depth and proportions at half the width, in float32 shards of 200 MB."""
    torch.manual_seed(0)
    config = BailingMMConfig(
        llm_config={
            "hidden_size": 1024,
            "num_attention_heads": 8,
            "num_hidden_layers": layers,
            "moe_intermediate_size": 704,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "vocab_size": 8192,
            "image_patch_token": 8000,
            "pad_token_id": 0,
            "eos_token_id": 0,
        },
        vision_config={"depth": 2, "fullatt_block_indexes": [1]},
        audio_config={"audio_encoder_config_sanm": {"num_blocks": 2}},
        whisper_config={"whisper_encoder_config": {"n_layer": 2, "n_ctx": 1500}},
    )
    BailingMMNativeForConditionalGeneration(config).save_pretrained(directory, max_shard_size="200MB")


@dataclass(frozen=True)
class Cost:
    """One measured number."""

    name: str
    value: float


def measure(
    device: str = "cpu", dtype: torch.dtype = torch.bfloat16, layers: int = 28, repeats: int = 3
) -> list[Cost]:
    """Medians of the ratio of loading to reading and casting, and of peak memory to the loaded size."""
    results: dict[str, list[dict[str, float]]] = {"read": [], "load": []}
    with tempfile.TemporaryDirectory() as folder:
        random_checkpoint(Path(folder), layers)
        for _ in range(repeats):
            for way, found in results.items():
                probe = PROBE.format(root=str(ROOT), path=folder, dtype=dtype, device=device, way=way)
                command = [sys.executable, "-c", probe]
                # Our own text, without a shell.
                output = subprocess.run(command, check=True, capture_output=True, text=True)  # nosec B603
                found.append(json.loads(output.stdout))
    seconds = {way: statistics.median(item["seconds"] for item in found) for way, found in results.items()}
    size = results["load"][0]["size"]
    peak = statistics.median(item["peak"] for item in results["load"])
    return [
        Cost("parameters (MB)", size / 1e6),
        Cost("loading / reading and casting", seconds["load"] / seconds["read"]),
        Cost("peak memory / parameters", peak / size),
    ]


def table(costs: list[Cost]) -> str:
    """Markdown table."""
    return "\n".join(["| | |", "|---|---|", *(f"| {cost.name} | {cost.value:.2f} |" for cost in costs)])


def plot(costs: list[Cost]) -> Plot:
    """Bars of the ratios."""
    ratios = [cost for cost in costs if "/" in cost.name]
    bars = ([cost.name for cost in ratios], [cost.value for cost in ratios])
    return Plot("ratio", "", {"loading": bars}, level=1.0)
