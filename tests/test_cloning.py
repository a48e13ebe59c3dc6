"""A recorded voice in every call that speaks, with Ming-Tiny and its own listening networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ming.events import AudioChunk
from ming.loading import load_model
from ming.voices import Voice, check_words, load_voices

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
WORDS = json.loads((DEMO / "expected.json").read_text(encoding="utf-8"))["request"]
CLONED = {"prompt_audio": str(DEMO / "request.wav"), "prompt_text": WORDS}
QUESTION = [{"role": "user", "content": "What comes after three?"}]


@pytest.fixture(scope="module")
def inputs(processor):
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template(QUESTION, **options)


def heard(events) -> torch.Tensor:
    return torch.cat([event.waveform for event in events if isinstance(event, AudioChunk)])


def test_every_call_that_speaks_takes_a_recording(model, inputs):
    preset = model.speak("four", seed=0).waveforms[0]
    spoken = {
        "speak": model.speak("four", seed=0, **CLONED).waveforms[0],
        "speak_stream": heard(model.speak_stream("four", seed=0, **CLONED)),
        "generate": model.generate(**inputs, generation_mode="audio", seed=0, max_new_tokens=8, **CLONED).waveforms[0],
        "stream": heard(model.stream(**inputs, generation_mode="audio", seed=0, max_new_tokens=8, **CLONED)),
    }
    for name, waveform in spoken.items():
        assert 0.1 < len(waveform) / 22050 < 3 and waveform.abs().max() > 0.01, name
        assert waveform.shape != preset.shape or not torch.allclose(waveform, preset, atol=1e-2), name
    # The same seed gives the same codes, and so the same length, streamed or not.
    assert spoken["speak"].shape == spoken["speak_stream"].shape
    assert spoken["generate"].shape == spoken["stream"].shape


@pytest.mark.parametrize("missing", ["prompt_text", "prompt_audio"])
def test_a_recording_goes_with_its_words(model, inputs, missing):
    given = {name: value for name, value in CLONED.items() if name != missing}
    for call in (
        lambda: model.speak("four", **given),
        lambda: model.speak_stream("four", **given),
        lambda: model.generate(**inputs, generation_mode="audio", **given),
        lambda: model.stream(**inputs, generation_mode="audio", **given),
    ):
        with pytest.raises(ValueError, match="prompt_audio"):
            call()


def test_words_that_nobody_says_in_that_time_are_refused(model):
    with pytest.raises(ValueError, match="which nobody says in the .* s of the recording.*Give the words"):
        model.speak("four", **{**CLONED, "prompt_text": 30 * f"{CLONED['prompt_text']}. "})


@pytest.mark.parametrize(
    ("words", "seconds", "said"),
    [
        ("what comes after three", 1.5, ""),
        ("三加四等于几", 0.8, ""),
        ("hi", 4.9, "words of the recording are missing"),
    ],
)
def test_too_few_words_are_logged(words, seconds, said, caplog):
    check_words(words, seconds)
    assert (said in caplog.text) and bool(said) == bool(caplog.text)


def test_two_sentences_in_one_recording_are_warned_of(processor, caplog):
    parts = [soundfile.read(DEMO / f"{name}.wav", dtype="float32")[0] for name in ("recording", "question")]
    both = np.concatenate([parts[0], np.zeros(8000, np.float32), parts[1]])
    for waveform, warned in ((parts[0], False), (both, True)):
        caplog.clear()
        item = {"type": "audio", "audio": (waveform, 16000)}
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        processor.apply_chat_template([{"role": "user", "content": [item]}], **options)
        assert ("of 7.76 s is longer than those that this checkpoint was trained on (7.5 s)" in caplog.text) == warned


@pytest.fixture(scope="module")
def clones(model):
    """Two people whose voices were cloned, one after the other."""
    parts = model.components.talker_processor()
    words = json.loads((DEMO / "expected.json").read_text(encoding="utf-8"))
    return tuple(parts.voice(None, str(DEMO / f"{name}.wav"), words[name]) for name in ("request", "question"))


@pytest.fixture
def speaking():
    """A model of its own, whose voices a test may change."""
    return load_model(ROOT, device="cpu", parts=["talker"])


def test_voices_of_a_saved_model_are_those_of_the_model_under_their_keys(speaking, clones, tmp_path):
    voices = speaking.components.talker_processor().voices
    voices["anna"], voices["bob"] = clones
    del voices["oscar"]
    speaking.save_pretrained(tmp_path / "model")
    speaking.components.talker_processor().save_pretrained(tmp_path / "processor")
    for saved in ("model", "processor"):
        again = load_voices(tmp_path / saved / "voices")
        assert list(again) == ["anna", "bob", "iris"], saved
        assert all(again[name].sounds_like(voice) for name, voice in voices.items()), saved
    voices["bob"] = clones[0]  # a voice of the model that was changed replaces what was saved before
    speaking.save_pretrained(tmp_path / "model")
    assert Voice.load(tmp_path / "model" / "voices" / "bob").sounds_like(clones[0])


@pytest.mark.parametrize(
    ("name", "voice", "error", "message"),
    [
        ("../anna", 0, ValueError, "voice name '../anna' must be a file name"),
        ("anna", None, TypeError, r"voices\['anna'\]=None must be a Voice"),
        ("anna", "recording.wav", TypeError, r"voices\['anna'\]='recording.wav' must be a Voice"),
    ],
)
def test_what_is_no_voice_is_not_saved(speaking, clones, tmp_path, name, voice, error, message):
    speaking.components.talker_processor().voices[name] = clones[voice] if voice == 0 else voice
    with pytest.raises(error, match=message):
        speaking.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_clone_is_not_saved_over_another_one(clones, tmp_path):
    anna, bob = clones
    assert anna.save(tmp_path) == anna.save(tmp_path)  # the same once more
    with pytest.raises(ValueError, match=r"has another voice 'prompt'; save this one .* save\(folder, name="):
        bob.save(tmp_path)
    assert bob.save(tmp_path, name="bob").name == "bob.safetensors"
    voices = load_voices(tmp_path)
    assert list(voices) == ["bob", "prompt"] and voices["bob"].sounds_like(bob) and voices["prompt"].sounds_like(anna)
