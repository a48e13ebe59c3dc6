"""The server, over real connections: uvicorn in a thread, OpenAI's client, Ming-Tiny's thinker.

Speech and pictures come from small random parts beside it. The engine is held by a job that waits for an event, so
that what is waiting is known and not a matter of time.
"""

import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile
import torch
import uvicorn
from image_helpers import small_image_gen
from PIL import Image
from speech_helpers import build_speaking_repository

from modeling_bailingmm import BailingMMNativeForConditionalGeneration
from processing_bailingmm import BailingMMProcessor
from serving.jobs import Finished, Sampling, StreamJob, TextDelta, TextJob
from serving.limits import EngineSettings, Limits, Site
from serving.server import create_app

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
EXPECTED = json.loads((DEMO / "expected.json").read_text())
OUTCOMES = ("stop", "cancelled", "failed")
DEADLINE = 60.0  # seconds; only reached by failing tests
LIMITS = Limits(
    body_bytes=400_000,
    media_items=3,
    image_pixels=100_000,
    media_seconds=6.0,
    new_tokens=64,
    speech_characters=4000,
    drawings=2,
    drawing_pixels=128 * 128,
    drawing_steps=3,
)


class Server:
    """An app behind uvicorn on a free port."""

    def __init__(self, app):
        self.app = app
        self.engine = app.state.service.engine
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE)
        until(lambda: self.server.started)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=DEADLINE)

    def metric(self, name: str, **labels) -> float:
        return self.app.state.service.metrics.registry.get_sample_value(name, labels) or 0.0

    def close(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()

    @contextmanager
    def held(self):
        """The engine works on a job that ends with the block."""
        began, release = threading.Event(), threading.Event()

        def events():
            began.set()
            release.wait(DEADLINE)
            yield Finished("stop")

        self.engine.reserve()
        self.engine.submit(StreamJob("hold", lambda event: None, events()))
        assert began.wait(DEADLINE)
        try:
            yield
        finally:
            release.set()


def until(condition) -> None:
    """Wait for what another thread or process reports."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def processor():
    return BailingMMProcessor.from_pretrained(ROOT)


@pytest.fixture(scope="module")
def omni(tmp_path_factory, processor):
    """Everything in and out; queue and batch of 8."""
    repository = build_speaking_repository(tmp_path_factory.mktemp("serving"))
    small_image_gen().save_pretrained(repository / "image_gen")
    model = BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()
    server = Server(create_app(model, processor, LIMITS, EngineSettings(queue=8, batch=8), Site("omni")))
    yield server
    server.close()


@pytest.fixture(scope="module")
def reader(processor):
    """Answers in text only, to who has the key."""
    model = BailingMMNativeForConditionalGeneration.from_pretrained(
        ROOT, dtype=torch.float32, load_talker=False, load_image_gen=False
    ).eval()
    server = Server(create_app(model, processor, site=Site("reader", api_key="open sesame")))
    yield server
    server.close()


def data_url(name: str, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode((DEMO / name).read_bytes()).decode()}"


PICTURE = {"type": "image_url", "image_url": {"url": data_url("picture.jpg", "image/jpeg")}}
CLIP = {"type": "video_url", "video_url": {"url": data_url("clip.mp4", "video/mp4")}}
SOUND = base64.b64encode((DEMO / "recording.wav").read_bytes()).decode()
RECORDING = {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}}


def asked(text: str, *parts: dict) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


QUESTIONS = [
    asked("What comes after three?"),
    asked("Describe the picture.", PICTURE),
    asked("Transcribe this recording.", RECORDING),
    asked("Which way does it move?", CLIP),
    asked("What shape is on the left?", PICTURE),
    asked("What comes before seven?"),
    asked("Look at the video. Which way does it move?", CLIP, PICTURE),
    [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "What comes after five?"},
        {"role": "assistant", "content": "six"},
        {"role": "user", "content": "What comes after six?"},
    ],
]


def ask(server: Server, messages: list[dict], **options) -> str:
    options = {"model": "omni", "temperature": 0, **options}
    return server.client().chat.completions.create(messages=messages, **options).choices[0].message.content


def test_every_kind_of_input(omni):
    assert ask(omni, QUESTIONS[0]) == "four"
    assert ask(omni, QUESTIONS[1]) == EXPECTED["picture"]
    assert ask(omni, QUESTIONS[2]) == EXPECTED["recording"]
    assert ask(omni, QUESTIONS[2], extra_body={"use_whisper_encoder": True}) == EXPECTED["recording"]
    assert ask(omni, QUESTIONS[3]) == "down"


def test_reply_has_its_reason_and_counts(omni):
    client = omni.client()
    reply = client.chat.completions.create(model="omni", messages=QUESTIONS[1], max_tokens=3)
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 3
    assert EXPECTED["picture"].startswith(reply.choices[0].message.content)
    whole = client.chat.completions.create(model="omni", messages=QUESTIONS[1])
    assert whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 3
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.model == "omni" and whole.choices[0].message.role == "assistant"


def test_stop_strings(omni):
    before = EXPECTED["picture"].partition(" and a")[0]
    reply = omni.client().chat.completions.create(model="omni", messages=QUESTIONS[1], stop=["unheard", " and a"])
    assert reply.choices[0].message.content == before and reply.choices[0].finish_reason == "stop"


def test_seeded_sampling_repeats_and_random_state_stays(omni):
    options = {"temperature": 2.0, "seed": 5, "max_tokens": 12}
    state = torch.get_rng_state()
    replies = {ask(omni, asked("Tell me something."), **options) for _ in range(3)}
    assert len(replies) == 1
    until(lambda: omni.metric("ming_jobs_running") == 0)
    assert torch.equal(state, torch.get_rng_state())
    others = {ask(omni, asked("Tell me something."), **{**options, "seed": seed}) for seed in range(6, 12)}
    assert len(others | replies) > 1


def test_streaming_equals_not_streaming(omni):
    for messages in QUESTIONS:
        stream = omni.client().chat.completions.create(
            model="omni", messages=messages, stream=True, stream_options={"include_usage": True}, temperature=0
        )
        chunks = list(stream)
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert deltas[0].role == "assistant"
        assert "".join(delta.content or "" for delta in deltas) == ask(omni, messages)
        assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-1].usage.completion_tokens > 0
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_comes_in_pieces(omni):
    chunks = list(omni.client().chat.completions.create(model="omni", messages=QUESTIONS[1], stream=True))
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(texts) > 5 and "".join(texts) == EXPECTED["picture"]


def test_waiting_requests_are_one_batch_with_the_answers_they_have_alone(omni):
    alone = [ask(omni, messages) for messages in QUESTIONS]
    batches, rows = omni.metric("ming_batch_rows_count"), omni.metric("ming_batch_rows_sum")

    def answer(index: int) -> str:
        if index % 2:
            return ask(omni, QUESTIONS[index])
        stream = omni.client().chat.completions.create(
            model="omni", messages=QUESTIONS[index], stream=True, temperature=0
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        with omni.held():
            answers = [pool.submit(answer, index) for index in range(len(QUESTIONS))]
            until(lambda: len(omni.engine.waiting_jobs()) == len(QUESTIONS))
        assert [future.result(DEADLINE) for future in answers] == alone
    assert omni.metric("ming_batch_rows_count") - batches == 1
    assert omni.metric("ming_batch_rows_sum") - rows == len(QUESTIONS)


def test_other_ways_of_choosing_tokens_are_other_batches(omni):
    batches = omni.metric("ming_batch_rows_count")
    options = [{}, {"temperature": 0.01}, {"temperature": 0.01}, {"extra_body": {"use_whisper_encoder": True}}]
    messages = [QUESTIONS[2], QUESTIONS[2], QUESTIONS[0], QUESTIONS[2]]
    with ThreadPoolExecutor(4) as pool:
        with omni.held():
            answers = [pool.submit(ask, omni, chat, **more) for chat, more in zip(messages, options, strict=True)]
            until(lambda: len(omni.engine.waiting_jobs()) == 4)
        texts = [future.result(DEADLINE) for future in answers]
    assert texts[0] == texts[3] == EXPECTED["recording"] and texts[2] == "four"
    assert omni.metric("ming_batch_rows_count") - batches == 3  # Whisper's features do not fit beside SANM's


def test_a_full_queue_is_429(omni):
    with ThreadPoolExecutor(8) as pool:
        with omni.held():
            answers = [pool.submit(ask, omni, QUESTIONS[0]) for _ in range(8)]
            until(lambda: len(omni.engine.waiting_jobs()) == 8)
            with pytest.raises(openai.RateLimitError) as caught:
                ask(omni, QUESTIONS[0])
        assert {future.result(DEADLINE) for future in answers} == {"four"}
    assert caught.value.response.headers["retry-after"] == "2" and caught.value.code == "queue_full"
    assert ask(omni, QUESTIONS[0]) == "four"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(omni, stream):
    cancelled = omni.metric("ming_jobs_total", kind="text", outcome="cancelled")
    body = json.dumps({"messages": QUESTIONS[0], "stream": stream}).encode()
    with omni.held():
        connection = socket.create_connection(omni.socket.getsockname())
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        until(lambda: len(omni.engine.waiting_jobs()) == 1)
        connection.close()
        until(lambda: not omni.engine.waiting_jobs())
        assert omni.metric("ming_jobs_total", kind="text", outcome="cancelled") == cancelled + 1
        assert omni.metric("ming_jobs_waiting") == 0


def test_speech_is_sent_while_it_is_made_and_leaving_ends_it(omni):
    before = {outcome: omni.metric("ming_jobs_total", kind="speech", outcome=outcome) for outcome in OUTCOMES}
    long_text = "A red circle is above a green square. " * 100
    with omni.client().audio.speech.with_streaming_response.create(
        model="omni", voice="anna", input=long_text, response_format="wav"
    ) as response:
        assert response.headers["content-type"] == "audio/wav"
        assert next(response.iter_bytes()).startswith(b"RIFF")
        assert omni.metric("ming_jobs_running") == 1
    assert ask(omni, QUESTIONS[0]) == "four"  # the engine does one thing after the other
    after = {outcome: omni.metric("ming_jobs_total", kind="speech", outcome=outcome) for outcome in OUTCOMES}
    assert after == {**before, "cancelled": before["cancelled"] + 1}


def test_a_row_that_is_cancelled_ends_and_its_neighbour_does_not(omni, processor):
    def job(deliver) -> TextJob:
        chat = [{"role": "user", "content": [{"type": "image", "image": str(DEMO / "picture.jpg")}]}]
        inputs = dict(processor.apply_chat_template([chat], tokenize=True, return_dict=True))
        return TextJob(deliver, inputs, Sampling(temperature=0), 12)

    events: list[list] = [[], []]
    done = [threading.Event(), threading.Event()]
    jobs: list[TextJob] = []

    def deliver_to(index: int):
        def deliver(event) -> None:
            events[index].append(event)
            if index == 0 and isinstance(event, TextDelta):
                jobs[0].cancel()  # in the engine's thread, at the first piece of text
            if isinstance(event, Finished):
                done[index].set()

        return deliver

    jobs += [job(deliver_to(0)), job(deliver_to(1))]
    with omni.held():
        for each in jobs:
            omni.engine.reserve()
            omni.engine.submit(each)
    assert all(event.wait(DEADLINE) for event in done)
    assert len(events[0]) == 2 and events[0][-1].reason == "cancelled"
    assert len(events[1]) > 2 and events[1][-1].completion_tokens > events[0][-1].completion_tokens


def test_a_failing_job_is_a_server_error_and_the_engine_goes_on(omni):
    """What the engine cannot decode: media that do not belong to their prompt."""
    ended = threading.Event()
    inputs = {name: torch.ones(1, 3, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    broken = {**inputs, "mm_token_type_ids": torch.ones(1, 3, dtype=torch.long)}
    job = TextJob(lambda event: ended.set(), broken, Sampling(), 4)
    omni.engine.reserve()
    omni.engine.submit(job)
    assert ended.wait(DEADLINE) and "3 image tokens" in str(job.ended.error)
    assert ask(omni, QUESTIONS[0]) == "four"


def test_spoken_reply(omni):
    options = {"model": "omni", "messages": QUESTIONS[0], "modalities": ["text", "audio"], "seed": 3}
    client = omni.client()
    reply = client.chat.completions.create(**options, audio={"voice": "bert", "format": "wav"})
    sound = reply.choices[0].message.audio
    assert sound.transcript == "four" and reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == 2  # the word and the end
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound.data)), dtype="int16")
    assert rate == 22050 and len(samples) > 0
    stream = client.chat.completions.create(**options, audio={"voice": "bert", "format": "pcm16"}, stream=True)
    parts = [chunk.choices[0].delta.model_dump().get("audio") or {} for chunk in stream]
    assert "".join(part.get("transcript") or "" for part in parts) == "four"
    streamed = np.frombuffer(b"".join(base64.b64decode(part.get("data") or "") for part in parts), "<i2")
    assert len({part["id"] for part in parts if part}) == 1
    assert len(streamed) == len(samples) and abs(streamed.astype(int) - samples).max() <= 1


def test_speech_formats(omni):
    options = {"model": "omni", "voice": "anna", "input": "A red circle.", "extra_body": {"seed": 1}}
    said = {
        format: omni.client().audio.speech.create(**options, response_format=format).content
        for format in ("wav", "pcm", "flac")
    }
    with wave.open(io.BytesIO(said["wav"])) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
    assert said["wav"][44:] == said["pcm"] and len(said["pcm"]) > 2000
    with av.open(io.BytesIO(said["flac"])) as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    assert np.array_equal(np.concatenate(frames), np.frombuffer(said["pcm"], "<i2"))


def test_transcription(omni):
    client = omni.client()
    file = ("recording.wav", (DEMO / "recording.wav").read_bytes())
    assert client.audio.transcriptions.create(model="omni", file=file).text == EXPECTED["recording"]
    whisper = {"use_whisper_encoder": True}
    text = client.audio.transcriptions.create(model="omni", file=file, response_format="text", extra_body=whisper)
    assert text.strip() == EXPECTED["recording"]
    events = list(client.audio.transcriptions.create(model="omni", file=file, stream=True))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == EXPECTED["recording"]


def test_drawing(omni):
    client = omni.client()
    few = {"num_inference_steps": 1, "seed": 4}
    two = client.images.generate(model="omni", prompt="A circle.", n=2, size="96x64", extra_body=few)
    pictures = [Image.open(io.BytesIO(base64.b64decode(item.b64_json))) for item in two.data]
    assert [(picture.format, picture.size) for picture in pictures] == [("PNG", (96, 64))] * 2
    again = client.images.generate(model="omni", prompt="A circle.", size="96x64", extra_body=few)
    assert again.data[0].b64_json == two.data[0].b64_json != two.data[1].b64_json
    jpeg = client.images.generate(model="omni", prompt="A circle.", output_format="jpeg", extra_body=few)
    picture = Image.open(io.BytesIO(base64.b64decode(jpeg.data[0].b64_json)))
    assert picture.format == "JPEG" and picture.size == (64, 64)


def test_edits(omni):
    file = ("picture.jpg", (DEMO / "picture.jpg").read_bytes())
    few = {"num_inference_steps": "1", "seed": "4"}
    client = omni.client()
    prompts = {"one": file, "two": [file, file]}
    drawn = {
        name: client.images.edit(model="omni", image=files, prompt="Make it blue.", extra_body=few).data[0].b64_json
        for name, files in prompts.items()
    }
    plain = client.images.generate(model="omni", prompt="Make it blue.", extra_body=few).data[0].b64_json
    assert len({plain, *drawn.values()}) == 3  # the pictures matter


def test_models_health_and_metrics(omni):
    assert [model.id for model in omni.client().models.list()] == ["omni"]
    assert omni.client().models.retrieve("omni").id == "omni"
    assert omni.http.get("/health").json() == {"status": "ok", "model": "omni", "outputs": ["text", "audio", "image"]}
    ask(omni, QUESTIONS[0])
    text = omni.http.get("/metrics").text
    for line in ("ming_batch_rows_bucket", 'ming_requests_total{route="/v1/chat/completions",status="200"}'):
        assert line in text
    assert omni.metric("ming_prompt_tokens_total") > 0 and omni.metric("ming_new_tokens_total") > 0


def test_what_a_model_cannot_do_is_said(reader):
    client = reader.client("open sesame")
    with pytest.raises(openai.BadRequestError, match="no talker"):
        client.audio.speech.create(model="reader", voice="anna", input="hi")
    with pytest.raises(openai.BadRequestError, match="no talker"):
        client.chat.completions.create(model="reader", messages=QUESTIONS[0], modalities=["text", "audio"])
    with pytest.raises(openai.BadRequestError, match="without its image head"):
        client.images.generate(model="reader", prompt="A circle.")
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


BAD_CHATS = [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": asked("hi"), "n": 2}, "n", "got 2"),
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
    answer = omni.http.post("/v1/chat/completions", json=body)
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
    ("/v1/images/generations", {"prompt": "x", "n": 3}, "3 pictures are more than 2"),
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
    assert "no file" in post("/v1/images/edits", {"prompt": "x"})
    mask = {"image": ("a.jpg", (DEMO / "picture.jpg").read_bytes()), "mask": ("b.png", b"x")}
    assert "'mask' is not supported" in post("/v1/images/edits", {"prompt": "x"}, mask)


def test_unknown_models_routes_and_json(omni):
    with pytest.raises(openai.NotFoundError, match="is not served here; ask for 'omni'"):
        ask(omni, QUESTIONS[0], model="gpt-4o")
    answer = omni.http.get("/v1/nothing")
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error"
    assert omni.http.get("/v1/chat/completions").status_code == 405
    answer = omni.http.post("/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


def test_large_bodies_are_refused_before_they_are_read(omni):
    def pieces():
        yield b'{"messages": "'
        for _ in range(50):
            yield b"a" * 10_000

    header = {"Content-Type": "application/json"}
    for content in (b"a" * 400_001, pieces()):  # with its length told before, and not
        answer = omni.http.post("/v1/chat/completions", content=content, headers=header)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    file = {"file": ("a.wav", b"RIFF" + bytes(500_000))}
    assert omni.http.post("/v1/audio/transcriptions", files=file).status_code == 413


def test_closing_answers_what_waits(processor):
    model = BailingMMNativeForConditionalGeneration.from_pretrained(
        ROOT, dtype=torch.float32, load_talker=False, load_image_gen=False
    ).eval()
    server = Server(create_app(model, processor))
    with ThreadPoolExecutor(1) as pool:
        with server.held():
            answer = pool.submit(ask, server, QUESTIONS[0], model="ming")
            until(lambda: len(server.engine.waiting_jobs()) == 1)
            server.server.should_exit = True
        assert answer.result(DEADLINE) == "four"  # what was accepted is answered
    server.close()
    assert not server.engine.is_alive


def test_command_line():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "serving", "--model", ".", "--port", str(port), "--new-tokens", "3"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: process.poll() is not None or "running on" in process.stderr.readline())
            assert process.poll() is None
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as http:
                answer = http.post("/v1/chat/completions", json={"messages": QUESTIONS[1]}).json()
        finally:
            process.terminate()
            _, log = process.communicate(timeout=DEADLINE)
    assert answer["choices"][0]["finish_reason"] == "length" and answer["model"] == ROOT.name
    assert "Application shutdown complete" in log
