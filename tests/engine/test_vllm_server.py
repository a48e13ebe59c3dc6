"""vLLM's own server, asked by the client of OpenAI: the same answers, and the same first token, as of `generate`."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image, ImageDraw

from tests.engine.questions import BOUND, MAX_NEW_TOKENS, ROOT, TOP, Reply, answer, difference

DEMO = ROOT / "demo"
SECONDS = 600.0  # until the server is there; on two busy cores it takes minutes


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def image(path: Path = DEMO / "picture.jpg") -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/{path.suffix[1:]};base64,{encoded(path)}"}}


def recording(name: str) -> dict:
    return {"type": "input_audio", "input_audio": {"data": encoded(DEMO / name), "format": "wav"}}


def clip() -> dict:
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded(DEMO / 'clip.mp4')}"}}


@pytest.fixture(scope="module")
def square(tmp_path_factory) -> dict:
    """Another image than that of the demo."""
    path = tmp_path_factory.mktemp("square") / "square.png"
    drawn = Image.new("RGB", (128, 96), "white")
    ImageDraw.Draw(drawn).rectangle((20, 30, 60, 70), fill="blue")
    drawn.save(path)
    return image(path)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The address of a server of this checkpoint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", ".", "--trust-remote-code"]
    options = ["--trust-request-mm-kwargs", "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [*command, *options, "--host", "127.0.0.1", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-5000:]
        try:
            if httpx.get(address, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise TimeoutError(log.read_text()[-5000:])


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=SECONDS) as client:
        yield client


def greedy(content: list[dict]) -> dict:
    """A request for the greedy answer to a message."""
    messages = [{"role": "user", "content": content}]
    return {"model": ".", "messages": messages, "temperature": 0, "max_tokens": MAX_NEW_TOKENS}


def ask(client: openai.OpenAI, content: list[dict], **options) -> Reply:
    """A server's greedy answer, and log-probabilities of its first token by id."""
    reply = client.chat.completions.create(
        **greedy(content),
        logprobs=True,
        top_logprobs=TOP,
        extra_body={"return_tokens_as_token_ids": True, **options},
    ).choices[0]
    scores = {int(top.token.removeprefix("token_id:")): top.logprob for top in reply.logprobs.content[0].top_logprobs}
    return Reply(reply.message.content, scores)


QUESTIONS = {
    "text": [text("What comes after three?")],
    "image": [image(), text("Describe the picture.")],
    "recording": [recording("recording.wav"), text("Transcribe this recording.")],
    "video": [clip(), text("Describe the video.")],
    "spoken question": [image(), recording("question.wav")],
}


def raise_if_different(client, model, processor, content: list[dict], **options) -> None:
    """`options` are the processor's."""
    wanted = answer(model, processor, [{"role": "user", "content": content}], **options)
    found = ask(client, content, **({"mm_processor_kwargs": options} if options else {}))
    assert found.text == wanted.text
    assert difference(found, wanted) <= BOUND


@pytest.mark.parametrize("content", QUESTIONS.values(), ids=QUESTIONS)
def test_the_server_answers_as_generate_does(content, client, model, processor):
    raise_if_different(client, model, processor, content)


def test_two_images_stand_in_their_order(square, client, model, processor):
    for images in ([image(), square], [square, image()]):
        raise_if_different(client, model, processor, [*images, text("Are both backgrounds the same colour?")])


def test_the_whisper_encoder_is_chosen_by_request(client, model, processor):
    raise_if_different(client, model, processor, QUESTIONS["recording"], use_whisper_encoder=True)


def test_a_stream_brings_the_same_text(client):
    content = QUESTIONS["image"]
    chunks = client.chat.completions.create(**greedy(content), stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == ask(client, content).text


def test_a_typed_control_token_is_no_text(client, model, processor):
    """What the page says of vLLM: the image stands where the word was typed, not where it was sent."""
    content = [text("Describe the <image> picture."), image()]
    wanted = answer(model, processor, [{"role": "user", "content": content}])
    assert difference(ask(client, content), wanted) > 10 * BOUND
