"""Tests that need several processes: a script for two of them, which talk over gloo on the CPU."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
BEGINNING = """
import json, sys
from datetime import timedelta
import torch, torch.distributed as dist
from transformers.distributed import DistributedConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

torch.set_num_threads(1)

def begin():
    # Processes that wait for each other in different places end in this time; a busy machine needs some of it.
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
"""


def run_on_two(script: str, *arguments: object) -> None:
    """Run `script` in two processes, with the names of `BEGINNING`; `sys.argv[1:]` are the arguments.

    The script calls `begin()` where they meet.

    Raises:
        AssertionError: one of them failed; the end of what they said is in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "script.py"
        path.write_text(BEGINNING + script + "\ndist.destroy_process_group()\n", encoding="utf-8")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        given = os.environ.get("PYTHONPATH")  # another release of the library, as in `make test-oldest`
        paths = os.pathsep.join([str(TESTS.parent), str(TESTS), *([given] if given else [])])
        done = subprocess.run(
            [*torchrun, str(path), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr[-3000:]
