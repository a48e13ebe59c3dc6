"""The bundled checkpoint, used as its users do: demo, README, answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from training.tiny.evaluate import answer, questions_of, word_errors
from training.tiny.judge import read_picture, shows
from training.tiny.scenes import Scene, Shape
from training.tiny.world import TRANSCRIBE, sample_chat

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 48_000_000
WEIGHTS = ("*.safetensors", "*/*.safetensors", "*/*.onnx")
OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


def test_weights_are_small_and_complete(model):
    assert sum(path.stat().st_size for suffix in WEIGHTS for path in ROOT.glob(suffix)) <= MAX_BYTES
    assert model.audio_detokenizer is not None and model.components.talker_processor().voices
    llm = model.config.llm_config
    assert llm.multi_gate and llm.num_shared_experts == 2 and llm.num_experts >= 8 and llm.num_experts_per_tok >= 2


# Well below the measured values in the README: this guards the checkpoint, the table measures it.
FLOORS = {
    "image_qa": 0.93,
    "image_count_describe": 0.88,
    "two_images": 0.84,
    "multi_turn": 0.92,
    "video_qa": 0.9,
    "text_only": 0.92,
}


def exact_share(model, processor, row: str, samples: int) -> float:
    """Share of right greedy answers to unseen samples of a row that needs no voices."""
    asked = []
    for index in range(samples):
        asked += list(questions_of(sample_chat(row, np.random.default_rng((99, index)), "test").messages))
    replies = answer(model, processor, [prompt for prompt, _ in asked], whisper=False)
    return float(np.mean([reply == expected for reply, (_, expected) in zip(replies, asked, strict=True)]))


@pytest.mark.parametrize("row", FLOORS)
def test_most_answers_to_unseen_samples_are_right(model, processor, row):
    assert exact_share(model, processor, row, 96) >= FLOORS[row]


def test_a_batch_of_mixed_chats_answers_as_each_alone(model, processor):
    picture = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
    recording = {"type": "audio", "audio": str(ROOT / "demo" / "recording.wav")}
    clip = {"type": "video", "video": str(ROOT / "demo" / "clip.mp4")}
    contents = [
        "What comes after three?",
        [picture, {"type": "text", "text": "Describe the picture."}],
        [{"type": "text", "text": "Transcribe this recording."}, recording],
        [clip, {"type": "text", "text": "Which way does it move?"}],
        [picture, picture, {"type": "text", "text": "Do both pictures have the same background colour?"}],
        [clip, recording, picture, {"type": "text", "text": "In the picture, how many shapes are there?"}],
    ]
    chats = [[{"role": "user", "content": content}] for content in contents]
    together = answer(model, processor, chats, whisper=False)
    assert together == [answer(model, processor, [chat], whisper=False)[0] for chat in chats]
    assert all(together)


@pytest.mark.parametrize("name", [None, "iris", "oscar"])
def test_what_was_heard_as_codes_is_spoken_again(model, processor, name):
    """Speech tokenizer, speaker encoder, flow and vocoder: a recording in its own voice or in another one."""
    expected = json.loads((ROOT / "demo" / "expected.json").read_text())
    encoder, generator = model.components.talker_processor().load_voice_encoder(), torch.Generator().manual_seed(0)
    for file in ("recording", "question"):
        voice = encoder.encode(str(ROOT / "demo" / f"{file}.wav"), expected[file])
        embedding = (model.components.talker_processor().voices[name] if name else voice).speaker_embedding
        (waveform,) = model.audio_detokenizer.decode([voice.prompt_codes], embedding[None], generator=generator)
        rate = model.audio_detokenizer.config.sample_rate
        assert len(waveform) / rate == pytest.approx(len(voice.prompt_codes) / 50, abs=0.05)
        question = {"type": "text", "text": TRANSCRIBE[1]}
        content = [question, {"type": "audio", "audio": (waveform.numpy(), rate)}]
        (heard,) = answer(model, processor, [[{"role": "user", "content": content}]], whisper=False)
        assert word_errors(expected[file], heard) <= 1


def test_demo_answers_about_every_medium_speaks_and_draws(tmp_path):
    command = [sys.executable, "-m", "demo", "--output", str(tmp_path), "--image", "demo/picture.jpg"]
    result = subprocess.run(command, cwd=ROOT, env=OFFLINE, capture_output=True, text=True, check=True)
    assert "[6/6]" in result.stdout and "21.0 M parameters" in result.stdout
    *answers, spoken, drawing, edited = json.loads((tmp_path / "answers.json").read_text())
    expected = json.loads((ROOT / "demo" / "expected.json").read_text())
    assert spoken["answer"] == expected["picture"]
    assert word_errors(spoken["answer"].replace(",", ""), spoken["heard"]) <= 4
    assert soundfile.info(tmp_path / "reply.wav").samplerate == 22050
    for drawn, colour in ((drawing, "green"), (edited, "blue")):
        scene = Scene("white", (Shape("star", colour, "large", "center"),))
        assert shows(Image.open(tmp_path / drawn["drawn"]), scene), read_picture(Image.open(tmp_path / drawn["drawn"]))
    replies = {(Path(item["file"]).stem, item["question"], item["whisper"]): item["answer"] for item in answers}
    assert replies["picture", "Describe the picture.", False] == expected["picture"]
    questions = [key for key in replies if key[0] == "recording"]
    assert {whisper for _, _, whisper in questions} == {False, True}
    assert {replies[key] for key in questions} == {expected["recording"]}
    assert replies["clip", "Describe the video.", False] == expected["clip"]
