"""The benchmark of vLLM: that all ways answer, and alike; what it measures is for a table."""

import pytest

from benchmarks import vllm


def test_all_ways_give_the_same_answers():
    costs = vllm.measure(questions=4, rounds=1, eager=True, trust_remote_code=True)
    assert [cost.way for cost in costs] == [vllm.ONE_BY_ONE, *vllm.SERVERS, vllm.OFFLINE]
    assert {cost.same for cost in costs} == {1.0}
    assert costs[0].ratio == 1.0 and all(cost.ratio > 0 for cost in costs)
    assert len(vllm.table(costs).splitlines()) == len(costs) + 2


def test_code_of_the_checkpoint_runs_if_the_user_says_so():
    with pytest.raises(ValueError, match="say --trust-remote-code"):
        vllm.measure()
