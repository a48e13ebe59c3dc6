"""The talker's processor: how it finds a repository, and when it loads the networks that clone voices."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ming.talker_processor
from ming.talker_processor import FILES, BailingMMTalkerProcessor

ROOT = Path(__file__).resolve().parents[1]


def test_hub_options_reach_the_download(monkeypatch):
    asked = []
    monkeypatch.setattr(
        ming.talker_processor, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(ROOT)
    )
    options = {"revision": "v1", "cache_dir": "/cache", "token": "secret", "local_files_only": True}
    processor = BailingMMTalkerProcessor.from_pretrained("someone/ming", **options)
    assert asked == [(("someone/ming",), {**options, "allow_patterns": list(FILES)})]
    assert processor.voices and processor.directory == ROOT / "talker"
    BailingMMTalkerProcessor.from_pretrained(ROOT, **options)
    assert len(asked) == 1, "a directory is not looked for on the Hub"


def test_networks_that_clone_voices_are_loaded_when_asked_for(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        ming.talker_processor.VoiceEncoder, "from_pretrained", lambda folder: loaded.append(folder) or object()
    )
    processor = BailingMMTalkerProcessor.from_pretrained(ROOT)
    assert processor.voice() is next(iter(processor.voices.values())) and not loaded
    assert processor.load_voice_encoder() is processor.load_voice_encoder()
    assert loaded == [ROOT / "talker"]


def test_processor_without_a_directory_clones_no_voice():
    read = BailingMMTalkerProcessor.from_pretrained(ROOT)
    processor = BailingMMTalkerProcessor(read.tokenizer, read.codec_bpe, read.voices)
    with pytest.raises(ValueError, match="was not read from a directory, so it cannot clone voices; pass speaker="):
        processor.load_voice_encoder()


def test_a_voice_is_the_first_one_the_named_one_an_own_one_or_that_of_a_recording():
    processor = BailingMMTalkerProcessor.from_pretrained(ROOT)
    first, *_, last = processor.voices.values()
    own = replace(first, name="own")
    assert first is not last
    assert processor.voice() is first and processor.voice(last.name) is last and processor.voice(own) is own
    cloned = processor.voice(prompt_audio=ROOT / "demo" / "request.wav", prompt_text="what comes after three")
    assert cloned.prompt_text == "what comes after three" and len(cloned.prompt_codes) > 25
    again = processor.load_voice_encoder().encode(ROOT / "demo" / "request.wav", "what comes after three")
    assert torch.equal(cloned.speaker_embedding, again.speaker_embedding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speaker": "nobody"}, "unknown speaker 'nobody'; available are: "),
        ({"prompt_text": "red"}, "prompt_text was given without prompt_audio"),
        ({"prompt_audio": "x.wav"}, "prompt_audio needs prompt_text"),
        ({"prompt_audio": "x.wav", "prompt_text": ""}, "prompt_audio needs prompt_text"),
        ({"prompt_audio": "x.wav", "prompt_text": "red", "speaker": "anna"}, "either speaker='anna' or prompt_audio"),
    ],
)
def test_wrong_choices_of_a_voice_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BailingMMTalkerProcessor.from_pretrained(ROOT).voice(**arguments)


def test_without_voices_a_recording_is_asked_for():
    read = BailingMMTalkerProcessor.from_pretrained(ROOT)
    processor = BailingMMTalkerProcessor(read.tokenizer, read.codec_bpe, {}, read.directory)
    with pytest.raises(ValueError, match="has no voices/; pass prompt_audio= and prompt_text="):
        processor.voice()
