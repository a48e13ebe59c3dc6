"""The talker's processor: how it finds a repository, and when it loads the networks that clone voices."""

from pathlib import Path

import pytest

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
