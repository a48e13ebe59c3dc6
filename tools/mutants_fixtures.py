"""A plugin of pytest for `tools.mutants`: what a fixture of a module calls belongs to all tests of that module.

mutmut notes which functions a test calls, and runs these tests for the mutants of a function. A fixture of a module or
session runs once, for the first test that asks for it; without this plugin only that test would count.
"""

from pathlib import Path

import pytest
from mutmut.state import state

called: dict[Path, set[str]] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Add what earlier tests of the file called, before mutmut notes it."""
    of_file = called.setdefault(item.path, set())
    of_file |= state()._stats
    state()._stats |= of_file
