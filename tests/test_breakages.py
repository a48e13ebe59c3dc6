"""`tools/breakages.py`: what it would break still stands where it says, and an unbroken copy is told apart."""

import pytest

from tools.breakages import BREAKAGES, Breakage, copy_repository, is_noticed, raise_if_gone


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_what_is_broken_still_stands_there(breakage):
    raise_if_gone(breakage)
    assert breakage.right != breakage.wrong


def test_a_breakage_is_noticed_and_an_idle_change_is_not(tmp_path):
    copy_repository(tmp_path)
    assert is_noticed(next(each for each in BREAKAGES if each.name == "requirement"), tmp_path)
    idle = Breakage("idle", "requirements-dev.txt", "wheel>=0.45\n", "wheel>=0.44\n", BREAKAGES[0].tests)
    assert not is_noticed(idle, tmp_path)
