"""The networks of Ming-Tiny that listen to a voice prompt: shapes, quantisation, padding, data, export, training."""

import json

import numpy as np
import pytest
import torch

from ming.voices import SPEAKER_FILE, TOKENIZER_FILE, VoiceEncoder
from training.tiny import speech, stage_listeners
from training.tiny.listeners import (
    FiniteScalarQuantizer,
    SpeechTokenizer,
)
from training.tiny.scenes import split_of
from training.tiny.speech import ACCENTS, VARIANTS, SpeechPool, Utterance, Voice
from training.tiny.stage_listeners import (
    ALPHABET,
    NETWORKS,
    PITCH_CLASSES,
    TRIALS,
    SpeakerEncoderData,
    SpeakerEncoderTask,
    SpeechTokenizerData,
    SpeechTokenizerTask,
    angular_margin_loss,
    evaluate_speaker_encoder,
    evaluate_speech_tokenizer,
    load_task,
    new_task,
    painting,
    perplexity,
    sample_trial,
    spell,
    train_network,
    voice_labels,
)

LENGTHS = (10, 11, 57, 1000, 2999, 3000)
MEGABYTE = 1e6


def tone(text: str, voice: Voice) -> np.ndarray:
    """What `speak` is replaced by: a harmonic tone that depends on text and voice, without espeak-ng."""
    time = np.arange(3000 + 800 * len(text)) / speech.SAMPLE_RATE
    pitch = 80 + 2 * voice.pitch + 10 * VARIANTS.index(voice.name.split("+")[1])
    letters = np.array([ord(letter) for letter in text])[(time * 10).astype(int) % len(text)] / 100
    return (0.3 * np.sin(2 * np.pi * pitch * time) + 0.1 * np.sin(2000 * letters * time)).astype(np.float32)


def starts(text: str, *voice) -> list[tuple[int, float]]:
    """What `word_starts` is replaced by: the listeners have no use for words."""
    return [(0, 0.0)]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "speak", tone)
        patch.setattr(speech, "word_starts", starts)
        speech._claim(path, {"split": "train", "seed": 1})
        speech._build_shard(path / "shard_00000.json", 0, 24, "train", seed=1)
    return SpeechPool(path)


@pytest.fixture(scope="module")
def folder(pool, tmp_path_factory):
    """What both stages write after two steps."""
    runs = tmp_path_factory.mktemp("runs")
    for network in NETWORKS:
        train_network(network, runs, pool, quick=True)
    return runs


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_task("speech_tokenizer", folder).tokenizer


@pytest.fixture(scope="module")
def encoder(folder):
    return load_task("speaker_encoder", folder).encoder


# Quantisation


@pytest.mark.parametrize("levels", [(8, 6, 5), (4, 4, 4, 4), (2,)])
def test_every_code_has_values_of_its_own(levels):
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(quantizer.codebook_size)
    values = quantizer.values(codes)
    assert values.shape == (int(np.prod(levels)), len(levels)) and len(values.unique(dim=0)) == len(codes)
    assert (values.amin(0) == -1).all() and (values.amax(0) == 1).all()
    # The value is also where the bounded latent has to be.
    latents = torch.atanh(values.clamp(-0.999, 0.999))
    assert torch.equal(quantizer.codes(latents), codes)
    assert torch.allclose(quantizer(latents), values, atol=1e-6)


def test_quantiser_passes_the_gradient_of_the_bounded_latents():
    quantizer, latents = FiniteScalarQuantizer(), torch.randn(50, 3, requires_grad=True)
    weight = torch.randn(50, 3)
    (quantizer(latents) * weight).sum().backward()
    assert torch.allclose(latents.grad, weight * (1 - latents.detach().tanh() ** 2), atol=1e-6)
    extreme = torch.tensor([[-50.0, -50.0, -50.0], [50.0, 50.0, 50.0]])
    assert quantizer.codes(extreme).tolist() == [0, quantizer.codebook_size - 1]


def test_perplexity_counts_equally_frequent_codes():
    assert perplexity(torch.arange(7).repeat(3)).item() == pytest.approx(7)
    assert perplexity(torch.zeros(9, dtype=torch.long)).item() == pytest.approx(1)


# Networks


def test_batch_of_recordings_equals_each_alone(tokenizer):
    lengths = torch.tensor([1, 40, 77, 90])
    features = torch.randn(4, 128, 90)
    codes = tokenizer(features, lengths)
    assert codes.shape == (4, 45) and codes.dtype == torch.int64
    for row, length, own in zip(features, lengths.tolist(), codes, strict=True):
        count = (length + 1) // 2
        assert torch.equal(own[:count], tokenizer(row[None, :, :length], torch.tensor([length]))[0])
        assert not own[count:].any()
    assert len(codes.unique()) > 10 and codes.min() >= 0 and codes.max() < tokenizer.quantizer.codebook_size


def test_padding_does_not_touch_loss_or_transcript(tokenizer):
    task = SpeechTokenizerTask(tokenizer, width=32).eval()
    lengths, texts = torch.tensor([63, 120]), ["red", "a green star"]
    features = torch.randn(2, 128, 120)
    noisy = features.clone()
    noisy[0, :, 63:] = 100.0
    first = task(features, features, lengths, **spell(texts))
    second = task(noisy, noisy, lengths, **spell(texts))
    for name, value in first.items():
        assert value.item() == pytest.approx(second[name].item(), abs=1e-5), name
    assert task.transcribe(features, lengths) == task.transcribe(noisy, lengths)
    alone = task.transcribe(features[:1, :, :63], lengths[:1])
    assert alone == task.transcribe(features, lengths)[:1] and set(alone[0]) <= set(ALPHABET)


def test_painting_means_four_bands():
    features = torch.randn(2, 128, 7)
    painted = painting(features)
    assert painted.shape == (2, 4, 2, 32)
    assert painted[1, 1, 1, 1].item() == pytest.approx(features[1, 4:8, 3].mean().item(), abs=1e-6)
    assert not painted[:, 3, 1].any()


def test_embedding_has_one_length_and_batch_equals_single(encoder):
    features = torch.randn(3, 57, 80)
    embedding = encoder(features)
    assert embedding.shape == (3, 192)
    assert torch.allclose(embedding.norm(dim=1), torch.tensor(192.0).sqrt())
    assert torch.allclose(embedding[1:2], encoder(features[1:2]), atol=1e-4)


def test_networks_are_small(tokenizer, encoder, folder):
    tokenizer_size, encoder_size = (sum(p.numel() for p in module.parameters()) for module in (tokenizer, encoder))
    assert tokenizer_size <= 1_000_000 and encoder_size <= 500_000
    assert (folder / TOKENIZER_FILE).stat().st_size <= 2 * MEGABYTE
    assert (folder / SPEAKER_FILE).stat().st_size <= 2 * MEGABYTE


# Export


@pytest.fixture(scope="module")
def sessions(folder):
    voice_encoder = VoiceEncoder.from_pretrained(folder)
    return voice_encoder.tokenizer_session, voice_encoder.speaker_session


@pytest.mark.parametrize("frames", LENGTHS)
def test_exported_tokenizer_gives_the_same_codes(tokenizer, sessions, frames):
    features, length = torch.randn(1, 128, frames), torch.tensor([frames], dtype=torch.int32)
    (codes,) = sessions[0].run(["codes"], {"features": features.numpy(), "lengths": length.numpy()})
    with torch.no_grad():
        expected = tokenizer(features, length)
        positions = tokenizer.quantizer.positions(tokenizer.latents(features, length))
    assert codes.dtype == np.int64 and codes.shape == (1, (frames + 1) // 2)
    # Rounding of sums differs between machines: only a position half-way between two digits may go either way.
    is_tie = ((positions - positions.floor() - 0.5).abs() < 1e-4).any(dim=-1)
    assert torch.equal(torch.from_numpy(codes)[~is_tie], expected[~is_tie]) and is_tie.float().mean() < 0.05


@pytest.mark.parametrize("frames", LENGTHS)
def test_exported_encoder_gives_the_same_embedding(encoder, sessions, frames):
    features = torch.randn(1, frames, 80)
    (embedding,) = sessions[1].run(["embedding"], {"features": features.numpy()})
    with torch.no_grad():
        assert np.allclose(embedding, encoder(features).numpy(), atol=1e-4) and embedding.shape == (1, 192)


def test_files_name_no_path_of_this_machine(folder):
    for name in (TOKENIZER_FILE, SPEAKER_FILE):
        assert b"listeners.py" not in (folder / name).read_bytes()


def test_voice_encoder_clones_with_the_files(folder):
    waveform = torch.from_numpy(tone("a small red circle", Voice("en+f3")))
    voice = VoiceEncoder.from_pretrained(folder).encode(waveform, "a small red circle")
    assert voice.prompt_codes.shape == ((len(waveform) // 160 + 1) // 2,)
    assert voice.speaker_embedding.shape == (192,)


# Data and objectives


@pytest.mark.parametrize("data_class", [SpeechTokenizerData, SpeakerEncoderData])
def test_data_depend_on_seed_and_step_only(pool, data_class):
    first, again, other = (data_class(pool, 3, 3, seed, noisy=0.5) for seed in (5, 5, 6))
    assert len(first) == 3
    for name, value in first[2].items():
        assert torch.equal(value, again[2][name]), name
    for different in (first[1], other[2]):
        assert any(
            value.shape != different[name].shape or not torch.equal(value, different[name])
            for name, value in first[2].items()
        )


def test_tokenizer_hears_noise_and_paints_what_is_clean(pool):
    batch = SpeechTokenizerData(pool, 1, 4, seed=0, noisy=1.0)[0]
    assert batch["features"].shape == batch["clean"].shape and batch["features"].shape[1] == 128
    assert (batch["features"] - batch["clean"]).abs().mean() > 0.01
    assert batch["lengths"].max() == batch["features"].shape[2]
    clean = SpeechTokenizerData(pool, 1, 4, seed=0, noisy=0.0)[0]
    assert torch.equal(clean["features"], clean["clean"])


def test_spelling_reads_back_and_refuses_other_letters():
    labels = spell(["red", "a star"])
    assert labels["target_lengths"].tolist() == [3, 6] and labels["targets"].shape == (2, 6)
    assert "".join(ALPHABET[place] for place in labels["targets"][1]) == "a star"
    with pytest.raises(ValueError):
        spell(["7"])


def test_voice_labels_tell_variant_pitch_accent_and_speed():
    labels = voice_labels([Voice("en+m1", 120, 20), Voice("en-us-nyc+steph", 220, 80), Voice("en-us+m1", 170, 31)])
    assert labels["timbre"].tolist() == [0, len(VARIANTS) * PITCH_CLASSES - 1, 1]
    assert labels["accent"].tolist() == [0, len(ACCENTS) - 1, 1]
    assert labels["speed"].tolist() == [-1.0, 1.0, 0.0]


def test_angular_margin_adds_to_the_angle_of_the_right_class():
    angle = torch.tensor(0.7)
    cosines = torch.tensor([[angle.cos(), 0.2], [0.1, angle.cos()]])
    moved = (angle + stage_listeners.MARGIN).cos()
    expected = torch.tensor([[moved, 0.2], [0.1, moved]]) * stage_listeners.SCALE
    labels = torch.tensor([0, 1])
    loss = angular_margin_loss(cosines, labels)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(expected, labels).item(), rel=1e-5)


@pytest.mark.parametrize("name, data_class", [("speech_tokenizer", SpeechTokenizerData), ("speaker_encoder", None)])
def test_every_weight_gets_a_gradient_and_the_loss_falls(pool, name, data_class):
    task = new_task(name)
    batch = (data_class or SpeakerEncoderData)(pool, 1, 4, seed=0)[0]
    optimizer = torch.optim.AdamW(task.parameters(), 2e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        outputs = task(**batch)
        outputs["loss"].backward()
        assert all(parameter.grad is not None for parameter in task.parameters())
        optimizer.step()
        losses.append(outputs["loss"].item())
    assert losses[-1] < 0.8 * losses[0]


# Stage


def test_quick_training_leaves_weights_and_a_log(folder, pool):
    assert isinstance(load_task("speaker_encoder", folder), SpeakerEncoderTask)
    for name in ("speech_tokenizer", "speaker_encoder"):
        log = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        assert log[-1]["step"] == 2
        untrained, trained = new_task(name).state_dict(), load_task(name, folder).state_dict()
        assert untrained.keys() == trained.keys()
        assert any(not torch.equal(value, trained[key]) for key, value in untrained.items())
    with pytest.raises(FileNotFoundError):
        load_task("speech_tokenizer", folder / "nothing")


class PerfectTokenizerTask(SpeechTokenizerTask):
    """Knows what is said: for the word error rate."""

    def __init__(self, replies: list[str]):
        super().__init__(SpeechTokenizer(blocks=1), width=16)
        self.replies = replies

    def transcribe(self, features, lengths):
        said, self.replies = self.replies[: len(lengths)], self.replies[len(lengths) :]
        return said


def test_word_error_rate_of_the_tokenizer():
    texts = ["red green", "a blue star", "two"]
    spoken = [Utterance(tone(text, Voice("en+m1")), text, Voice("en+m1")) for text in texts]
    result = evaluate_speech_tokenizer(PerfectTokenizerTask(["red green", "a star", "two"]), spoken, batch_size=2)
    assert result["wer"] == pytest.approx(100 / 6)
    assert 1 <= result["perplexity"] <= result["codes"] <= 240 and result["mel_l1"] > 0
    noisy = evaluate_speech_tokenizer(PerfectTokenizerTask(["", "", ""]), spoken, snr=15.0)
    assert noisy["wer"] == 100 and noisy["mel_l1"] != result["mel_l1"]


def test_trials_compare_unseen_voices(monkeypatch, encoder):
    for kind in TRIALS:
        for seed in range(20):
            voice, other = sample_trial(np.random.default_rng(seed), kind)
            assert split_of(voice.name) == split_of(other.name) == "test" and voice != other
            if kind == "pitch":
                assert voice.name == other.name and abs(voice.pitch - other.pitch) >= 20
            else:
                assert voice.name.split("+")[1] != other.name.split("+")[1]
                assert (voice.pitch == other.pitch) or kind == "any"
    monkeypatch.setattr(stage_listeners, "speak", tone)
    result = evaluate_speaker_encoder(encoder, trials=4)
    assert set(result) == set(TRIALS) and all(0 <= value <= 100 for value in result.values())
    # Nothing is nearer than anything else to an encoder that embeds all voices alike.
    monkeypatch.setattr(encoder, "forward", lambda features: torch.ones(len(features), 192))
    assert evaluate_speaker_encoder(encoder, trials=2) == dict.fromkeys(TRIALS, 0.0)
