"""A few of the kills of `python -m tools.faults`; the full number is in docs/reliability.md."""

import pytest

from tools.faults import EXPERIMENTS, NEW, OLD, kill_often

KILLS = 3
WITH_WAITING = (NEW, OLD, f"{NEW}, moved when it was read")
EXPECTED = {
    "save": WITH_WAITING,
    "adopt": (NEW, OLD),
    "finetune": (NEW, "resumed to equal losses and weights"),
    "training": (NEW, "resumed to equal losses and weights"),
    "serving": ("checkpoint untouched, same answer after a restart",),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_killed_process_loses_nothing(name):
    """Full fine-tuning, the slowest, is left to the tool."""
    lines: list[str] = []
    found = kill_often(EXPERIMENTS[name][0](), KILLS, seed=2, say=lines.append)
    assert found.keys() <= set(EXPECTED[name]) and found.total() == KILLS, lines
