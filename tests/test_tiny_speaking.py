"""The stage that teaches Ming-Tiny to speak: its data, and a few steps of all of it up to a repository that speaks."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM

from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from ming.processing_bailingmm import BailingMMProcessor
from ming.talker_steps import StopRules
from ming.training.objectives import IGNORE
from training.tiny import speech
from training.tiny.revoicing import RevoicedData, RevoicedTask, speak_again
from training.tiny.speaking import FlowData, TalkerData, VocoderData, token_words, written
from training.tiny.speech import VARIANTS, SpeechPool, Voice
from training.tiny.stage import stage_parser
from training.tiny.stage_listeners import NETWORKS, load_task, train_network
from training.tiny.stage_speaking import (
    SPEAKERS,
    STAGES,
    export,
    hear,
    new_talker,
    talker_processor,
    tiny_detokenizer_config,
    train,
    unpack,
)

ROOT = Path(__file__).resolve().parents[1]


def tone(text: str, voice: Voice) -> np.ndarray:
    """Stands for espeak-ng, which only training needs: a harmonic tone that depends on text and voice."""
    time = np.arange(3000 + 500 * len(text)) / speech.SAMPLE_RATE
    pitch = 80 + 2 * voice.pitch + 10 * VARIANTS.index(voice.name.split("+")[1])
    letters = np.array([ord(letter) for letter in text])[(time * 10).astype(int) % len(text)] / 100
    return (0.3 * np.sin(2 * np.pi * pitch * time) + 0.1 * np.sin(2000 * letters * time)).astype(np.float32)


def starts(text: str, *voice) -> list[tuple[int, float]]:
    """When a `tone` begins the words of its text."""
    return [
        (place, (3000 + 500 * place) / speech.SAMPLE_RATE if place else 0.0)
        for place in range(len(text))
        if not place or text[place - 1] == " "
    ]


@pytest.fixture(scope="module")
def args(tmp_path_factory) -> argparse.Namespace:
    """Command-line arguments of a quick run with a pool of two voices, its listeners trained for two steps."""
    pool, runs = tmp_path_factory.mktemp("pool"), tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "speak", tone)
        patch.setattr(speech, "word_starts", starts)
        patch.setattr(speech, "voice_names", lambda split: tuple(SPEAKERS))
        speech._claim(pool, {"split": "train", "seed": 1})
        speech._build_shard(pool / "shard_00000.json", 0, 40, "train", seed=1)
    for network in NETWORKS:
        train_network(network, runs, SpeechPool(pool), quick=True)
    parser = stage_parser("stage_speaking", "", ("hear",))
    return parser.parse_args(["hear", "--quick", "--runs", str(runs), "--speech", str(pool)])


@pytest.fixture(scope="module")
def heard(args):
    return hear(args)


def test_the_pool_is_heard_once_and_read_back(args, heard):
    again = hear(args)
    assert all(torch.equal(one, two) for one, two in zip(heard.codes, again.codes, strict=True))
    for index in (0, 7):
        assert len(heard.codes[index]) == pytest.approx(len(heard.pool[index].waveform) / 320, abs=1)
    assert heard.embeddings.shape == (40, 192)


def test_utterances_are_spoken_again_once_and_heard_as_their_recordings(args, heard, tmp_path):
    detokenizer = AudioDetokenizer(tiny_detokenizer_config()).eval()
    path = tmp_path / "again.safetensors"
    again = speak_again(heard, detokenizer, path, 3, seed=1)
    kept = speak_again(heard, detokenizer, path, 3, seed=1)
    assert again.keys() == kept.keys() == {f"{way}{number}" for way in "ab" for number in range(3)} | {"index"}
    for number, index in enumerate(again["index"].tolist()):
        seconds = [len(again[f"{way}{number}"]) / speech.SAMPLE_RATE for way in "ab"]
        assert seconds == pytest.approx([len(heard.pool[index].waveform) / speech.SAMPLE_RATE] * 2, abs=0.05)
    data = RevoicedData(heard, again, 4, 5, seed=2)
    first = load_task("speaker_encoder", args.runs).encoder
    task = RevoicedTask(first, data).train()
    assert not task.encoder.training  # its statistics are those of recordings
    batch = data[0]
    assert batch["features"].shape[0] == 5 and torch.equal(batch["features"], data[0]["features"])
    loss = task(**batch)["loss"]
    wanted = torch.nn.functional.normalize(first(batch["features"]), dim=1)
    assert loss.item() == pytest.approx(
        1 - (wanted * task.targets[0][batch["numbers"]]).sum(dim=1).mean().item(), abs=1e-5
    )
    loss.backward()
    assert all(parameter.grad is not None for parameter in task.encoder.parameters())


def test_lenders_have_the_voice_of_the_utterance_and_are_others(heard):
    records = heard.pool.records
    for target in range(len(heard)):
        lenders = heard.lenders(target)
        assert target not in lenders
        assert {records[index]["voice"]["name"] for index in lenders} == {records[target]["voice"]["name"]}


def test_spoken_words_are_written_as_in_replies():
    words = "a small red circle on the left on a white background"
    forms = {written(words, np.random.default_rng(seed)) for seed in range(60)}
    assert {form.lower().rstrip(".,?").replace(",", "") for form in forms} == {words}
    assert {words, words.replace("left on", "left, on"), words.capitalize() + "."} <= forms


def test_tokens_belong_to_the_word_that_says_them(args, heard):
    tokenizer = talker_processor(args, heard).tokenizer
    spoken = "three stars on the left on a red background"
    starts = [(0, 0.0), (6, 0.3), (12, 0.7), (19, 0.9), (24, 1.2), (27, 1.3), (29, 1.4), (33, 1.6)]
    for text in (spoken, "Three stars on the left, on a red background."):
        encoded = tokenizer(text, return_offsets_mapping=True)
        words = [""] * len(starts)
        for token, word in zip(encoded["input_ids"], token_words(spoken, text, encoded, starts), strict=True):
            words[word] += tokenizer.decode([token])
        assert "".join(words) == text
        assert [word.strip(" ,.").lower() for word in words] == (
            ["three", "stars", "on the", "left", "on", "a", "red", "background"]
        )


def test_talker_examples_say_the_words_in_their_order(args, heard):
    thinker_size = 192
    processor = talker_processor(args, heard)
    talker = new_talker(thinker_size, processor.codec_bpe.vocab_size)
    data = TalkerData(heard, talker, processor, BailingMMProcessor.from_pretrained(ROOT), 8, 4, seed=0)
    batch = data[7]["talker"]
    for words, due in zip(batch["words"].tolist(), batch["due"].tolist(), strict=True):
        written_words = [word for word in words if word != IGNORE]
        assert set(written_words) == set(range(max(written_words) + 1)) and written_words == sorted(written_words)
        said = [word for word in due if word != IGNORE]
        assert said == sorted(said) and said[0] == 0 and said[-1] == max(written_words)
        assert due.count(said[-1]) == 1  # the end is due once, after everything else


def test_flow_examples_have_the_frames_that_their_codes_make(heard):
    config = tiny_detokenizer_config()
    data = FlowData(heard, config, 2, 4, seed=0)
    batch = data[1]
    assert batch["mel_lengths"].tolist() == [config.num_frames(n) for n in batch["code_lengths"].tolist()]
    assert all(torch.equal(batch[name], value) for name, value in data[1].items())
    assert not torch.equal(data[0]["mel"][0, :5], batch["mel"][0, :5])


def test_critics_have_their_say_in_the_last_third_of_the_steps(heard):
    data = VocoderData(heard.pool, tiny_detokenizer_config(), 10, 2, seed=0)
    assert [data[step]["adversary"].item() for step in range(10)] == [0.0] * 7 + [1.0] * 3
    assert data[0]["waveform"].shape == (2, 40 * 256)


def test_quick_stage_ends_in_a_repository_that_speaks(args, heard):
    for name in STAGES:
        train(name, args)
        before = load_file(args.runs / f"{name}.safetensors")
        train(name, args)  # finished: goes on from its last checkpoint, and has nothing left to do
        assert all(
            torch.equal(before[key], value) for key, value in load_file(args.runs / f"{name}.safetensors").items()
        )
    export(args)
    repository = args.runs / "model"
    size = sum(path.stat().st_size for path in repository.rglob("*") if path.suffix in (".safetensors", ".onnx"))
    assert size < 48e6
    model = AutoModelForMultimodalLM.from_pretrained(repository, trust_remote_code=True, dtype=torch.float32).eval()
    rules = StopRules(max_new_ids=20)
    own = model.speak("red", seed=1, rules=rules)
    assert own.waveforms[0].isfinite().all() and len(own.waveforms[0]) > 1000
    recording = (heard.pool[0].waveform, 16000)
    cloned = model.speak("red", prompt_audio=recording, prompt_text=heard.text(0), seed=1, rules=rules)
    assert len(cloned.waveforms[0]) > 1000
    assert set(model.components.talker_processor().voices) == {name for name, _ in SPEAKERS.values()}
    # Taken apart again, the repository is what every stage would go on from.
    (again := repository.with_name("again")).mkdir()
    unpack(argparse.Namespace(**{**vars(args), "runs": again, "thinker": repository}))
    for name in ("talker", "flow", "vocoder"):
        learned, unpacked = (load_file(runs / f"{name}.safetensors") for runs in (args.runs, again))
        assert learned.keys() == unpacked.keys()
        assert all(torch.equal(learned[key].bfloat16(), value.bfloat16()) for key, value in unpacked.items())
    assert (
        talker_processor(argparse.Namespace(runs=again), heard).codec_bpe.vocab_size
        == talker_processor(args, heard).codec_bpe.vocab_size
    )
