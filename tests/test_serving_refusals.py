"""What the server refuses, before any work and in OpenAI's shape."""

import asyncio
import base64
import io
import json

import numpy as np
import openai
import pytest
import soundfile
import torch
from PIL import Image
from serving_helpers import (
    DEMO,
    PICTURE,
    QUESTIONS,
    Server,
    ask,
    asked,
    processor,
    reading_model,
)

from ming.serving.audio_formats import FlacEncoder
from ming.serving.metrics import Metrics
from ming.serving.middleware import AdmissionMiddleware
from ming.serving.server import create_app
from ming.serving.settings import EngineSettings, Limits, Site


@pytest.fixture(scope="module")
def reader():
    """Answers in text only and hears nothing, to who has the key."""
    model = reading_model(load_audio=False, load_vision=False)
    server = Server(create_app(model, processor(), site=Site("reader", api_key="open sesame")))
    yield server
    server.close()


def test_what_a_model_cannot_do_is_said(reader):
    client = reader.client("open sesame")
    with pytest.raises(openai.BadRequestError, match="no talker"):
        client.audio.speech.create(model="reader", voice="anna", input="hi")
    with pytest.raises(openai.BadRequestError, match="no talker"):
        client.chat.completions.create(model="reader", messages=QUESTIONS[0], modalities=["text", "audio"])
    with pytest.raises(openai.BadRequestError, match="without its image head"):
        client.images.generate(model="reader", prompt="A circle.")
    for messages, part in ((QUESTIONS[1], "vision"), (QUESTIONS[2], "audio"), (QUESTIONS[3], "vision")):
        with pytest.raises(openai.BadRequestError, match=f"loaded without '{part}'"):
            client.chat.completions.create(model="reader", messages=messages)
    assert reader.http.get("/health").json()["outputs"] == ["text"]


@pytest.mark.parametrize("header", [None, "Bearer wrong", "open sesame", "Bearer open sesame "[:-2]])
def test_the_key_is_asked_for(reader, header):
    headers = {} if header is None else {"Authorization": header}
    answer = reader.http.post("/v1/chat/completions", json={"messages": QUESTIONS[0]}, headers=headers)
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


def test_with_the_key_it_answers(reader):
    with pytest.raises(openai.AuthenticationError):
        reader.client("wrong").models.list()
    reply = reader.client("open sesame").chat.completions.create(model="reader", messages=QUESTIONS[0])
    assert reply.choices[0].message.content == "four"
    assert reader.http.get("/health").status_code == reader.http.get("/metrics").status_code == 200


def png(width: int, height: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def sound(seconds: float) -> dict:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(int(8000 * seconds)), 8000, format="WAV")
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(file.getvalue()).decode()}}


JSON = {"Content-Type": "application/json"}
BAD_CHATS = [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": asked("hi"), "n": 2}, "n", "got 2"),
    ({"messages": asked("\ud800")}, "messages.0.content.0.text", "surrogates not allowed at 0, got '\\ud800'"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content", "surrogates not allowed"),
    ({"messages": asked("hi"), "\ud800": 1}, "", "as a unicode string"),
    ({"messages": asked("hi"), "temperature": float("nan")}, "temperature", "equal to 2, got nan"),
    ({"messages": asked("hi"), "tools": []}, "tools", "not supported here"),
    ({"messages": asked("hi"), "temperature": 3}, "temperature", "less than or equal to 2"),
    ({"messages": asked("hi"), "max_tokens": 65}, "max_tokens", "65 are more than 64"),
    ({"messages": asked("hi"), "stop": ["a", ""]}, "stop", "none of them empty"),
    ({"messages": asked("hi" * 5000)}, "messages", "a prompt of"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages.0", "must be the user's"),
    ({"messages": [{"role": "system", "content": [PICTURE]}, *asked("hi")]}, "messages.0.content", "hold media"),
    ({"messages": asked("hi", {"type": "smell"})}, "messages.0.content.0", "'smell'"),
    ({"messages": asked("hi", {"type": "image_url"})}, "messages.0.content.0.image_url", "Field required"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "got 3"),
    ({"messages": asked("hi", image("/etc/passwd"))}, "messages.0.content.0.image_url", "never read"),
    ({"messages": asked("hi", image("file:///etc/passwd"))}, "messages.0.content.0.image_url", "never read"),
    ({"messages": asked("hi", image("http://example.com/a.png"))}, "messages.0.content.0.image_url", "--allow-remote"),
    ({"messages": asked("hi", image("data:image/png;base64,AAAA"))}, "messages.0.content.0.image_url", "unknown kind"),
    ({"messages": asked("hi", image(png(400, 300)))}, "messages.0.content.0.image_url", "more than 100000"),
    ({"messages": asked("hi", *[image(png(9, 9))] * 4)}, "messages.0.content.3.image_url", "may hold 3 media"),
    ({"messages": asked("hi", sound(3.5), sound(3.5))}, "messages.0.content.1.input_audio", "7.0 s are more than"),
    ({"messages": asked("hi", sound(0.001))}, "messages", "shorter than one frame"),
    ({"messages": asked("hi"), "modalities": ["text", "audio"], "audio": {"voice": "x"}}, "audio.voice", "anna"),
]


@pytest.mark.parametrize(("body", "param", "message"), BAD_CHATS)
def test_bad_chats_are_refused_in_openais_shape(omni, body, param, message):
    jobs = omni.metric("ming_queue_seconds_count")
    content = json.dumps(body).encode()  # also what is no JSON, but read as such: NaN
    answer = omni.http.post("/v1/chat/completions", content=content, headers=JSON)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error" and message in error["message"]
    assert (error["param"] or "").startswith(param)
    assert omni.metric("ming_queue_seconds_count") == jobs and omni.metric("ming_jobs_waiting") == 0


BAD_OTHERS = [
    ("/v1/audio/speech", {"input": "a" * 4001}, "4001 characters"),
    ("/v1/audio/speech", {"input": "..."}, "nothing to say"),
    ("/v1/audio/speech", {"input": "hi", "voice": "x"}, "anna"),
    ("/v1/audio/speech", {"input": "hi", "response_format": "mp3"}, "'wav', 'pcm' or 'flac'"),
    ("/v1/audio/speech", {"input": "hi", "speed": 2}, "less than or equal to 1"),
    ("/v1/images/generations", {"prompt": "x", "n": 3}, "3 images are more than 2"),
    ("/v1/images/generations", {"prompt": "x", "size": "big"}, "WIDTHxHEIGHT"),
    ("/v1/images/generations", {"prompt": "x", "size": "10x10"}, "64"),
    ("/v1/images/generations", {"prompt": "x", "size": "256x256"}, "more than 16384 pixels"),
    ("/v1/images/generations", {"prompt": "x", "num_inference_steps": 4}, "4 are more than 3"),
    ("/v1/images/generations", {"prompt": "x", "response_format": "url"}, "b64_json"),
]


@pytest.mark.parametrize(("path", "body", "message"), BAD_OTHERS)
def test_bad_speech_and_pictures_are_refused(omni, path, body, message):
    answer = omni.http.post(path, json=body)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_bad_forms_are_refused(omni):
    def post(path: str, data: dict, files: dict | None = None) -> str:
        answer = omni.http.post(path, data=data, files=files)
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]["message"]

    file = {"file": ("a.wav", (DEMO / "recording.wav").read_bytes())}
    assert "0 files" in post("/v1/audio/transcriptions", {"model": "omni"})
    assert "language is not supported" in post("/v1/audio/transcriptions", {"language": "en"}, file)
    assert "unknown kind" in post("/v1/audio/transcriptions", {}, {"file": ("a.wav", b"#EXTM3U\nhttp://x/")})
    stream = FlacEncoder(22050)
    endless = stream.push(torch.zeros(9000)) + stream.finish()
    assert "does not give its length" in post("/v1/audio/transcriptions", {}, {"file": ("a.flac", endless)})
    assert "no file" in post("/v1/images/edits", {"prompt": "x"})
    mask = {"image": ("a.jpg", (DEMO / "picture.jpg").read_bytes()), "mask": ("b.png", b"x")}
    assert "'mask' is not supported" in post("/v1/images/edits", {"prompt": "x"}, mask)


def test_unknown_models_routes_and_json(omni):
    with pytest.raises(openai.NotFoundError, match="is not served here; ask for 'omni'"):
        ask(omni, QUESTIONS[0], model="gpt-4o")
    answer = omni.http.get("/v1/nothing")
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error"
    assert omni.http.get("/v1/chat/completions").status_code == 405
    answer = omni.http.post("/v1/chat/completions", content=b"{", headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


def test_large_bodies_are_refused_before_they_are_read(omni):
    def pieces():
        yield b'{"messages": "'
        for _ in range(50):
            yield b"a" * 10_000

    for content in (b"a" * 400_001, pieces()):  # with its length told before, and not
        answer = omni.http.post("/v1/chat/completions", content=content, headers=JSON)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    file = {"file": ("a.wav", b"RIFF" + bytes(500_000))}
    assert omni.http.post("/v1/audio/transcriptions", files=file).status_code == 413


def test_a_full_queue_is_told_before_a_body_is_read():
    server = Server(create_app(reading_model(), processor(), settings=EngineSettings(queue=1)))
    server.engine.reserve()
    try:
        answer = server.http.post("/v1/chat/completions", content=b"no JSON at all", headers=JSON)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "2"
    finally:
        server.engine.release()
        server.close()


def test_what_nobody_foresaw_is_counted():
    async def broken(scope, receive, send):
        raise RuntimeError("unforeseen")

    metrics = Metrics()
    middleware = AdmissionMiddleware(broken, 10, metrics, lambda: None)
    with pytest.raises(RuntimeError, match="unforeseen"):
        asyncio.run(middleware({"type": "http", "headers": [], "path": "/", "method": "GET"}, None, None))
    assert metrics.registry.get_sample_value("ming_requests_total", {"route": "other", "status": "500"}) == 1


def test_limits_are_numbers():
    with pytest.raises(ValueError, match="queue=0 must be at least 1"):
        EngineSettings(queue=0)
    with pytest.raises(ValueError, match="media_seconds=nan must be at least 0"):
        Limits(media_seconds=float("nan"))
