"""The benchmarks' arithmetic and command line; their numbers are for tables, never for tests."""

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import moe, speech, thinker
from benchmarks.growth import Cost, table
from configuration_bailingmm import BailingMoeConfig

ROOT = Path(__file__).resolve().parents[1]


def test_table_has_a_line_per_input():
    lines = table([Cost("vision", "224 x 224 px", 256, 12.3, 1.0), Cost("SANM", "10 s", 166, 4.0, 0.9)]).splitlines()
    assert len(lines) == 4 and lines[2] == "| vision | 224 x 224 px | 256 | 12 | 1.00 |"


def test_command_line_lists_the_benchmarks():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(name in result.stdout for name in ("growth", "load", "moe", "speech", "thinker"))


def test_speech_table_shows_ratios():
    lines = speech.table([speech.Cost("red", 2.0, 4.0, 1.0, 5.0)]).splitlines()
    assert lines[2] == "| 3 | 2.0 | 0.25 | 1.25 | 2.50 |"


def test_all_implementations_of_the_experts_are_measured_and_agree():
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
    costs = moe.measure(dtype=torch.bfloat16, **sizes)
    names = {cost.implementation for cost in costs if cost.tokens == 1}
    assert names == {cost.implementation for cost in costs if cost.tokens == 8}
    assert len(names) == 7 and all(cost.milliseconds > 0 and cost.share > 0 for cost in costs)
    config = BailingMoeConfig(**sizes)
    modules = moe.implementations(config, torch.float32, "cpu")
    states, (index, weights) = torch.randn(5, 64), moe.routes(5, config, "cpu")
    with torch.no_grad():
        ours, library, apart = (module(states, index, weights) for module in modules.values())
    torch.testing.assert_close(ours, library)
    torch.testing.assert_close(ours, apart)


def test_moe_table_sorts_by_time():
    costs = [moe.Cost("slow", 1, 2.0, 0.4), moe.Cost("quick", 1, 1.0, 0.8), moe.Cost("slow", 8, 3.0, 0.1)]
    lines = moe.table(costs).splitlines()[2:]
    assert lines == ["| 1 | quick | 1.00 | 0.80 |", "| 1 | slow | 2.00 | 0.40 |", "| 8 | slow | 3.00 | 0.10 |"]


def test_thinker_table_compares_with_library_and_batch_of_one():
    costs = [thinker.Cost("ours", 1, 30.0), thinker.Cost("library", 1, 20.0)]
    costs += [thinker.Cost("ours", 8, 120.0), thinker.Cost("library", 8, 60.0)]
    lines = thinker.table(costs).splitlines()[2:]
    assert lines[0] == "| ours | 1 | 30 | 1.50 | 1.00 |" and lines[2] == "| ours | 8 | 120 | 2.00 | 4.00 |"
