"""What the tests of the server share: a server on a free port, models to serve, and questions."""

import base64
import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import torch
import uvicorn
from image_helpers import small_image_gen
from speech_helpers import build_speaking_repository

from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.serving.engine_jobs import Finished, Job, Sampling, StreamJob, TextJob
from ming.serving.server import create_app
from ming.serving.settings import EngineSettings, Limits, Site

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
        """Text and speech wait: the engine works on jobs of these lanes that end with the block."""
        release = threading.Event()
        for number in range(1 + self.engine.settings.streams):
            began = threading.Event()
            self.engine.reserve()
            self.engine.submit(_holding(began, release, is_text=number == 0))
            assert began.wait(DEADLINE)
        try:
            yield
        finally:
            release.set()


def _holding(began: threading.Event, release: threading.Event, is_text: bool) -> Job:
    """A job that begins and does not go on."""

    def wait(event=None) -> None:
        began.set()
        release.wait(DEADLINE)

    def events():
        wait()
        yield Finished("stop")

    if not is_text:
        return StreamJob("hold", lambda event: None, events())
    one = torch.ones(1, 1, dtype=torch.long)
    inputs = {"input_ids": one, "attention_mask": one, "mm_token_type_ids": one - 1}
    return TextJob(wait, inputs, Sampling(temperature=0), max_new_tokens=1, kind="hold")


def until(condition) -> None:
    """Wait for what another thread or process reports."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def reading_model(**options) -> BailingMMNativeForConditionalGeneration:
    """Ming-Tiny without what speaks and draws."""
    absent = {"load_talker": False, "load_image_gen": False, **options}
    return BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32, **absent).eval()


def processor() -> BailingMMProcessor:
    return BailingMMProcessor.from_pretrained(ROOT)


def omni_server(directory: Path) -> Server:
    """Everything in and out; queue and batch of 8."""
    repository = build_speaking_repository(directory)
    small_image_gen().save_pretrained(repository / "image_gen")
    model = BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()
    return Server(create_app(model, processor(), LIMITS, EngineSettings(queue=8, batch=8), Site("omni")))


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
