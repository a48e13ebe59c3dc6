"""`ming finetune speech` and `image`: data, trained weights, resuming, and the saved model."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from image_helpers import small_image_gen
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor

from ming.cli.usage import UsageError
from ming.configuration_bailingmm import BailingMMTalkerConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.modeling_talker import BailingMMTalker
from ming.talker_processor import BailingMMTalkerProcessor
from ming.training.finetune import main, parse
from ming.training.finetune_data import read_chats
from ming.training.finetune_outputs import DrawnReplies, SpokenReplies

ROOT = Path(__file__).resolve().parents[1]
RECORDING = ROOT / "demo" / "recording.wav"
WORDS = ("three", "four and five", "a red star", "white")
FILES = ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja")
TRAINED = ("--steps", "4", "--batch-size", "2", "--learning-rate", "1e-2", "--logging-steps", "1")


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Ming-Tiny with a small random talker over its own codes, and a small random image head."""
    directory = tmp_path_factory.mktemp("model")
    model = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32)
    speech = BailingMMTalkerProcessor.from_pretrained(ROOT)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = BailingMMTalkerConfig(
        llm_config={**sizes, "num_key_value_heads": 2, "max_position_embeddings": 2048},
        text_vocab_size=len(speech.tokenizer),
        audio_vocab_size=len(speech.codec_bpe.lengths),
        qa_model_hidden_size=model.config.llm_config.hidden_size,
    )
    model.talker, model.config.talker_config = BailingMMTalker(config), config
    model.save_pretrained(directory)
    for file in FILES:
        (directory / file).write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    small_image_gen(model.config.llm_config.hidden_size).save_pretrained(directory / "image_gen")
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Chats that end with recordings, and chats that end with pictures."""
    folder = tmp_path_factory.mktemp("data")
    waveform, rate = soundfile.read(RECORDING)
    spoken, drawn = [], []
    for index, words in enumerate(WORDS):
        soundfile.write(folder / f"{index}.wav", waveform[: rate + index * rate // 4], rate)
        size = (64, 64) if index % 2 else (120, 60)
        Image.fromarray(np.full((*size[::-1], 3), 40 * index, np.uint8)).save(folder / f"{index}.png")
        question = {"role": "user", "content": f"Say number {index}."}
        answer = [{"type": "text", "text": words}, {"type": "audio", "audio": f"{index}.wav"}]
        spoken.append({"messages": [question, {"role": "assistant", "content": answer}]})
        picture = [{"type": "image", "image": f"{index}.png"}]
        drawn.append({"messages": [question, {"role": "assistant", "content": picture}]})
    paths = {"speech": folder / "speech.jsonl", "image": folder / "image.jsonl"}
    for path, lines in zip(paths.values(), (spoken, drawn), strict=True):
        path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return paths


def command(what: str, repository: Path, data: dict[str, Path], output: Path, *options: str) -> list[str]:
    paths = ["--model", str(repository), "--data", str(data[what]), "--output", str(output)]
    return [what, *paths, *TRAINED, *options]


def parts(directory: Path) -> tuple[dict[str, torch.Tensor], ...]:
    """Weights of the thinker, the talker and the image head."""
    model = AutoModelForMultimodalLM.from_pretrained(directory, trust_remote_code=True, dtype=torch.float32)
    weights = model.state_dict()
    talker = {name: tensor for name, tensor in weights.items() if name.startswith("talker.")}
    thinker = {name: tensor for name, tensor in weights.items() if name not in talker}
    return thinker, talker, model.image_gen.load().state_dict()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("rank", [None, "4"], ids=["full", "lora"])
@pytest.mark.parametrize("what", ["speech", "image"])
def test_only_what_answers_is_trained(what, rank, repository, data, tmp_path):
    main(command(what, repository, data, tmp_path / "out", *(("--lora", rank) if rank else ())))
    thinker, talker, image = map(changed, parts(repository), parts(tmp_path / "out"))
    assert not thinker
    names, others = (talker, image) if what == "speech" else (image, talker)
    assert names and not others and not any(name.startswith("vae.") for name in names)
    if rank:
        assert all(re.search(r"_proj\.weight|attn[12]\.to_", name) for name in names)
    else:
        assert what == "speech" or {"query_tokens_dict.2x2", "query_tokens_dict.3x3", "proj_in.weight"} <= names
    losses = [json.loads(line).get("loss") for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert len([loss for loss in losses if loss is not None]) == 4


@pytest.mark.parametrize("what", ["speech", "image"])
def test_training_learns_and_goes_on_after_a_kill(what, repository, data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ("--steps", "24", "--save-steps", "12")
    main(command(what, repository, data, whole, *options))
    records = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    losses = [float(record["loss"]) for record in records if "loss" in record]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    main(command(what, repository, data, cut, *options))
    for checkpoint in cut.glob("checkpoint-24"):  # as if it had been killed behind step 12
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    main(command(what, repository, data, cut, *options))
    index = 1 if what == "speech" else 2
    assert not changed(parts(whole)[index], parts(cut)[index])


def test_a_spoken_batch_asks_for_the_recording(repository, data):
    model = AutoModelForMultimodalLM.from_pretrained(repository, trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    rows = read_chats(data["speech"], "audio")
    replies = SpokenReplies(rows, model, processor, 2, 4, 0)
    batch, chosen = replies[0], replies.chosen(0)
    assert sorted(chosen) == [0, 1, 2, 3] == sorted(replies.chosen(1))
    encode = model.components.talker_processor().codec_bpe.encode
    for row, index in enumerate(chosen):
        wanted = encode(replies.voice(index).prompt_codes, unknown="drop")
        said = batch["talker"]["audio_ids"][row, -len(wanted) :] - model.talker.config.text_vocab_size
        assert said.tolist() == list(wanted)
        assert replies.voice(index).prompt_text == WORDS[index]
    assert batch["chats"]["input_ids"].shape[0] == 4 and "labels" not in batch["chats"]
    for seconds, message in ((0.3, "needs at least 0.5 s"), (31.0, "takes at most 30 s")):
        noise = np.random.default_rng(0).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)
        replies = SpokenReplies([{**row, "target": (noise, 16_000)} for row in rows], model, processor, 2, 4, 0)
        with pytest.raises(ValueError, match=f"chat 1: .*{message}"):
            replies.voice(0)


def test_pictures_of_one_batch_have_one_native_size(repository, data):
    model = AutoModelForMultimodalLM.from_pretrained(repository, trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
    replies = DrawnReplies(read_chats(data["image"], "image"), model, processor, 4, 1, 0)
    assert len({replies.sizes[index] for index in range(4)}) == 2
    for index in range(4):
        pixels = replies.pixels(index)
        assert tuple(pixels.shape[1:]) == replies.sizes[index]
        assert torch.allclose(pixels, torch.tensor(40 * index / 127.5 - 1), atol=1e-6)
    assert sorted(index for step in range(4) for index in replies.chosen(step)) == [0, 1, 2, 3]


def test_bad_data_are_refused_before_the_model_is_read(data, tmp_path):
    def refusal(what: str, chat: dict) -> str:
        path = tmp_path / "bad.jsonl"
        path.write_text(json.dumps(chat) + "\n", encoding="utf-8")
        with pytest.raises(UsageError) as raised:
            main([what, "--model", "no such model", "--data", str(path), "--output", str(tmp_path / "out")])
        return str(raised.value)

    question, folder = {"role": "user", "content": "Say three."}, data["speech"].parent
    sound = {"type": "audio", "audio": str(folder / "0.wav")}
    picture = {"type": "image", "image": str(folder / "0.png")}
    text = {"type": "text", "text": "three"}

    def chat(*content: dict) -> dict:
        return {"messages": [question, {"role": "assistant", "content": list(content)}]}

    assert "the last message holds 0 items of type 'audio'" in refusal("speech", chat(text))
    assert "the last message holds 2 items of type 'image'" in refusal("image", chat(picture, picture))
    assert "an assistant's message is empty" in refusal("speech", chat(sound))
    assert "holds an item of type 'image', which is not trained here" in refusal("speech", chat(text, sound, picture))
    assert "no such file" in refusal("speech", chat(text, {"type": "audio", "audio": "absent.wav"}))
    assert "speaker 3 is not a name" in refusal("speech", {**chat(text, sound), "speaker": 3})


@pytest.fixture(scope="module")
def without_weights(repository, tmp_path_factory) -> Path:
    """The repository without its weights: what is refused with it is refused before they are read."""
    names = shutil.ignore_patterns("*.safetensors", "*.index.json")
    return Path(shutil.copytree(repository, tmp_path_factory.mktemp("bare") / "model", ignore=names))


def recorded(words: str, sound: str) -> list[dict]:
    return [{"type": "text", "text": words}, {"type": "audio", "audio": sound}]


LONG, SHORT = "Say " * 4096, "Say it."
UNUSABLE = {  # per target: the question, the answer, and a word of the error
    "speech": [
        (SHORT, recorded("three", "no_sound.wav"), "cannot read audio"),
        (SHORT, recorded("three", "short.wav"), "needs at least 0.5 s"),
        (SHORT, recorded("three", "long.wav"), "takes at most 30 s"),
        (SHORT, recorded("three", "silent.wav"), "the recording is silent"),
        (SHORT, recorded("three " * 99, "0.wav"), "which nobody says in the 1.0 s"),
        (SHORT, recorded("...", "0.wav"), "there is nothing to say in '...'"),
        (LONG, recorded("three", "0.wav"), "tokens is longer than the limit of 4096"),
    ],
    "image": [
        (SHORT, [{"type": "image", "image": "no_sound.wav"}], "cannot identify image file"),
        (SHORT, [{"type": "image", "image": 5}], "cannot read image"),
        (LONG, [{"type": "image", "image": "0.png"}], "tokens is longer than the limit of 4096"),
        ("Say " * 2044, [{"type": "image", "image": "0.png"}], "the prompt with its query tokens has"),
    ],
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_every_chat_is_used_before_the_weights_are_read(what, without_weights, data, tmp_path):
    folder, rows = data[what].parent, UNUSABLE[what]
    (folder / "no_sound.wav").write_text("no sound", encoding="utf-8")
    noise = np.random.default_rng(0).normal(0, 0.1, 31 * 16_000)
    for name, samples in (("short", noise[:4000]), ("long", noise), ("silent", 0 * noise[:16_000])):
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
    path = folder / f"bad_{what}.jsonl"
    chats = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said, _ in rows]
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats), encoding="utf-8")
    with pytest.raises(UsageError) as raised:
        main(command(what, without_weights, {what: path}, tmp_path / "out"))
    first, *lines = str(raised.value).splitlines()
    assert first == f"{path}: {len(rows)} of {len(rows)} chats are bad:"
    for number, line, (*_, message) in zip(range(1, len(rows) + 1), lines, rows, strict=True):
        assert line.startswith(f"  line {number}: ") and message in line


def test_a_speaker_needs_two_recordings(repository, data, tmp_path):
    path = data["speech"].with_name("one.jsonl")
    lines = map(json.loads, data["speech"].read_text().splitlines()[:3])
    rows = [{**row, "speaker": name} for row, name in zip(lines, "aab", strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="one.jsonl: 1 of 3 chats are bad:\n  line 3: speaker 'b' has one recording"):
        main(command("speech", repository, {"speech": path}, tmp_path / "out"))


def test_recordings_are_not_trained_by_the_target_text(data):
    with pytest.raises(ValueError, match="ming finetune speech"):
        read_chats(data["speech"])
    assert parse(["--model", "m", "--data", "d", "--output", "o"]).epochs == 3.0


def test_a_model_without_a_talker_is_refused_before_its_weights_are_read(data, tmp_path):
    silent = tmp_path / "silent"
    silent.mkdir()
    config = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))
    (silent / "config.json").write_text(json.dumps({**config, "talker_config": None}), encoding="utf-8")
    (silent / "configuration_bailingmm.py").write_bytes((ROOT / "configuration_bailingmm.py").read_bytes())
    with pytest.raises(UsageError, match="silent has no talker; give a model that speaks"):
        main(command("speech", silent, data, tmp_path / "out"))
