"""`transformers serve` over the remote code, asked by the openai client and by `transformers chat`."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from openai import OpenAI
from transformers import AutoProcessor, GenerationConfig
from transformers.models.auto import modeling_auto

from ming import compat

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = json.loads((ROOT / "demo" / "expected.json").read_text(encoding="utf-8"))
TRANSFORMERS = str(Path(sys.executable).parent / "transformers")
SECONDS = 120  # that a process may take on a busy machine


def encoded(name: str) -> str:
    return base64.b64encode((ROOT / "demo" / name).read_bytes()).decode()


PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded('picture.jpg')}"}}
RECORDING = {"type": "input_audio", "input_audio": {"data": encoded("recording.wav"), "format": "wav"}}
CLIP = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded('clip.mp4')}"}}  # it is silent
QUESTIONS = {
    "text": ("What comes after three?", "four"),
    "picture": ([PICTURE, {"type": "text", "text": "Describe the picture."}], EXPECTED["picture"]),
    "video": ([CLIP, {"type": "text", "text": "Which way does it move?"}], "down"),
    "recording": ([{"type": "text", "text": "Transcribe this recording."}, RECORDING], EXPECTED["recording"]),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    log = tmp_path_factory.mktemp("serve") / "log"
    options = ["--trust-remote-code", "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", port]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(
            [TRANSFORMERS, "serve", str(ROOT), *options], cwd=log.parent, env=environment, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + SECONDS
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(timeout=30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.fixture(scope="module")
def client(address):
    return OpenAI(base_url=address, api_key="none", max_retries=0, timeout=SECONDS)


@pytest.mark.parametrize("kind", QUESTIONS)
def test_an_answer(client, kind):
    content, answer = QUESTIONS[kind]
    messages = [{"role": "user", "content": content}]
    completion = client.chat.completions.create(model=str(ROOT), messages=messages)
    assert completion.choices[0].message.content == answer
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_streamed_answer(client, kind):
    content, answer = QUESTIONS[kind]
    messages = [{"role": "user", "content": content}]
    chunks = list(client.chat.completions.create(model=str(ROOT), messages=messages, stream=True))
    deltas = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(delta or "" for delta in deltas) == answer
    if len(answer) > 10:
        assert sum(bool(delta) for delta in deltas) > 5  # it came in pieces
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_conversation_and_its_limit(client):
    content, answer = QUESTIONS["picture"]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "What colour is the background?"},
    ]
    assert client.chat.completions.create(model=str(ROOT), messages=messages).choices[0].message.content == "black"
    cut = client.chat.completions.create(model=str(ROOT), messages=messages[:1], max_tokens=3)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("a small green", "length")


def test_words_that_end_an_answer(client):
    content, answer = QUESTIONS["picture"]
    completion = client.chat.completions.create(
        model=str(ROOT), messages=[{"role": "user", "content": content}], stop=["een"]
    )
    assert completion.choices[0].message.content == answer[: answer.index("een") + len("een")] == "a small green"


def test_transformers_chat(address, tmp_path):
    """The library's own client, its lines typed into a pipe."""
    # Offline, the client refuses to reach even this machine.
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    result = subprocess.run(
        [TRANSFORMERS, "chat", str(ROOT), address, "--user", "someone"],
        input="What comes after three?\n!exit\n",
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert "four" in lines[lines.index(f"<{ROOT}>:") :]


# What serving rests on


def test_the_table_of_served_architectures_names_the_model():
    config = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))
    assert [modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[config["model_type"]]] == config["architectures"]


def test_a_library_without_the_table_gets_a_remark(monkeypatch, caplog):
    monkeypatch.delattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")
    monkeypatch.setattr(compat.logger.parent, "propagate", True)
    compat.register_for_serving("bailingmm", "BailingMMNativeForConditionalGeneration")
    assert "`transformers serve` will not serve this model" in caplog.text


@pytest.mark.parametrize("place", ["argument", "generation_config"])
def test_the_processor_stands_for_its_tokenizer(model, processor, place):
    """Which the library makes stop criteria with, and heals the last token of a prompt."""
    chat = [{"role": "user", "content": "What comes after three?"}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chat, **options)
    if place == "argument":
        stop = {"stop_strings": ["o"]}
    else:
        stop = {"generation_config": GenerationConfig(**model.generation_config.to_dict() | {"stop_strings": ["o"]})}
    sequences = model.generate(**inputs, tokenizer=processor, max_new_tokens=8, **stop)
    reply = processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert reply and "four".startswith(reply) and "o" in reply
    healed = model.generate(**inputs, tokenizer=processor, max_new_tokens=2, token_healing=True)
    assert len(healed) == 1


def test_the_processor_takes_the_servers_arguments():
    processor = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    clip = {"type": "video", "url": str(ROOT / "demo" / "clip.mp4")}
    chat = [{"role": "user", "content": [clip, {"type": "text", "text": "Which way does it move?"}]}]
    frames = {}
    for limit in (None, 4, 32):
        inputs = processor.apply_chat_template(chat, tools=None, num_frames=limit, **options)
        frames[limit] = 2 * int(inputs["video_grid_thw"][0, 0])
    assert frames[4] == 4 and frames[32] == frames[None] > 4
    with pytest.raises(ValueError, match="tools: this model calls none, got 1"):
        processor.apply_chat_template(chat, tools=[{"type": "function"}], **options)
