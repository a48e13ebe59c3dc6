"""Pieces that several callers have said side by side, as a server does, are those that each has alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from serving_helpers import until
from test_talker import PROMPTS, generators, ids_of, talker  # noqa: F401

from ming.compiled import StepCompileConfig
from ming.serving.errors import ApiError
from ming.serving.running_cache import RunningCache
from ming.serving.running_speech import RunningSpeech
from ming.talker_steps import NO_ID, StopRules

DEADLINE = 60
CAPTURED = StepCompileConfig(backend="eager")  # one graph, as with any backend, and no compiler
CALLS = [PROMPTS[:1], PROMPTS[1:3], PROMPTS[3:], PROMPTS[2:4], PROMPTS[:1], PROMPTS]


@contextmanager
def together(talker, compiled=None):  # noqa: F811
    """A talker whose calls are said side by side; gives the numbers of rows of its passes."""
    speech, rows = RunningSpeech(talker, compiled), []
    handle = talker.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["audio_ids"])), with_kwargs=True
    )
    speech.start()
    try:
        yield rows
    finally:
        speech.close()
        handle.remove()
    assert talker.together is None and not speech.is_alive


def seeds_of(call: int) -> list[int]:
    return [10 * call + row for row in range(len(CALLS[call]))]


def said(talker, call: int, **options) -> list[list[int]]:  # noqa: F811
    return ids_of(talker.generate(CALLS[call], generators(*seeds_of(call)), **options))


def joined_later(talker, **options) -> list[list[list[int]]]:  # noqa: F811
    """What calls say of which each begins in the middle of the one before."""
    heard: list[list[list[int]]] = [[[] for _ in call] for call in CALLS]
    begin = [threading.Event() for _ in [*CALLS, None]]

    def speak(call: int) -> None:
        assert begin[call].wait(DEADLINE)
        for number, step in enumerate(talker.stream(CALLS[call], generators(*seeds_of(call)), **options)):
            for row, step_id in zip(heard[call], step.codec_ids.tolist(), strict=True):
                row += [step_id] if step_id != NO_ID else []
            if number == 1:
                begin[call + 1].set()
        begin[call + 1].set()

    begin[0].set()
    with ThreadPoolExecutor(len(CALLS)) as pool:
        for done in [pool.submit(speak, call) for call in range(len(CALLS))]:
            done.result(DEADLINE)
    return heard


@pytest.mark.parametrize("compiled", [None, CAPTURED], ids=["", "compiled"])
@pytest.mark.parametrize("ahead", [False, True], ids=["", "a step ahead of the host"])
def test_calls_that_join_at_different_steps_say_what_they_say_alone(talker, compiled, ahead, monkeypatch):  # noqa: F811
    monkeypatch.setattr(talker, "runs_ahead", ahead)
    options = {"rules": StopRules(max_new_ids=25)}
    alone = [said(talker, call, attempts=1, **options) for call in range(len(CALLS))]
    with together(talker, compiled) as rows:
        heard = joined_later(talker, **options)
    assert heard == alone
    most = sum(map(len, CALLS))
    assert max(rows) > max(map(len, CALLS)) and max(rows) <= (16 if compiled else most)  # they did run side by side


def test_pieces_are_drawn_again_in_company(talker):  # noqa: F811
    """Empty ones and those that do not stop; `generate` asks again in the middle of the others' steps."""
    rules = StopRules(min_new_ids=0, max_new_ids=6)
    alone = [said(talker, call, rules=rules) for call in range(len(CALLS))]
    with together(talker), ThreadPoolExecutor(len(CALLS)) as pool:
        work = [pool.submit(said, talker, call, rules=rules) for call in range(len(CALLS))]
        assert [each.result(DEADLINE) for each in work] == alone


@pytest.mark.parametrize("at_most", [99, 1], ids=["at once", "where that fails each alone"])
def test_prompts_of_calls_that_came_together_are_read_at_once(talker, at_most, caplog):  # noqa: F811
    """The first call holds the talker until the others are there."""
    rules = StopRules(max_new_ids=9)
    alone = [said(talker, call, rules=rules, attempts=1) for call in range(len(CALLS))]
    begun, held, read = threading.Event(), threading.Event(), []

    def hold(module, args, kwargs) -> None:
        rows, width = kwargs["audio_ids"].shape
        begun.set()
        assert held.wait(DEADLINE)
        if width > 1 and rows > at_most and rows > max(map(len, CALLS)):
            raise RuntimeError("no memory for so many prompts")
        read.extend([rows] if width > 1 else [])

    handle = talker.register_forward_pre_hook(hold, with_kwargs=True)
    speech = RunningSpeech(talker, None)
    speech.start()
    try:
        with ThreadPoolExecutor(len(CALLS)) as pool:
            work = [pool.submit(said, talker, 0, rules=rules, attempts=1)]
            assert begun.wait(DEADLINE)
            work += [pool.submit(said, talker, call, rules=rules, attempts=1) for call in range(1, len(CALLS))]
            until(lambda: speech.num_waiting == len(CALLS) - 1)
            held.set()
            assert [each.result(DEADLINE) for each in work] == alone
    finally:
        handle.remove()
        speech.close()
    others = [len(call) for call in CALLS[1:]]
    assert read[:1] == [1] and sorted(read[1:]) == ([sum(others)] if at_most > 1 else sorted(others))
    assert ("cannot be read at once" in caplog.text) == (at_most == 1)


def test_calls_that_draw_differently_say_what_they_say_alone(talker):  # noqa: F811
    rules = StopRules(max_new_ids=12)
    options = [{}, {"temperature": 0.4}, {"temperature": 0.4}, {"top_k": 3}, {"rules": StopRules(max_new_ids=5)}]
    options = [{"rules": rules, "attempts": 1, **each} for each in options]

    def likeliest() -> list[list[int]]:
        return ids_of(talker.generate(PROMPTS[:2], rules=rules))

    alone = [*(said(talker, call, **each) for call, each in enumerate(options)), likeliest()]
    with together(talker), ThreadPoolExecutor(len(alone)) as pool:
        work = [pool.submit(said, talker, call, **each) for call, each in enumerate(options)]
        assert [each.result(DEADLINE) for each in [*work, pool.submit(likeliest)]] == alone


def test_one_pass_serves_all_calls(talker):  # noqa: F811
    rules = StopRules(min_new_ids=20, max_new_ids=20)
    with together(talker) as rows, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda call: said(talker, 0, rules=rules, attempts=1), range(4)))
    assert len(rows) < 4 * 21 and sum(rows) >= 4 * 20


def test_a_caller_that_leaves_frees_its_rows(talker):  # noqa: F811
    rules = StopRules(min_new_ids=40, max_new_ids=40)
    alone = said(talker, 0, rules=rules, attempts=1)
    with together(talker) as rows:
        steps = talker.stream(CALLS[5], generators(*seeds_of(5)), rules)
        for _ in range(3):
            next(steps)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(said, talker, 0, rules=rules, attempts=1)
            steps.close()
            assert other.result(DEADLINE) == alone
    assert rows[-1] == 1 and len(CALLS[5]) in rows


def test_a_call_whose_values_are_not_finite_fails_alone(talker):  # noqa: F811
    broken = replace(PROMPTS[3], thinker_states=torch.full_like(PROMPTS[3].thinker_states, torch.nan))
    rules = StopRules(min_new_ids=150, max_new_ids=150)
    (alone,) = said(talker, 0, rules=rules, attempts=1)
    with together(talker):
        steps = talker.stream(CALLS[0], generators(*seeds_of(0)), rules)
        begun = next(steps).codec_ids.tolist()
        with pytest.raises(FloatingPointError, match="not finite .*, from layer talker.thinker_to_talker_proj on"):
            talker.generate([broken], generators(0), attempts=1)
        assert begun + [step.codec_ids.item() for step in steps] == alone


def test_a_draw_that_fails_ends_its_call_alone(talker):  # noqa: F811
    """Its neighbours have the same settings and draw at the same steps."""
    rules = StopRules(min_new_ids=20, max_new_ids=20)
    alone = said(talker, 1, rules=rules, attempts=1)
    drawn: list[int] = []

    def fail(probabilities) -> torch.Tensor:
        drawn.append(len(probabilities))
        if len(drawn) == 3:
            raise RuntimeError("no memory to draw")
        return probabilities.argmax(dim=-1)

    with together(talker), ThreadPoolExecutor(2) as pool:
        others = [pool.submit(said, talker, 1, rules=rules, attempts=1) for _ in range(2)]
        with pytest.raises(RuntimeError, match="no memory to draw"):
            list(talker.stream(CALLS[0], rules=rules, draw=fail))
        assert [each.result(DEADLINE) for each in others] == [alone, alone]


def test_calls_that_end_with_their_first_ids_leave_the_others_their_cache(talker, monkeypatch):  # noqa: F811
    """One id, or a prompt whose values are not finite: nothing is copied for them."""
    broken = replace(PROMPTS[3], thinker_states=torch.full_like(PROMPTS[3].thinker_states, torch.nan))
    rules = StopRules(min_new_ids=30, max_new_ids=30)
    alone = said(talker, 0, rules=rules, attempts=1)
    own, added = RunningCache.add, []
    monkeypatch.setattr(
        RunningCache, "add", lambda cache, new, layers: added.append(len(new)) or own(cache, new, layers)
    )
    with together(talker) as rows, ThreadPoolExecutor(1) as pool:
        steps = talker.stream(CALLS[0], generators(*seeds_of(0)), rules)
        begun = [next(steps).codec_ids.item()]
        short = pool.submit(said, talker, 1, rules=StopRules(max_new_ids=1), attempts=1)
        with pytest.raises(FloatingPointError):
            talker.generate([broken], generators(0), attempts=1)
        assert [len(ids) for ids in short.result(DEADLINE)] == [1, 1]
        assert [begun + [step.codec_ids.item() for step in steps]] == alone
    steps_alone = 29
    assert rows.count(1) >= steps_alone and len(rows) <= steps_alone + 4  # and prompts, one of them read again
    assert added == [1]


def test_rules_that_cannot_be_compared_stop_nobody(talker):  # noqa: F811
    rules = StopRules(shortest=torch.tensor([0.5, 0.5]), max_new_ids=9)
    with together(talker), ThreadPoolExecutor(3) as pool:
        work = [pool.submit(lambda: list(talker.stream(CALLS[0], generators(1), rules))) for _ in range(3)]
        assert [len(each.result(DEADLINE)) for each in work] == [9, 9, 9]


def test_a_pass_that_fails_tells_its_callers_and_later_ones_are_served(talker):  # noqa: F811
    alone = said(talker, 0, attempts=1)

    def fail(module, args, kwargs) -> None:
        if kwargs["audio_ids"].shape == (len(PROMPTS), 1):
            raise RuntimeError("no memory for four")

    handle = talker.register_forward_pre_hook(fail, with_kwargs=True)
    try:
        with together(talker):
            with pytest.raises(RuntimeError, match="no memory for four"):
                said(talker, 5, attempts=1)
            assert said(talker, 0, attempts=1) == alone
    finally:
        handle.remove()


def test_calls_that_wait_when_it_closes_get_an_error(talker):  # noqa: F811
    speech, reached = RunningSpeech(talker, None), threading.Event()
    handle = talker.register_forward_pre_hook(lambda module, args: reached.set())
    speech.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(said, talker, 0, rules=StopRules(min_new_ids=10**6, max_new_ids=10**6), attempts=1)
            assert reached.wait(DEADLINE)
            speech.close()
            with pytest.raises(ApiError, match="the server is shutting down"):
                waiting.result(DEADLINE)
        with pytest.raises(ApiError, match="the server is shutting down"):
            next(speech.say(None))
    finally:
        handle.remove()


def test_released_stop_rules_go_on_alone(talker):  # noqa: F811
    """One piece at a time, whose end may be drawn while its prompt is read."""
    rules = StopRules(released=True)
    alone = said(talker, 0, rules=rules, attempts=1)
    with together(talker):
        assert said(talker, 0, rules=rules, attempts=1) == alone
