"""Audio front ends: parity with the goldens, lengths, batches and errors."""

import json
import math

import numpy as np
import pytest
import torch
from processor_helpers import GOLDENS, golden
from safetensors.torch import load_file
from synth import AUDIOS, audio_array

from ming.audio_features import BailingMMFeatureExtractor
from ming.release_files import read_cmvn

AUDIO = golden("audio.json")
TENSORS = load_file(GOLDENS / "audio.safetensors")
# Logarithms of nearly empty frequency bands carry the float32 rounding of the FFT, which differs between machines; the
# goldens themselves are that far from a float64 computation.
TOLERANCE, MEAN_TOLERANCE = 1e-4, 2e-6


@pytest.fixture(scope="module")
def extractor():
    shift, scale = read_cmvn(GOLDENS / "am.mvn")
    return BailingMMFeatureExtractor(cmvn_shift=shift, cmvn_scale=scale, mono="first")


def assert_near(actual, expected):
    difference = (actual - expected).abs()
    assert actual.shape == expected.shape
    assert difference.max() < TOLERANCE and difference.mean() < MEAN_TOLERANCE, (difference.max(), difference.mean())


def golden_input(name):
    return torch.from_numpy(audio_array(name)), AUDIOS[name][0]


@pytest.mark.parametrize("name", sorted(AUDIOS))
@pytest.mark.parametrize("kind", ["sanm", "whisper"])
def test_features_equal_golden(extractor, name, kind):
    features = extractor([golden_input(name)], use_whisper_encoder=kind == "whisper")
    assert_near(features["audio_feats"][0], TENSORS[f"{name}.{kind}"])
    expected = AUDIO["audios"][name][kind]
    assert features["audio_feats_lengths"].tolist() == expected["audio_feats_lengths"]
    assert features["encoder_feats_lengths"].tolist() == [[expected["placeholders"]]]


@pytest.mark.parametrize("name", ["mono8k_0.80s", "mono44k1_0.70s"])
def test_resampling_equals_golden(extractor, name):
    assert torch.allclose(extractor.load(golden_input(name)), TENSORS[f"{name}.mono16k"], atol=1e-6, rtol=0)


def test_mean_of_channels_is_the_default():
    stereo, rate = golden_input("stereo16k_0.60s")
    mean = BailingMMFeatureExtractor().load((stereo, rate))
    assert torch.allclose(mean, stereo.mean(0), atol=1e-7)
    assert torch.equal(BailingMMFeatureExtractor(mono="first").load((stereo, rate)), stereo[0])


def test_cmvn_is_read_as_in_the_golden():
    shift, scale = read_cmvn(GOLDENS / "am.mvn")
    assert torch.tensor(shift[:4]).tolist() == AUDIO["cmvn"]["first4_shift"]
    assert torch.tensor(scale[:4]).tolist() == AUDIO["cmvn"]["first4_scale"]
    assert len(shift) == len(scale) == 560


def test_bad_cmvn(tmp_path):
    (tmp_path / "am.mvn").write_text("<Nnet> <AddShift> 2 2 <LearnRateCoef> 0 [ 1 2 ] </Nnet>")
    with pytest.raises(ValueError, match=r"no <Rescale> \[ ... \] vector"):
        read_cmvn(tmp_path / "am.mvn")
    with pytest.raises(ValueError, match="both hold 560 values"):
        BailingMMFeatureExtractor(cmvn_shift=[0.0], cmvn_scale=[1.0])
    with pytest.raises(ValueError, match="both be None or both hold"):
        BailingMMFeatureExtractor(cmvn_shift=[0.0] * 560)


@pytest.mark.parametrize("case", AUDIO["sanm_lengths"], ids=lambda case: str(case["samples"]))
def test_lengths_by_samples(extractor, case):
    assert extractor.num_tokens(case["samples"]) == case["sanm_len"]
    frames = {entry["mel_frames"]: entry["encoder_len"] for entry in AUDIO["whisper_lengths"]}
    if case["whisper_frames"] in frames:
        assert extractor.num_tokens(case["samples"], True) == frames[case["whisper_frames"]]


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 960, 1360, 4321])
@pytest.mark.parametrize("use_whisper", [False, True])
def test_number_of_tokens_without_features_equals_that_with(extractor, samples, use_whisper):
    features = extractor(0.1 * torch.randn(1, samples), use_whisper_encoder=use_whisper)
    length = int(features["audio_feats_lengths"])
    assert features["audio_feats"].shape[1] == length
    tokens = math.ceil(math.ceil(length / 2) / 2) if use_whisper else length
    assert int(features["encoder_feats_lengths"]) == tokens == extractor.num_tokens(samples, use_whisper)


@pytest.mark.parametrize("kind", ["sanm", "whisper"])
def test_batch_is_padded_with_zeros(extractor, kind):
    names = ["mono16k_1.00s", "short16k_0.05s", "mono8k_0.80s"]
    batch = extractor([golden_input(name) for name in names], use_whisper_encoder=kind == "whisper")
    expected = AUDIO["batch"][kind]
    assert list(batch["audio_feats"].shape) == expected["feats"]["shape"]
    assert batch["audio_feats_lengths"].tolist() == expected["audio_feats_lengths"]
    for row, name in zip(batch["audio_feats"], names, strict=True):
        alone = TENSORS[f"{name}.{kind}"]
        assert_near(row[: len(alone)], alone)
        assert not row[len(alone) :].any()


def test_several_recordings_of_a_row_follow_each_other(extractor):
    waves = [0.1 * torch.randn(1, 400 + 960 * n) for n in range(3)]
    batch = extractor([[waves[2], waves[0]], [], [waves[1]]])
    assert batch["audio_feats_lengths"].tolist() == [[3, 1], [0, 0], [2, 0]]
    for index, wave, start, length in ((0, waves[2], 0, 3), (0, waves[0], 3, 1), (2, waves[1], 0, 2)):
        alone = extractor(wave)["audio_feats"][0]
        assert torch.equal(batch["audio_feats"][index, start : start + length], alone)
    assert not batch["audio_feats"][1].any()


def test_stacking_repeats_the_edges():
    """Filter banks of 8 frames of 25 ms, one every 10 ms: windows of 7 frames, one every 6, centred."""
    waveform = 0.1 * torch.randn(1, 400 + 7 * 160)
    (frames,) = BailingMMFeatureExtractor(lfr_m=1, lfr_n=1)(waveform)["audio_feats"]
    (stacked,) = BailingMMFeatureExtractor()(waveform)["audio_feats"]
    windows = [[0, 0, 0, 0, 1, 2, 3], [3, 4, 5, 6, 7, 7, 7]]
    assert torch.equal(stacked, torch.stack([frames[window].flatten() for window in windows]))


def test_silence_is_finite(extractor):
    assert torch.isfinite(extractor(torch.zeros(1, 1600))["audio_feats"]).all()


@pytest.mark.parametrize(
    ("audio", "use_whisper", "message"),
    [
        (torch.zeros(1, 399), False, r"audio of 399 samples \(24.9 ms at 16000 Hz\) is shorter than one frame of 400"),
        (torch.zeros(1, 200), True, "audio of 200 samples .* shorter than one frame of 201 samples; record more"),
        (
            torch.zeros(1, 16000 * 4),
            False,
            "audio of 4.00 s is longer than the 3 s that the SANM encoder takes",
        ),
        (
            torch.zeros(1, 16000 * 3),
            True,
            "audio of 3.00 s is longer than the 2 s that the Whisper encoder",
        ),
        (torch.tensor([[0.0, float("nan")] * 500]), False, "has 500 NaN or infinite samples"),
        (torch.full((1, 500), float("inf")), True, "has 500 NaN or infinite samples"),
        ([], False, "empty list"),
        ((torch.zeros(500), 0), False, "sampling rate 0 .* must be a positive whole number of Hz"),
        ((torch.zeros(500), 44101), False, "44101 Hz has no small ratio to 16000 Hz"),
        (torch.zeros(2, 3, 500), False, "holds no samples of one recording"),
        (torch.zeros(500, dtype=torch.bool), False, "dtype torch.bool"),
    ],
)
def test_errors(audio, use_whisper, message):
    extractor = BailingMMFeatureExtractor(max_seconds=3.0, max_whisper_positions=100)
    with pytest.raises(ValueError, match=message):
        extractor(audio, use_whisper_encoder=use_whisper)


def test_longest_audio_is_exact():
    extractor = BailingMMFeatureExtractor(max_seconds=3.0, max_whisper_positions=100)
    assert extractor(torch.zeros(1, 48000))["audio_feats"].shape[1] == 50
    assert extractor(torch.zeros(1, 32159), use_whisper_encoder=True)["audio_feats"].shape[1] == 200
    with pytest.raises(ValueError, match="longer than the 2 s"):
        extractor(torch.zeros(1, 32160), use_whisper_encoder=True)


def test_saved_and_loaded(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    again = BailingMMFeatureExtractor.from_pretrained(tmp_path)
    assert again.to_dict() == extractor.to_dict()
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["cmvn_shift"] == extractor.cmvn_shift


def test_fetching_for_pipelines(extractor):
    stereo = golden_input("stereo16k_0.60s")
    one, two = extractor.fetch_audio([stereo, (np.zeros(800, np.float32), 8000)])
    assert one.shape == (9600,) and two.shape == (1600,)
    assert torch.equal(extractor(one)["audio_feats"], extractor([stereo])["audio_feats"])


def test_output_types(extractor):
    assert isinstance(extractor(torch.zeros(1, 500), return_tensors="np")["audio_feats"], np.ndarray)
    assert extractor(torch.zeros(1, 500)).audio_feats_lengths.dtype == torch.int64


@pytest.mark.parametrize("use_whisper", [False, True])
def test_recordings_beyond_those_of_the_training_are_warned_of(use_whisper, caplog):
    noise = 0.1 * torch.randn(16000 * 3, generator=torch.Generator().manual_seed(0)), 16000
    for trained, warned in ((None, False), (3.0, False), (2.5, True)):
        caplog.clear()
        BailingMMFeatureExtractor(trained_seconds=trained)([noise], use_whisper_encoder=use_whisper)
        said = "a recording of 3.00 s is longer than those that this checkpoint was trained on (2.5 s)"
        assert (said in caplog.text) == warned == bool(caplog.text)
