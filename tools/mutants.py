"""Change the code of chosen areas in small ways, one at a time, and see whether a test fails (with mutmut).

python -m tools.mutants                         # all areas, about an hour on one core
python -m tools.mutants routing --mutants 20    # one area, fewer mutants
python -m tools.mutants cutting --only 'ming.speech_text.x__cuts__mutmut_*'

`tools/mutants.toml` says which functions belong to an area and which tests guard them, and lists the mutants that no
test can tell from the code, each with its reason. Everything happens in a copy of the repository. The mutants of an
area are drawn by a seed, so that a run can be repeated. A test that fails, or does not end in time, has noticed the
mutant. The exit status is 1 if a mutant survived that the list does not explain.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from contextlib import chdir
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.stats import status_by_exit_code

from .breakages import copy_repository

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SOURCES = ("ming", "audio_detokenizer", "image_gen")
# What mutmut says of a mutant, by what it means here. The words of errors and warnings are left as they are.
NOTICED = {"killed", "timeout", "segfault"}
SURVIVED = {"survived", "no tests"}
WORDS = (r"raise \w+Error\(", r"logger\.\w+\(")
PLUGIN = "tools.mutants_fixtures"


@dataclass(frozen=True)
class Area:
    """What is changed together, and who must notice.

    Args:
        name: for the table and the command line.
        functions: by file from the root, patterns of functions: `join`, `Voice.load`, `Voice.*`.
        tests: arguments of pytest that choose the tests, and `skip`, those of them that take too long.
        mutants: how many are drawn, unless the command line says otherwise.
    """

    name: str
    functions: dict[str, list[str]]
    tests: list[str]
    mutants: int
    skip: tuple[str, ...] = ()


AREAS = {name: Area(name, **values) for name, values in SETTINGS["areas"].items()}


def function_of(mutant: str) -> str:
    """The function of a mutant as it is written: ming.voices.xǁVoiceǁload__mutmut_3 -> Voice.load."""
    mangled = mutant.rpartition(".")[2].rpartition("__mutmut_")[0]
    return mangled.removeprefix("xǁ").replace("ǁ", ".") if "ǁ" in mangled else mangled.removeprefix("x_")


def write_settings(area: Area, copy: Path) -> None:
    """mutmut's settings in a copy of the repository."""
    others = [path.name for path in copy.iterdir() if path.name not in (*SOURCES, "mutants", "setup.cfg")]
    lists = {
        "source_paths": SOURCES,
        "only_mutate": area.functions,
        "also_copy": others,
        "pytest_add_cli_args_test_selection": area.tests,
        "pytest_add_cli_args": [f"--deselect={test}" for test in area.skip] + ["-p", PLUGIN],
        "do_not_mutate_patterns": WORDS,
    }
    lines = ["[mutmut]", "use_git_change_detection = false", "timeout_multiplier = 4", "timeout_constant = 10"]
    for name, values in lists.items():
        lines += [f"{name} =", *(f"    {value}" for value in values)]
    (copy / "setup.cfg").write_text("\n".join(lines) + "\n", encoding="utf-8")


def all_mutants(area: Area, copy: Path) -> list[str]:
    """Names of the mutants of an area.

    Raises:
        ValueError: a pattern that names no function with mutants.
    """
    names: list[str] = []
    for file, patterns in area.functions.items():
        with chdir(copy):
            found = mutate_file_contents(file, Path(file).read_text(encoding="utf-8")).mutant_names
        module = file.removesuffix(".py").replace("/", ".")
        for pattern in patterns:
            chosen = [f"{module}.{name}" for name in found if fnmatch(function_of(f"{module}.{name}"), pattern)]
            if not chosen:
                raise ValueError(f"{area.name}: {pattern!r} is no function of {file} that mutmut changes")
            names += chosen
    return sorted(set(names))


def draw(names: list[str], count: int, seed: int, only: list[str]) -> list[str]:
    """So many mutants by a seed, or those that fit one of the patterns `only`.

    Whether a mutant is drawn depends on its name, so that a change of one function leaves the others' as they are.
    """
    if only:
        return [name for name in names if any(fnmatch(name, pattern) for pattern in only)]
    return sorted(sorted(names, key=lambda name: sha256(f"{seed} {name}".encode()).digest())[:count])


def mutmut(copy: Path, *words: str) -> str:
    """What a command of mutmut prints.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-W", "ignore", "-m", "mutmut", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)  # nosec B603
    if done.returncode:
        raise RuntimeError(
            f"mutmut {words[0]} ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done.stdout


def change_of(mutant: str, copy: Path) -> str:
    """The lines that a mutant takes away (-) and puts in (+)."""
    lines = mutmut(copy, "show", mutant).splitlines()
    changed = [line for line in lines if line[:1] in ("-", "+") and line[:3] not in ("---", "+++")]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in changed)


def reason_for(mutant: str, change: str) -> str | None:
    """Why no test can notice a mutant, if the list explains it."""
    module, function = mutant.rpartition(".")[0], function_of(mutant)
    for entry in SETTINGS["survivors"]:
        if entry["function"] == f"{module}.{function}" and entry["change"].strip() == change:
            return entry["reason"]
    return None


def run(area: Area, names: list[str], copy: Path) -> dict[str, str]:
    """mutmut's word for every mutant.

    Raises:
        RuntimeError: the tests fail without a mutant, or mutmut did not come to its end.
    """
    write_settings(area, copy)
    mutmut(copy, "run", "--max-children", "1", *names)
    words: dict[str, str] = {}
    for path in (copy / "mutants").rglob("*.meta"):
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        words |= {name: status_by_exit_code[code] for name, code in codes.items() if name in names}
    unclear = {name: word for name, word in words.items() if word not in NOTICED | SURVIVED}
    if unclear or words.keys() != set(names):
        raise RuntimeError(f"{area.name}: mutmut came to no result for {unclear or set(names) - words.keys()}")
    return words


def report(area: Area, words: dict[str, str], of: int, copy: Path) -> list[str]:
    """Print a row of the table, and the survivors below it; returns those that nobody explains."""
    survivors = {name: change_of(name, copy) for name, word in sorted(words.items()) if word in SURVIVED}
    reasons = {name: reason_for(name, change) for name, change in survivors.items()}
    counts, total = Counter(words.values()), len(words)
    noticed = total - len(survivors)
    explained = sum(reason is not None for reason in reasons.values())
    rate = f"{noticed / total:.0%} | {noticed / max(total - explained, 1):.0%}"
    row = f"| {area.name} | {of} | {total} | {noticed} | {len(survivors)} | {explained} | {rate} |\n"
    for name in survivors:
        row += f"\n{name} ({words[name]}): {reasons[name] or 'NOT EXPLAINED'}\n{survivors[name]}\n"
    sys.stdout.write(f"{row}\n" if survivors else row)
    sys.stdout.write(f"(of the noticed ones {counts['timeout']} by time)\n" if counts["timeout"] else "")
    sys.stdout.flush()
    return [name for name, reason in reasons.items() if reason is None]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutants", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("areas", nargs="*", metavar="AREA", help=", ".join(AREAS))
    parser.add_argument("--mutants", type=int, metavar="N", help="drawn per area (default: as in tools/mutants.toml)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default 0)")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="these, instead of a draw")
    args = parser.parse_args()
    if unknown := set(args.areas) - AREAS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    unexplained: list[str] = []
    sys.stdout.write("| area | mutants | tried | noticed | survived | explained | rate | rate but for explained |\n")
    sys.stdout.write("|---|---|---|---|---|---|---|---|\n")
    for area in (AREAS[name] for name in args.areas or AREAS):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder)
            copy_repository(copy)
            write_settings(area, copy)
            names = all_mutants(area, copy)
            chosen = draw(names, area.mutants if args.mutants is None else args.mutants, args.seed, args.only)
            if chosen:
                unexplained += report(area, run(area, chosen, copy), len(names), copy)
                sys.stderr.write(f"{area.name}: {time.monotonic() - start:.0f} s\n")
    raise SystemExit(bool(unexplained))


if __name__ == "__main__":
    main()
