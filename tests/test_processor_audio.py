"""Loading of audio: file formats, sources, and errors."""

import base64
from fractions import Fraction

import av
import numpy as np
import pytest
import soundfile
import torch
from processor_helpers import released_processor

from ming.media import load_audio, raise_if_unusable, resample


@pytest.fixture(scope="module")
def processor():
    return released_processor()


def tone(rate=16000, seconds=1.0):
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def write_m4a(path, samples, rate):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        for start in range(0, len(samples), 1024):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + 1024].copy(), "fltp", "mono")
            frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_audio_formats(tmp_path, ending, rate):
    path = tmp_path / f"a.{ending}"
    samples = tone(rate)
    if ending == "m4a":
        write_m4a(path, samples, rate)
    else:
        soundfile.write(path, samples, rate)
    url = f"data:audio/{ending};base64," + base64.b64encode(path.read_bytes()).decode()
    for source in (path, str(path), path.as_uri(), url, path.read_bytes()):
        wave, found = load_audio(source)
        assert found == rate and wave.dtype == torch.float32 and len(wave) == 1
        assert abs(wave.shape[1] - rate) < 0.15 * rate
        assert abs(wave.square().mean().sqrt() - 0.5 / 2**0.5) < 0.05
        assert abs(resample(wave, rate, 16000).shape[1] - 16000) < 2400


def test_forms_of_waveforms_agree():
    wave = tone()[:1000]
    pairs = [(wave, 8000), (torch.from_numpy(wave), 8000), (torch.from_numpy(wave)[None], 8000), (8000, wave)]
    dicts = [{"array": wave, "sampling_rate": 8000}, {"array": list(map(float, wave)), "sample_rate": 8000}]
    for source in [*pairs, *dicts, (wave.astype(np.float64), 8000), (np.stack([wave, wave], -1), 8000)]:
        loaded, rate = load_audio(source)
        assert rate == 8000 and torch.allclose(loaded, torch.from_numpy(wave)[None], atol=1e-7)
    assert load_audio(wave)[1] == 16000 and load_audio(wave, 8000)[1] == 8000


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float16])
def test_number_types_are_scaled(dtype):
    wave = tone()[:1000]
    scale = {np.int16: 2**15, np.int32: 2**31, np.uint8: 128, np.float16: 1}[dtype]
    converted = (wave.astype(np.float64) * scale + (128 if dtype is np.uint8 else 0)).astype(dtype)
    assert torch.allclose(load_audio(converted)[0][0], torch.from_numpy(wave), atol=1.1 / min(scale, 1024) + 1e-3)


def test_channels_are_mixed_or_the_first_is_taken(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), np.zeros_like(tone())], -1), 16000, subtype="FLOAT")
    assert torch.allclose(load_audio(tmp_path / "a.wav")[0][0], torch.from_numpy(tone()) / 2)
    assert torch.allclose(load_audio(tmp_path / "a.wav", mono="first")[0][0], torch.from_numpy(tone()))


def upside_down(remainder=0.0) -> np.ndarray:
    """Two seconds of two channels that leave a share of themselves when they are mixed: [channels, samples]."""
    sound = tone(seconds=2.0)
    return np.stack([sound, (2 * remainder - 1) * sound])


@pytest.mark.parametrize(
    ("channels", "cancels"),
    [
        (upside_down(), True),
        (upside_down(0.01), True),
        (upside_down(0.3), False),
        (np.concatenate([upside_down(), upside_down()]), True),
        (1e-4 * upside_down(), False),  # silent anyway
        (np.stack([tone(), np.roll(tone(), 9)]), False),
        (np.concatenate([tone()[None], np.zeros((10, 16000), np.float32)]), False),
        (np.random.default_rng(0).normal(0, 0.1, (24, 16000)).astype(np.float32), False),
    ],
    ids=["exactly", "nearly", "partly", "four", "silent", "late", "one of eleven", "noise"],
)
def test_channels_that_cancel_each_other_out_are_warned_of(tmp_path, caplog, channels, cancels):
    soundfile.write(tmp_path / "a.wav", channels.T, 16000, subtype="FLOAT")
    for source, name in ((tmp_path / "a.wav", "a.wav'"), ((channels, 16000), "<ndarray of shape")):
        caplog.clear()
        load_audio(source)
        assert [name in record.message for record in caplog.records] == [True] * cancels
        assert caplog.text.count('mono="first" of load_audio') == cancels
        caplog.clear()
        assert torch.equal(load_audio(source, mono="first")[0][0], torch.from_numpy(channels[0]))
        assert not caplog.records


def test_the_remedy_for_channels_that_cancel_each_other_out(caplog, monkeypatch):
    processor = released_processor()
    monkeypatch.setattr(processor.feature_extractor, "mono", "first")
    features, expected = (
        processor("<audio>", audio=(sound, 16000))["audio_feats"] for sound in (upside_down(), tone(seconds=2.0))
    )
    assert torch.equal(torch.as_tensor(features), torch.as_tensor(expected)) and not caplog.records


@pytest.mark.parametrize(
    ("sound", "is_silent"),
    [(np.zeros(16000), True), (8e-4 * tone(), True), (np.full(16000, 0.1), True), (4e-3 * tone(), False)],
    ids=["zeros", "too quiet", "constant", "quiet"],
)
def test_a_recording_without_sound_is_warned_of_once(tmp_path, caplog, processor, sound, is_silent):
    soundfile.write(tmp_path / "a.wav", sound, 16000, subtype="FLOAT")
    chat = [{"role": "user", "content": [{"type": "audio", "audio": str(tmp_path / "a.wav")}]}]
    assert "audio_feats" in processor.apply_chat_template(chat, tokenize=True, return_dict=True)
    assert caplog.text.count("a recording of 1.00 s holds no sound") == len(caplog.records) == is_silent
    caplog.clear()
    processor("<audio>", audio=processor.feature_extractor.fetch_audio(str(tmp_path / "a.wav")), sampling_rate=16000)
    assert len(caplog.records) == is_silent  # in the two steps of the library's pipelines, too


def test_the_encoder_is_chosen_in_a_call_as_in_a_chat(processor):
    """The released way and ours; SANM is the default."""
    sound = (tone(), 16000)
    chat = [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    plain = processor(text=["<audio>"], audios=[sound], return_tensors="pt")["audio_feats"]
    assert plain.shape[-1] == 560
    whisper = {"use_whisper_encoder": True}
    called = processor(text=["<audio>"], audios=[sound], return_tensors="pt", audio_kwargs=whisper)["audio_feats"]
    chatted = processor.apply_chat_template(chat, **options, **whisper)["audio_feats"]
    assert called.shape[-1] == 128 and torch.equal(called, chatted)
    assert torch.equal(processor.apply_chat_template(chat, **options)["audio_feats"], plain)


def test_audio_items_keep_their_rate(processor):
    wave = torch.zeros(1600)
    content = [
        {"type": "audio", "audio": wave},
        {"type": "audio", "audio": wave[None], "sample_rate": 8000},
        {"type": "audio", "audio": (wave, 22050)},
        {
            "type": "audio",
            "audio": [{"audio": wave, "sample_rate": 8000}, wave, {"array": wave, "sampling_rate": 44100}],
        },
    ]
    audios = processor.process_vision_info([{"role": "HUMAN", "content": content}])[2]
    assert [rate for _, rate in audios] == [16000, 8000, 22050, 8000, 16000, 44100]
    assert all(tuple(wave.shape) == (1, 1600) for wave, _ in audios)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such.wav", "'/no/such.wav': no such file; accepted is a wav, mp3, flac, ogg or m4a file"),
        (b"", "cannot read audio <0 bytes>"),
        (b"this is not sound" * 50, "cannot read audio <850 bytes>"),
        (b"\x89PNG\r\n\x1a\n" * 50, "cannot read audio <400 bytes>"),
        ({"rate": 3}, r"a dict with the keys \['rate'\]"),
        ((np.zeros(5), -1), "sampling rate -1 of audio"),
        ((np.zeros(5), 16000.5), "sampling rate 16000.5"),
        (np.zeros((0,)), "holds no samples"),
        (np.zeros(5, complex), "dtype torch.complex128"),
    ],
)
def test_audio_errors(source, message):
    with pytest.raises(ValueError, match=message):
        load_audio(source)


def test_audio_from_a_directory_and_unknown_mono(tmp_path):
    with pytest.raises(ValueError, match="it is a directory"):
        load_audio(tmp_path)
    with pytest.raises(ValueError, match="mono='left' is unknown; accepted are mean, first"):
        load_audio(np.zeros(5), mono="left")


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(0), "the take lasts 0.00 s; a voice needs at least 0.5 s, record more"),
        (torch.zeros(1, 3999), "the take lasts 0.50 s; a voice needs at least 0.5 s"),
        (torch.tensor([0.0, float("nan"), float("-inf")]).repeat(4000), "the take has 8000 NaN or infinite samples"),
        (torch.full((4000,), -17.0), "the take has samples up to 17; floats must be in -1..1, divide by full scale"),
    ],
)
def test_unusable_recordings(waveform, message):
    with pytest.raises(ValueError, match=message):
        raise_if_unusable(waveform, "the take", 8000, min_seconds=0.5, use="a voice")


def test_usable_recordings():
    raise_if_unusable(torch.full((2, 4000), 16.0), "the take", 8000, min_seconds=0.5, use="a voice")
    raise_if_unusable(torch.zeros(0))


def test_recordings_on_the_scale_of_integers_are_refused():
    with pytest.raises(ValueError, match=r"samples up to 32767; floats must be in -1..1, divide by full scale"):
        load_audio(np.array([0.0, 32767.0, -5.0]))


@pytest.mark.parametrize(
    "source", [[np.zeros(8), None], [[0.0, 0.5], [0.5, 0.0]], (np.zeros(8), float("inf")), (np.zeros(8), float("nan"))]
)
def test_what_is_no_rate_is_refused(source):
    with pytest.raises(ValueError, match="sampling rate .* must be a positive whole number of Hz"):
        load_audio(source)


def test_an_open_file_can_be_read_again(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1600, np.float32), 16000)
    with open(tmp_path / "a.wav", "rb") as file:
        assert load_audio(file)[0].shape == load_audio(file)[0].shape == (1, 1600)
