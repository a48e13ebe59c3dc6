"""Runs the library's mixins: makes them importable, marks the deviations, and counts what was skipped and why."""

import os
import re
import sys
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import transformers
from packaging.specifiers import SpecifierSet

sys.path.insert(0, str(Path(__file__).resolve().parent))

os.environ.setdefault("RUN_SLOW", "1")  # what is slow without an accelerator takes seconds
import library  # noqa: E402
from deviations import DEVIATIONS, MISSING, SKIPS  # noqa: E402

FOLDER = Path(__file__).resolve().parent
KINDS = ("passed", "failed", "deviates", "lacks hardware or a package", "does not apply")
HOLDING = [each for each in DEVIATIONS if SpecifierSet(each.releases).contains(transformers.__version__)]
counts: dict[str, Counter] = {}  # class -> kind -> tests
unexplained: set[str] = set()
subtests: dict[str, list] = {}  # test -> reports of its parts


def pytest_configure(config):
    try:
        library.install()
    except FileNotFoundError as error:
        raise pytest.UsageError(str(error)) from error
    for name in sorted(library.markers()):
        config.addinivalue_line("markers", f"{name}: of the library's tests")


def pytest_collection_modifyitems(config, items):
    names = {
        f"{item.path.stem}::{item.cls.__name__}::{item.name}": item for item in items if item.path.parent == FOLDER
    }
    for deviation in HOLDING:
        found = [item for name, item in names.items() if fnmatchcase(name, deviation.tests)]
        for item in found:
            item.add_marker(pytest.mark.xfail(reason=deviation.reason, strict=True))
        if not found and is_whole_run(config):
            raise pytest.UsageError(f"deviations.py: {deviation.tests!r} names no test; take it out")


def is_whole_run(config) -> bool:
    """Whether this folder was asked for and no test was picked out of it."""
    picked = config.option.keyword or config.option.markexpr or config.option.deselect
    return not picked and [Path(argument).resolve() for argument in config.args] == [FOLDER]


def pytest_runtest_logreport(report):
    """Count every test once; one whose subtests were all skipped counts as skipped."""
    path, *cls, name = report.nodeid.split("::")
    if Path(path).parent.name != FOLDER.name:
        return
    if hasattr(report, "context"):
        subtests.setdefault(report.nodeid, []).append(report)
    elif report.when == "call" or (report.when == "setup" and report.skipped):
        parts = subtests.get(report.nodeid, [])
        verdict = parts[0] if parts and report.passed and all(part.skipped for part in parts) else report
        counts.setdefault("::".join([Path(path).stem, *cls]), Counter())[kind_of(verdict, name)] += 1


def kind_of(report, name: str) -> str:
    """One of `KINDS`; a reason for a skip that deviations.py does not explain is remembered."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return "deviates" if report.skipped else report.outcome
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if any(re.search(pattern, reason) for pattern in MISSING):
        return KINDS[3]
    skipped = f"{name}: {reason}"
    if not any(re.search(pattern, skipped) for pattern, _ in SKIPS):
        unexplained.add(skipped)
    return KINDS[4]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    if unexplained and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if not counts:
        return
    lines = [f"transformers {transformers.__version__}: {' | '.join(KINDS)}"]
    lines += [f"{name}: {' | '.join(str(counter[kind]) for kind in KINDS)}" for name, counter in counts.items()]
    lines += [f"skipped for a reason that deviations.py does not explain: {line}" for line in sorted(unexplained)]
    terminalreporter.write_line("\n" + "\n".join(lines))
