"""Inputs that nobody thought of end in an answer or in one error that helps: a few of every kind, always the same.

`make fuzz` tries thousands. A fault that it finds gets a test of its own beside the tests of the part that is mended.
"""

import resource
import time

import pytest
import torch
from fuzz.kinds import KINDS, run
from fuzz.outcomes import MEMORY_BYTES, SECONDS, Broken, expect, judged

SEED = 20
INPUTS = {"conversation": 40, "file": 120, "features": 80, "settings": 60, "output": 40, "handler": 60, "server": 40}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_end_in_an_answer_or_a_refusal(kind):
    outcomes: list[tuple[str, str, str]] = []
    began: list[float] = []
    KINDS[kind].prepare()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def after(recipe, outcome, what):
        seconds = time.process_time() - began[-1]
        slow = f"{seconds:.0f} s" if seconds > SECONDS else ""
        outcomes.append(("fault" if slow else outcome, slow or what, repr(recipe)))

    run(kind, INPUTS[kind], SEED, lambda recipe: began.append(time.process_time()), after)
    assert [each for each in outcomes if each[0] == "fault"] == []
    assert {"answer", "refusal"} <= {each[0] for each in outcomes}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) << 10
    assert grown < MEMORY_BYTES


def test_what_counts_as_a_fault():
    """The judge itself: an error that nobody meant is a fault, whatever its class."""

    def meant():
        raise ValueError("steps=0 must be at least 1")

    def told_too_little():
        raise ValueError("no")

    def broken():
        expect(1 == 2, "one is two")

    assert judged(lambda: None) == ("answer", "")
    assert judged(meant)[0] == "refusal"
    assert judged(lambda: meant(no_such_option=1))[0] == "refusal"
    for fault in (
        told_too_little,
        broken,
        lambda: int("x"),
        lambda: [][1],
        lambda: 3 + "x",
        lambda: torch.zeros(2) @ 3,
    ):
        assert judged(fault)[0] == "fault"
    with pytest.raises(Broken, match="one is two"):
        broken()
