"""The benchmarks' arithmetic and command line; their numbers are for tables, never for tests."""

import subprocess
import sys
from pathlib import Path

from benchmarks import speech
from benchmarks.growth import Cost, table

ROOT = Path(__file__).resolve().parents[1]


def test_table_has_a_line_per_input():
    lines = table([Cost("vision", "224 x 224 px", 256, 12.3, 1.0), Cost("SANM", "10 s", 166, 4.0, 0.9)]).splitlines()
    assert len(lines) == 4 and lines[2] == "| vision | 224 x 224 px | 256 | 12 | 1.00 |"


def test_command_line_lists_the_benchmarks():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(name in result.stdout for name in ("growth", "load", "speech"))


def test_speech_table_shows_ratios():
    lines = speech.table([speech.Cost("red", 2.0, 4.0, 1.0, 5.0)]).splitlines()
    assert lines[2] == "| 3 | 2.0 | 0.25 | 1.25 | 2.50 |"
