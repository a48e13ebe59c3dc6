"""Velocities that several threads ask for at the same time are those that each has alone."""

import copy
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest
import torch
from fastapi.testclient import TestClient
from serving_helpers import processor
from speech_helpers import SMALLEST_VOCODER, build_speaking_repository, tiny_detokenizer

from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.serving.errors import ApiError
from ming.serving.running_audio import RunningAudio, passes_at_once
from ming.serving.server import create_app
from ming.serving.settings import Site

DEADLINE = 60
LENGTHS = (70, 72, 90, 96, 40, 71)  # the first four and the last are padded to 96 at most, the fifth to 64


@pytest.fixture(scope="module")
def detokenizer():
    return tiny_detokenizer(**SMALLEST_VOCODER)


@contextmanager
def together(detokenizer, passes=1):
    """A detokenizer whose velocities are computed side by side; gives the numbers of rows of its passes."""
    audio, rows = RunningAudio(detokenizer, False, passes), []
    estimator = detokenizer.flow.decoder.estimator
    handle = estimator.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    audio.start()
    try:
        yield rows
    finally:
        audio.close()
        handle.remove()
    assert detokenizer.together is None and not audio.is_alive


def spoken(detokenizer, call: int) -> torch.Tensor:
    """A whole utterance; also a stream of it."""
    width = detokenizer.config.flow["spk_embed_dim"]
    codes = torch.arange(call, call + LENGTHS[call] // 2) % detokenizer.config.flow["vocab_size"]
    (waveform,) = detokenizer.decode([codes], torch.ones(1, width), generator=torch.Generator().manual_seed(call))
    stream = detokenizer.stream(torch.ones(1, width), generator=torch.Generator().manual_seed(call))
    return torch.cat([waveform, stream.push(codes), stream.finish()])


@pytest.mark.parametrize("passes", [1, 2])
def test_replies_that_are_made_side_by_side_sound_as_alone(detokenizer, passes):
    calls = range(len(LENGTHS))
    alone = [spoken(detokenizer, call) for call in calls]
    with together(detokenizer, passes) as rows, ThreadPoolExecutor(len(LENGTHS)) as pool:
        heard = list(pool.map(lambda call: spoken(detokenizer, call), calls))
    for waveform, wanted in zip(heard, alone, strict=True):
        torch.testing.assert_close(waveform, wanted, atol=2e-3, rtol=0)
    assert max(rows) > 2  # they did run side by side


def frames_of(detokenizer, length: int, seed: int = 0) -> list[torch.Tensor]:
    width, generator = detokenizer.config.flow["output_size"], torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    x, mu, cond = (drawn(2, width, length) for _ in range(3))
    return [x, None, mu, torch.rand(2, generator=generator), drawn(2, width), cond]


@contextmanager
def held(audio, detokenizer):
    """The first pass waits until the block has ended, so that all that is asked in it meets in the second one."""
    reached, go = threading.Event(), threading.Event()

    def hold(module, args) -> None:
        reached.set()
        assert go.wait(DEADLINE)

    handle = detokenizer.flow.decoder.estimator.register_forward_pre_hook(hold)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(audio.estimator, *frames_of(detokenizer, 300))
        assert reached.wait(DEADLINE)
        try:
            yield
        finally:
            go.set()
            first.result(DEADLINE)
            handle.remove()


def asked_at_once(detokenizer, lengths) -> tuple[list[torch.Tensor], list[int]]:
    """The velocities of frames of these lengths, and the numbers of rows of the passes."""
    frames = [frames_of(detokenizer, each, place) for place, each in enumerate(lengths)]
    work, rows = computed_at_once(detokenizer, frames)
    return [each.result() for each in work], rows


def computed_at_once(detokenizer, frames) -> tuple[list[Future], list[int]]:
    """As `asked_at_once`, of frames, where each velocity may be an error."""
    with together(detokenizer) as rows, ThreadPoolExecutor(len(frames)) as pool:
        audio = detokenizer.together
        with held(audio, detokenizer):
            work = [pool.submit(audio.estimator, *each) for each in frames]
            with audio._changed:
                audio._changed.wait_for(lambda: len(audio._asked) == len(frames), DEADLINE)
        wait(work, DEADLINE)
        return work, rows[1:]


def test_frames_of_about_one_length_are_rows_of_one_pass(detokenizer):
    velocities, rows = asked_at_once(detokenizer, LENGTHS)
    assert sorted(rows) == [2, 2 * (len(LENGTHS) - 1)]
    estimator = detokenizer.flow.decoder.estimator
    for place, (velocity, length) in enumerate(zip(velocities, LENGTHS, strict=True)):
        with torch.no_grad():
            torch.testing.assert_close(velocity, estimator(*frames_of(detokenizer, length, place)), atol=1e-5, rtol=0)


def test_two_passes_are_computed_at_once(detokenizer):
    """Two velocities that are asked for at the same time: each pass waits for the other one."""
    both = threading.Barrier(2, timeout=DEADLINE)
    frames = [frames_of(detokenizer, 70, seed) for seed in range(2)]

    def meet(module, args) -> None:
        both.wait()

    with torch.no_grad():
        alone = [detokenizer.flow.decoder.estimator(*each) for each in frames]
    with together(detokenizer, passes=2) as rows, ThreadPoolExecutor(2) as pool:
        audio = detokenizer.together
        with audio._changed:
            audio._changed.wait_for(lambda: audio._idle == 2, DEADLINE)
        handle = detokenizer.flow.decoder.estimator.register_forward_pre_hook(meet)
        try:
            velocities = list(pool.map(lambda each: detokenizer.together.estimator(*each), frames))
        finally:
            handle.remove()
    assert rows == [2, 2] and all(map(torch.equal, velocities, alone))


@pytest.mark.parametrize(("cores", "threads", "passes"), [(2, 2, 1), (2, 1, 2), (16, 1, 4), (16, 4, 4), (1, 2, 1)])
def test_passes_leave_a_core_to_each_thread(monkeypatch, cores, threads, passes):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    own = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert passes_at_once(torch.device("cpu")) == passes
        assert passes_at_once(torch.device("cuda")) == 1
    finally:
        torch.set_num_threads(own)


def test_who_was_answered_last_is_waited_for(detokenizer):
    """Two callers that begin one after the other would go on in turns, each in passes of its own."""
    begun, rounds = threading.Event(), 8

    def slow(module, args) -> None:
        begun.set()
        time.sleep(0.1)  # the share of it that is waited is long enough to ask again

    def ask(seed: int) -> None:
        for _ in range(rounds):
            detokenizer.together.estimator(*frames_of(detokenizer, 70, seed))

    with together(detokenizer) as rows, ThreadPoolExecutor(2) as pool:
        handle = detokenizer.flow.decoder.estimator.register_forward_pre_hook(slow)
        first = pool.submit(ask, 0)
        assert begun.wait(DEADLINE)
        ask(1)
        first.result(DEADLINE)
        handle.remove()
    assert sum(rows) == 4 * rounds and 4 in rows


def test_frames_that_padding_would_change_are_computed_alone(detokenizer):
    config = copy.deepcopy(detokenizer.config)
    config.mask_padding = False
    released = AudioDetokenizer(config).eval()
    velocities, rows = asked_at_once(released, LENGTHS[:3])
    assert rows == [2, 2, 2]
    for place, velocity in enumerate(velocities):
        with torch.no_grad():
            alone = released.flow.decoder.estimator(*frames_of(released, LENGTHS[place], place))
        assert torch.equal(velocity, alone)


def test_frames_that_do_not_fit_fail_alone(detokenizer):
    frames = [frames_of(detokenizer, 70, seed) for seed in range(3)]
    with torch.no_grad():
        alone = [detokenizer.flow.decoder.estimator(*each) for each in frames]
    frames[1][2] = frames[1][2][:, :-1]
    (first, broken, last), _ = computed_at_once(detokenizer, frames)
    assert torch.equal(first.result(), alone[0]) and torch.equal(last.result(), alone[2])
    with pytest.raises(RuntimeError, match="but got 319 channels"):
        broken.result()


def test_a_pass_that_fails_tells_those_who_wait_for_it_and_later_ones_are_served(detokenizer):
    with together(detokenizer):
        audio, broken = detokenizer.together, frames_of(detokenizer, 70)
        broken[2] = broken[2][:, :-1]
        with pytest.raises(RuntimeError):
            audio.estimator(*broken)
        assert audio.estimator(*frames_of(detokenizer, 70)).shape[2] == 70


def test_who_waits_when_it_closes_gets_an_error(detokenizer):
    audio = RunningAudio(detokenizer, False)
    audio.start()
    audio.close()
    with pytest.raises(ApiError, match="the server is shutting down"):
        audio.estimator(*frames_of(detokenizer, 70))


@pytest.mark.parametrize("repeatable", [False, True])
def test_a_replica_of_a_cluster_makes_the_audio_of_each_reply_alone(tmp_path, repeatable):
    """Another replica may have to continue an answer with the same bytes, in other company."""
    model = BailingMMNativeForConditionalGeneration.from_pretrained(build_speaking_repository(tmp_path)).eval()
    with TestClient(create_app(model, processor(), site=Site(repeatable=repeatable))):
        assert (model.audio_detokenizer.load().together is None) == repeatable
        assert model.talker.together is not None
    assert model.talker.together is None
