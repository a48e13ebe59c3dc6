"""`make fuzz INPUTS=10000`: all kinds of inputs in child processes, with a line of progress and a table at the end.

Every chunk of inputs has a process of its own, and a seed of its own: the same `--seed` repeats the same inputs, and
`--from` goes on where an earlier run ended. The parent watches the time and the memory of every input; a child that
needs too much of either is killed, which is a fault of the input that it was at, and the next chunk starts.
"""

import argparse
import collections
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import psutil

from .outcomes import MEMORY_BYTES, SECONDS

CHUNK = 1000  # inputs of a process, most of whose time goes into starting when there are few
HANG_SECONDS = 60.0  # of waiting, without an outcome
POLL_SECONDS = 0.1
OUTCOMES = ("answer", "refusal", "fault")
SHARES = {"conversation": 20, "file": 40, "features": 15, "settings": 10, "output": 5, "handler": 5, "server": 5}


def child(kind: str, inputs: int, seed: int, path: Path) -> None:
    """Try a chunk; every recipe is written down before it is tried, and its outcome behind it."""
    import torch
    from transformers.utils import logging as library_logging

    from .kinds import run

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    library_logging.set_verbosity(logging.CRITICAL)
    library_logging.disable_progress_bar()
    with path.open("w", encoding="utf-8") as file:

        def write(record: dict[str, Any]) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        def after(recipe: Any, outcome: str, what: str) -> None:
            write({"outcome": outcome, "what": what})

        run(kind, inputs, seed, lambda recipe: write({"recipe": repr(recipe)[:4000]}), after)


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a child so far."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def watch(command: list[str], path: Path) -> str | None:
    """Run a child to its end -> why it ended before, None where it did not."""
    log = path.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    spent, worked, size, idle = 0.0, 0.0, 0, 0.0
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        with contextlib.suppress(psutil.NoSuchProcess):
            seen = psutil.Process(process.pid)
            times, now = seen.cpu_times(), path.stat().st_size if path.exists() else 0
            waits = seen.status() == psutil.STATUS_SLEEPING and times.user + times.system == worked
            worked, idle = times.user + times.system, idle + POLL_SECONDS if waits else 0.0
            if now != size:
                spent, size, idle = worked, now, 0.0
            reason = _excess(worked - spent if size else 0.0, idle, seen.memory_info().rss)
            if reason is not None:
                process.kill()
                process.wait()
                return reason
    if process.returncode:
        return f"the process ended with {process.returncode}: {log.read_text(errors='replace')[-2000:]}"
    return None


def _excess(worked: float, idle: float, memory: int) -> str | None:
    """What an input needs too much of, None where it does not.

    Time is that of a processor, so that a busy machine makes no faults; whoever waits for nothing hangs.
    """
    if memory > MEMORY_BYTES:
        return f"more than {MEMORY_BYTES >> 30} GiB"
    if worked > SECONDS:
        return f"more than {SECONDS:g} s of a processor"
    return f"waits for more than {HANG_SECONDS:g} s" if idle > HANG_SECONDS else None


def chunk(kind: str, inputs: int, seed: int, folder: Path) -> tuple[collections.Counter, list[dict[str, Any]]]:
    """Run a chunk in a child -> outcomes, and records of its faults."""
    path = folder / f"{kind}-{seed}.jsonl"
    command = [sys.executable, "-m", "fuzz", "--child", kind, "--inputs", str(inputs), "--seed", str(seed)]
    reason = watch([*command, "--file", str(path)], path)
    counts: collections.Counter = collections.Counter()
    faults, recipe = [], None
    for record in read(path):
        if "recipe" in record:
            recipe = record["recipe"]
            continue
        counts[record["outcome"]] += 1
        if record["outcome"] == "fault":
            faults.append({"kind": kind, "seed": seed, "what": record["what"], "recipe": recipe})
        recipe = None
    if reason is not None:
        counts["fault"] += 1
        faults.append({"kind": kind, "seed": seed, "what": reason, "recipe": recipe})
    return counts, faults


def plan(inputs: int, kinds: list[str], first: int) -> list[tuple[str, int, int]]:
    """Chunks (kind, inputs, seed), kinds in turn."""
    total = sum(SHARES[kind] for kind in kinds)
    left = {kind: max(1, round(inputs * SHARES[kind] / total)) for kind in kinds}
    chunks = []
    for number in range(first, first + inputs):
        for kind in [kind for kind in kinds if left[kind] > 0]:
            chunks.append((kind, min(CHUNK, left[kind]), number))
            left[kind] -= chunks[-1][1]
        if not any(left.values()):
            break
    return chunks


def table(counts: dict[str, collections.Counter]) -> str:
    """Inputs and outcomes by kind, in Markdown."""
    lines = ["| kind | inputs | answers | refusals | faults |", "|---|---|---|---|---|"]
    rows = {**counts, "all": sum(counts.values(), collections.Counter())}
    for kind, found in rows.items():
        numbers = [found.total(), *(found[outcome] for outcome in OUTCOMES)]
        lines.append(f"| {kind} | {' | '.join(f'{number:,}' for number in numbers)} |")
    return "\n".join(lines)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--kinds", nargs="+", choices=sorted(SHARES), default=list(SHARES))
    parser.add_argument("--seed", "--from", type=int, default=0, help="of the first chunk of every kind")
    parser.add_argument("--faults", type=Path, default=Path("runs/fuzz-faults.jsonl"), help="where faults are written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.inputs, args.seed, args.file)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args.faults.parent.mkdir(parents=True, exist_ok=True)
    counts: dict[str, collections.Counter] = {kind: collections.Counter() for kind in args.kinds}
    seen: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as folder, args.faults.open("w", encoding="utf-8") as file:
        for kind, inputs, seed in plan(args.inputs, args.kinds, args.seed):
            found, faults = chunk(kind, inputs, seed, Path(folder))
            counts[kind] += found
            for fault in faults:
                seen[(kind, fault["what"][:120])] += 1
                file.write(json.dumps(fault) + "\n")
                file.flush()
            done = sum(each.total() for each in counts.values())
            say(f"{done:,} of {args.inputs:,} inputs, {sum(seen.values())} faults: {kind} {dict(found)}")
    say(f"\n{table(counts)}")
    for (kind, what), count in seen.most_common():
        say(f"{count} x {kind}: {what}")
    return 1 if seen else 0


if __name__ == "__main__":
    sys.exit(main())
