"""Streaming: what is promised about chunks, joints, and the distance to decoding an utterance as a whole."""

import shutil

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from speech_helpers import NUM_CODES, SMALLEST_VOCODER, tiny_detokenizer
from test_audio_detokenizer import PROMPT, VOICES, codes_of, golden_model, seeded
from torch._dynamo.utils import counters
from transformers import CompileConfig

from audio_detokenizer.compiled_parts import CompiledVocoder, padded_length, padded_lengths
from audio_detokenizer.noise import FrameNoise, spawn_generators
from audio_detokenizer.streaming import DetokenizerStream, join

VOICE = VOICES[:1]
CAPTURED = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="eager")
SMALL = {"first_chunk": 6, "left_context": 12}
LARGE = {"left_context": 1000, "look_ahead": 60}


@pytest.fixture(scope="module")
def model():
    return golden_model()


def speak(model, codes, pushes, seed=0, **arguments) -> list[torch.Tensor]:
    """Chunks of a stream that is given so many codes at a time, over and over."""
    stream = model.stream(VOICE, generator=seeded(seed), **arguments)
    chunks, position = [], 0
    while position < len(codes):
        size = pushes[len(chunks) % len(pushes)]
        chunks.append(stream.push(codes[position : position + size]))
        position += size
    return [*chunks, stream.finish()]


def speak_with_mel(model, codes, monkeypatch, **arguments) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """The waveform of a stream, the mel [M, T] it was made from, and its joints in frames."""
    mels, vocode = [], DetokenizerStream._vocode

    def record(self, mel, num_new):
        mels.append(mel[0, :, :num_new].clone())
        return vocode(self, mel, num_new)

    with monkeypatch.context() as patch:
        patch.setattr(DetokenizerStream, "_vocode", record)
        waveform = torch.cat(speak(model, codes, [len(codes)], **arguments))
    joints = torch.tensor([mel.shape[1] for mel in mels]).cumsum(0)[:-1].tolist()
    return waveform, torch.cat(mels, dim=1), joints


@torch.no_grad()
def whole_mel(model, codes, seed=0) -> torch.Tensor:
    """The mel [M, T] of `decode`."""
    noise = FrameNoise(spawn_generators(seeded(seed), 2)[0], 80)(0, model.config.num_frames(len(codes)))
    return model.flow(codes[None], torch.tensor([len(codes)]), VOICE, noise.T[None])[0]


@torch.no_grad()
def whole_vocoder(model, mel, seed=0) -> torch.Tensor:
    """What `decode` makes of a mel [M, T]."""
    (waveform,) = model.vocode([mel], [spawn_generators(seeded(seed), 2)[1]])
    return waveform


def test_compiled_parts_say_the_same_with_graphs_of_few_lengths():
    """Whole utterances of like lengths share graphs; a batch has a flow of its own, and the vocoder of each row."""
    model = tiny_detokenizer()
    torch._dynamo.reset()
    start = counters["stats"]["unique_graphs"]
    for lengths, graphs in (([50], 2), ([54], 2), ([50, 20], 4), ([20, 54], 4)):
        rows = [row % NUM_CODES for row in codes_of(*lengths)]
        plain, compiled = (
            model.decode(rows, VOICE, generator=[seeded(row) for row, _ in enumerate(rows)], compile=asked)
            for asked in (False, CAPTURED)
        )
        for ours, other in zip(compiled, plain, strict=True):
            torch.testing.assert_close(ours, other, rtol=0, atol=1e-3)
        assert counters["stats"]["unique_graphs"] - start == graphs
    codes = codes_of(70)[0] % NUM_CODES
    expected = torch.cat(speak(model, codes, [10], **SMALL))
    torch.testing.assert_close(
        torch.cat(speak(model, codes, [10], **SMALL, compile=CAPTURED)), expected, rtol=0, atol=1e-3
    )
    streamed = counters["stats"]["unique_graphs"]
    assert len(speak(model, codes, [7], 1, **SMALL, compile=CAPTURED)) and streamed - start <= 7
    assert counters["stats"]["unique_graphs"] == streamed and not counters["graph_break"]


@torch.no_grad()
def test_the_compiled_vocoder_says_the_same_up_to_every_end(model):
    """At 1, a length less than one of the graphs', that length, and more; the end is where padding begins."""
    torch._dynamo.reset()
    start = counters["stats"]["unique_graphs"]
    mel = whole_mel(model, *codes_of(60))
    for frames in (1, 2, 37, 63, 64, 65, 96):
        plain, compiled = (
            model.vocode([mel[:, :frames]], [seeded(frames)], compile=asked)[0] for asked in (False, CAPTURED)
        )
        torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)
    assert counters["stats"]["unique_graphs"] - start <= 2 and not counters["graph_break"]


@torch.no_grad()
def test_generated_code_of_the_vocoder_says_the_same():
    """Of a vocoder with one block of each kind, since every kind of block is compiled anew.

    With the default backend where there is a C++ compiler, and with PyTorch's core operators where there is none.
    """
    hift = tiny_detokenizer(**SMALLEST_VOCODER).hift
    options = {"fullgraph": True, "dynamic": False, "backend": "inductor" if shutil.which("g++") else "aot_eager"}
    compiled = CompiledVocoder(hift.render, hift.hop_length, hift.UNKNOWN_F0, options)
    mel, noise = torch.randn(1, 80, 30, generator=seeded(2)), torch.randn(1, 9, 30 * 256, generator=seeded(1))
    expected = hift.render(mel, torch.zeros(1, 9), noise)
    for ours, other in zip(compiled(mel, torch.zeros(1, 9), noise), expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [7680, 7684])
def test_real_transforms_are_those_of_complex_numbers(model, samples):
    """PyTorch's own, which mirror and weight alike."""
    hift, window = model.hift, torch.hann_window(16)
    waveform = torch.randn(2, samples, generator=seeded(0))
    expected = torch.stft(waveform, 16, 4, window=window, return_complex=True)
    ours = hift.stft(waveform)
    torch.testing.assert_close(ours, torch.cat([expected.real, expected.imag], dim=1), rtol=0, atol=1e-5)
    magnitude, angle = expected.abs(), expected.angle()
    again = torch.istft(torch.polar(magnitude.clamp(max=100), angle), 16, 4, window=window)
    torch.testing.assert_close(hift.istft(magnitude, angle), again, rtol=0, atol=1e-5)
    torch.testing.assert_close(hift.istft(magnitude, angle), waveform, rtol=0, atol=1e-4)


def test_detokenizers_that_do_not_compile_are_refused():
    with pytest.raises(TypeError, match="compile='yes' must be True"):
        golden_model().stream(VOICE, compile="yes")
    with pytest.raises(ValueError, match="compile: frames are padded, which mask_padding=False changes"):
        golden_model(mask_padding=False).decode(codes_of(5), VOICE, compile=True)
    hooked = golden_model()
    add_hook_to_module(hooked.hift.conv_pre, ModelHook())
    with pytest.raises(ValueError, match="compile: parts of the audio detokenizer are moved"):
        hooked.stream(VOICE, compile=True)
    assert [padded_length(frames) for frames in (1, 64, 65, 97, 129, 200)] == [64, 64, 96, 128, 192, 256]
    assert padded_lengths(1) == [64] and padded_lengths(193) == [64, 96, 128, 192, 256]


def decibels(signal: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(other.square().mean() / (signal - other).square().mean()))


@pytest.mark.parametrize("prompt", [{}, PROMPT], ids=["plain", "prompt"])
def test_any_slicing_gives_the_same_audio_as_long_as_the_whole(model, prompt):
    (codes,) = codes_of(70)
    arguments = SMALL | prompt
    expected = torch.cat(speak(model, codes, [70], **arguments))
    for pushes in ([1], [13], [3, 0, 40]):
        assert torch.equal(torch.cat(speak(model, codes, pushes, **arguments)), expected)
    (whole,) = model.decode([codes], VOICE, generator=seeded(0), **prompt)
    assert expected.shape == whole.shape and expected.dtype == torch.float32
    assert not expected[:441].any() and expected[441:500].any()


@pytest.mark.parametrize("num_codes", [1, 2, 6, 25, 26, 27, 28, 33, 39])
def test_every_length_is_that_of_the_whole(model, num_codes):
    (codes,) = codes_of(num_codes)
    for prompt in ({}, PROMPT):
        (whole,) = model.decode([codes], VOICE, generator=seeded(0), num_steps=1, **prompt)
        alone = SMALL | {"look_ahead": 0, "left_context": 0, "growth": 1.0}  # chunks that see nothing of each other
        for settings in (SMALL, alone, {"first_chunk": 1, "look_ahead": 1}):
            chunks = speak(model, codes, [5], num_steps=1, **(settings | prompt))
            assert len(torch.cat(chunks)) == len(whole)


@pytest.mark.parametrize("prompt", [{}, PROMPT], ids=["plain", "prompt"])
def test_an_utterance_within_the_first_chunk_is_decoded_as_a_whole(model, prompt):
    for num_codes in (5, 29):  # 12 and 18 ahead would make the first chunk at 30
        (codes,) = codes_of(num_codes)
        (whole,) = model.decode([codes], VOICE, generator=seeded(3), **prompt)
        torch.testing.assert_close(torch.cat(speak(model, codes, [4], 3, **prompt)), whole, atol=2e-6, rtol=0)


def test_chunks_come_as_soon_as_promised_and_grow(model):
    stream = model.stream(VOICE, generator=seeded(0), first_chunk=5, growth=2.0, look_ahead=8, max_chunk=12)
    (codes,) = codes_of(80)
    ready = {i + 1: len(chunk) for i, code in enumerate(codes) if len(chunk := stream.push(code[None]))}
    ends = [5, 15, 27, 39, 51, 63]  # 5, 10, 12, 12, ... codes
    assert list(ready) == [end + 8 for end in ends]
    frames = [0, *(model.config.num_frames(end) for end in ends)]
    assert list(ready.values()) == [256 * (stop - start) for start, stop in zip(frames, frames[1:], strict=False)]


def test_the_flow_runs_over_little_more_than_the_codes(model, monkeypatch):
    (codes,) = codes_of(500)
    seen = []
    monkeypatch.setattr(
        model.flow, "window", lambda codes, tokens, *_: seen.append(codes.shape[1]) or torch.zeros(1, 80, len(tokens))
    )
    speak(model, codes, [50])
    assert sum(seen) < 1.5 * 500 and max(seen) <= 200 + 30 + 18 + 2


def test_the_vocoder_adds_nothing(model, monkeypatch):
    """Given the whole's mel, chunks are the whole's waveform: contexts, pitch, phases and noise all continue."""
    (codes,) = codes_of(150)
    mel = whole_mel(model, codes)
    monkeypatch.setattr(
        DetokenizerStream, "_decode_mel", lambda self, _, n, steps: mel[None, :, self.frame : n].clone()
    )
    (whole,) = model.decode([codes], VOICE, generator=seeded(0))
    streamed = torch.cat(speak(model, codes, [150], first_chunk=10))
    torch.testing.assert_close(streamed, whole, atol=1e-4, rtol=0)
    assert decibels(streamed, whole) > 70


def test_joints_cannot_be_heard(model, monkeypatch):
    """The waveform is that of the stream's own mel in one go, at its joints (4 frames around) as elsewhere."""
    (codes,) = codes_of(150)
    waveform, mel, joints = speak_with_mel(model, codes, monkeypatch, first_chunk=10, growth=2.0)
    whole = whole_vocoder(model, mel)
    torch.testing.assert_close(waveform, whole, atol=5e-4, rtol=0)
    assert len(joints) == 3 and decibels(waveform, whole) > 60
    curvature = waveform.diff(n=2).abs()
    for joint in joints:
        around = slice((joint - 4) * 256, (joint + 4) * 256)
        assert decibels(waveform[around], whole[around]) > 60
        assert curvature[joint * 256 - 3 : joint * 256 + 2].max() < curvature.quantile(0.999)
    # The mel moves no faster at its joints (after the vocoder's context) than elsewhere.
    movement = mel.diff(dim=1).square().mean(dim=0).sqrt()
    assert all(movement[joint + 17 : joint + 27].max() < 1.2 * movement.max() for joint in joints)


def test_the_first_chunk_may_take_fewer_steps(model, monkeypatch):
    """Of the flow; what follows the joint is the same, and an utterance that ends before it takes all steps."""
    (codes,) = codes_of(60)
    (_, mel, joints), (_, quicker, same_joints) = (
        speak_with_mel(model, codes, monkeypatch, **SMALL, first_chunk_steps=steps) for steps in (0, 2)
    )
    faded = joints[0] + model.config.streaming["vocoder_context"] + model.config.streaming["mel_fade"]
    assert joints == same_joints and torch.equal(mel[:, faded:], quicker[:, faded:])
    assert not torch.allclose(mel[:, : joints[0]], quicker[:, : joints[0]])
    (short,) = codes_of(10)
    whole, same = (torch.cat(speak(model, short, [10], **SMALL, first_chunk_steps=steps)) for steps in (0, 2))
    assert torch.equal(whole, same)


def test_smaller_contexts_are_faded(model, monkeypatch):
    """With less than the vocoder's output depends on, a joint still differs little from the whole."""
    (codes,) = codes_of(150)
    small = {"first_chunk": 10, "look_ahead": 6, "vocoder_context": 9}
    waveform, mel, _ = speak_with_mel(model, codes, monkeypatch, **small)
    assert decibels(waveform, whole_vocoder(model, mel)) > 25


def test_the_mel_is_close_to_the_wholes(model, monkeypatch):
    """Relative to the mel's deviation; the goldens' random weights and random codes are all but smooth."""
    (codes,) = codes_of(200)
    whole = whole_mel(model, codes)

    def distance(**settings):
        difference = speak_with_mel(model, codes, monkeypatch, **settings)[1] - whole
        return float(difference.square().mean().sqrt() / whole.std()), difference

    usual, difference = distance()
    last = model.config.num_frames(12 + 48)
    assert usual < 0.25
    # The last chunk knows the whole length; what differs is the reach of its joint.
    assert difference[:, last + 40 :].square().mean().sqrt() < 0.1 * whole.std()
    assert distance(first_chunk=60, **LARGE)[0] < 0.85 * usual
    assert distance(first_chunk=180, **LARGE)[0] < 1e-5


def test_seeds_of_a_stream(model):
    (codes,) = codes_of(40)
    state = torch.get_rng_state()
    first, again, other = (torch.cat(speak(model, codes, [40], seed, **SMALL)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    fresh = [model.stream(VOICE, **SMALL) for _ in range(2)]
    assert not torch.equal(*(stream.push(codes) for stream in fresh))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stream_in_bfloat16(model):
    (codes,) = codes_of(40)
    half = torch.cat(speak(golden_model().to(torch.bfloat16), codes, [40], **SMALL))
    assert half.dtype == torch.float32 and half.isfinite().all() and half.abs().max() > 0.05


def test_join_holds_then_fades():
    before, after = torch.zeros(5), torch.ones(7)
    assert join(before, after, 2, 2).tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1, 1])
    assert join(before[:1], after, 2, 2).tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert join(before[:0], after, 2, 2).equal(after)
    assert join(before, after[:3], 1, 9).tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    elsewhere = join(before.to("meta"), after.to("meta"), 2, 2)
    assert elsewhere.device.type == "meta" and elsewhere.shape == after.shape


def test_a_stream_ends_once(model):
    stream = model.stream(VOICE)
    assert stream.push(torch.zeros(0, dtype=torch.long)).shape == stream.finish().shape == (0,)
    for call in (stream.finish, lambda: stream.push(torch.tensor([1]))):
        with pytest.raises(ValueError, match="finished; make a new one"):
            call()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speaker_embedding": torch.zeros(2, 192)}, r"must have shape \[1, 192\]"),
        ({"chunk": 5}, "unknown streaming settings chunk; known are first_chunk"),
        ({"first_chunk": 0}, "first_chunk must be at least 1, not 0"),
        ({"growth": 0.5}, "growth must be at least 1, not 0.5"),
        ({"look_ahead": -1}, "look_ahead must not be negative, but is -1"),
        ({"prompt_codes": codes_of(9)}, "belong together"),
    ],
)
def test_wrong_arguments_of_a_stream(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        model.stream(**({"speaker_embedding": VOICE} | arguments))


def test_wrong_codes_do_not_end_a_stream(model):
    (codes,) = codes_of(30)
    stream = model.stream(VOICE, generator=seeded(0))
    stream.push(codes[:10])
    with pytest.raises(ValueError, match="codes holds 64"):
        stream.push(torch.tensor([64]))
    rest = torch.cat([stream.push(codes[10:]), stream.finish()])
    assert torch.equal(rest, torch.cat(speak(model, codes, [30])))


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_steps_that_cannot_be_made_are_refused(model, steps):
    codes = torch.randint(16, (20,), generator=seeded(1))
    for call in (lambda: model.decode([codes], VOICE, num_steps=steps), lambda: model.stream(VOICE, num_steps=steps)):
        with pytest.raises(ValueError, match=f"num_steps must be at least 1, not {steps!r}"):
            call()


def test_steps_that_would_take_for_ever_are_refused(model):
    codes = torch.randint(16, (20,), generator=seeded(1))
    for call in (lambda: model.decode([codes], VOICE, num_steps=10**9), lambda: model.stream(VOICE, num_steps=10**9)):
        with pytest.raises(ValueError, match="num_steps must be at most 10,000, not 1000000000"):
            call()
