"""What the server refuses, before any work and in OpenAI's shape."""

import asyncio
import base64
import io
import json
import re

import numpy as np
import openai
import pytest
import soundfile
from PIL import Image
from serving_helpers import (
    CLIP,
    DEMO,
    PICTURE,
    QUESTIONS,
    ROOT,
    Server,
    ask,
    asked,
    processor,
    reading_model,
)
from test_media_files import sound_file, tone
from thinker_helpers import tiny_model

from handler import EndpointHandler
from ming.serving.metrics import Metrics
from ming.serving.middleware import AdmissionMiddleware
from ming.serving.prepare import missing_outputs
from ming.serving.server import create_app
from ming.serving.settings import EngineSettings, Limits, Site


@pytest.fixture(scope="module")
def reader():
    """Answers in text only and hears nothing, to who has the key."""
    model = reading_model(load_audio=False, load_vision=False)
    server = Server(create_app(model, processor(), site=Site("reader", api_key="open sesame")))
    yield server
    server.close()


@pytest.fixture(scope="module")
def endpoint():
    """The handler of Hub endpoints, of which the processor alone is used."""
    return EndpointHandler(str(ROOT))


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


def test_a_model_without_voices_is_told(omni, monkeypatch):
    """What the library proposes, to pass a recording, no request can."""
    model = omni.engine.model
    monkeypatch.setattr(model.components.talker_processor(), "voices", {})
    assert missing_outputs(model)["audio"].startswith("this model has no voices/ folder, so it cannot speak")


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
    ({"messages": asked("hi"), "tools": [{"type": "function"}]}, "tools", "not supported here; leave it out"),
    ({"messages": asked("hi"), "tool_choice": "required"}, "tool_choice", 'send "none" or "auto", got \'required\''),
    ({"messages": asked("hi"), "response_format": {"type": "json_object"}}, "response_format", "not supported here"),
    ({"messages": asked("hi"), "logit_bias": {"7": 100}}, "logit_bias", "not supported here"),
    ({"messages": asked("hi"), "seeds": 3}, "seeds", "seeds is not supported here"),
    ({"messages": asked("hi"), "temperature": 3}, "temperature", "less than or equal to 2"),
    ({"messages": asked("hi"), "temperature": 1e-40}, "temperature", "must be at least 0.0001, or 0, which takes the"),
    ({"messages": asked("hi"), "max_tokens": 65}, "max_tokens", "65 are more than 64"),
    ({"messages": asked("hi"), "stop": ["a", ""]}, "stop", "none of them empty"),
    ({"messages": asked("hi" * 5000)}, "messages", "limit of 4096; shorten it, or send fewer media"),
    ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages.0", "must be the user's"),
    ({"messages": [{"role": "system", "content": [PICTURE]}, *asked("hi")]}, "messages.0.content", "hold media"),
    ({"messages": [{"role": "assistant", "content": [CLIP]}, *asked("hi")]}, "messages.0.content", "text and images"),
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
    ("/v1/images/generations", {"prompt": "x", "size": "10x10"}, "size: height=10: images have whole sides of 64"),
    ("/v1/images/generations", {"prompt": "x", "size": "256x256"}, "more than 16384 pixels"),
    ("/v1/images/generations", {"prompt": "x", "num_inference_steps": 4}, "4 are more than 3"),
    ("/v1/images/generations", {"prompt": "x", "response_format": "url"}, "b64_json"),
    (
        "/v1/images/generations",
        {"prompt": "x", "guidance_scale": float("inf")},
        "guidance_scale: Input should be a fin",
    ),
    (
        "/v1/images/generations",
        {"prompt": "x", "num_inference_steps": float("nan")},
        "num_inference_steps: Input shou",
    ),
    ("/v1/images/generations", {"prompt": "x", "seed": float("inf")}, "seed: Input should be a finite number"),
    *(
        ("/v1/images/generations", {"prompt": "x", name: value}, f"{name}: not supported here; leave it out, or send")
        for name, value in (
            ("quality", "high"),
            ("stream", True),
            ("output_compression", 50),
            ("style", "natural"),
            ("background", "transparent"),
        )
    ),
]


@pytest.mark.parametrize(("path", "body", "message"), BAD_OTHERS)
def test_bad_speech_and_pictures_are_refused(omni, path, body, message):
    answer = omni.http.post(path, content=json.dumps(body), headers=JSON)  # also infinity, which is no JSON
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_bad_forms_are_refused(omni):
    def post(path: str, data: dict, files: dict | None = None) -> str:
        answer = omni.http.post(path, data=data, files=files)
        assert answer.status_code == 400, answer.text
        return answer.json()["error"]["message"]

    file = {"file": ("a.wav", (DEMO / "recording.wav").read_bytes())}
    assert "0 files" in post("/v1/audio/transcriptions", {"model": "omni"})
    message = post("/v1/audio/transcriptions", {"temperature": "1e-40"}, file)
    assert "temperature: must be at least 0.0001, or 0" in message
    assert "language is not supported" in post("/v1/audio/transcriptions", {"language": "en"}, file)
    message = post("/v1/audio/transcriptions", {"prompt": "x"}, file)  # it took the place of the instruction
    assert (
        message.startswith("prompt: not supported here; leave it out") and "/v1/chat/completions, got 'x'" in message
    )
    words = {"timestamp_granularities[]": ["segment", "word"]}
    assert "send [\"segment\"], got ['segment', 'word']" in post("/v1/audio/transcriptions", words, file)
    assert "temperature: it is there more than once" in post(
        "/v1/audio/transcriptions", {"temperature": ["0", "1"]}, file
    )
    playlist = {"file": ("a.wav", b"#EXTM3U\nhttp://x/")}
    assert "audio 'a.wav': it is a playlist file" in post("/v1/audio/transcriptions", {}, playlist)
    assert "'x.pcm': it is of an unknown kind" in post("/v1/audio/transcriptions", {}, {"file": ("x.pcm", b"0" * 99)})
    assert "no file" in post("/v1/images/edits", {"prompt": "x"})
    mask = {"image": ("a.jpg", (DEMO / "picture.jpg").read_bytes()), "mask": ("b.png", b"x")}
    assert "'mask' is not supported" in post("/v1/images/edits", {"prompt": "x"}, mask)


def photo(ending: str) -> bytes:
    """The beginning of a phone's photo; nothing reads more of it."""
    brand = {"heic": b"heic", "avif": b"avif"}[ending]
    return b"\x00\x00\x00\x18ftyp" + brand + b"\x00\x00\x00\x00mif1" + brand + bytes(200)


@pytest.mark.parametrize(
    ("ending", "as_image", "as_recording"),
    [
        ("heic", "it is a heic file", "it is a heic file"),
        ("avif", "cannot identify image file (a file of kind avif; save it as jpeg or png)", "it is an avif file"),
    ],
)
def test_photos_of_phones_are_named_as_what_they_are(omni, ending, as_image, as_recording):
    """As an image, and as a video or a recording, since their containers are those of mp4."""
    data = base64.b64encode(photo(ending)).decode()
    url = f"data:image/{ending};base64,{data}"
    as_video = as_recording if ending == "heic" else as_image  # animated avif is a video
    parts = [
        (image(url), "image_url", as_image, "png, jpeg, webp, gif, avif, tiff and bmp"),
        ({"type": "video_url", "video_url": {"url": url}}, "video_url", as_video, "animated webp, png and avif"),
        ({"type": "input_audio", "input_audio": {"data": data}}, "input_audio", as_recording, "of mp4 and webm"),
    ]
    for part, field, what, accepted in parts:
        answer = omni.http.post("/v1/chat/completions", json={"messages": asked("hi", part)})
        message = answer.json()["error"]["message"]
        assert answer.status_code == 400 and f"{what}; accepted are " in message
        assert message.startswith(f"messages.0.content.0.{field}: cannot read this") and message.endswith(accepted)
    upload = {"image": (f"IMG_0001.{ending}", photo(ending))}
    answer = omni.http.post("/v1/images/edits", data={"prompt": "x"}, files=upload)
    assert f"cannot read image 'IMG_0001.{ending}': {as_image}" in answer.json()["error"]["message"]


def test_errors_call_media_by_their_file_name_or_field(omni):
    """Also the errors that come from the processor, which gets bytes."""
    noise, cut = np.random.default_rng(0).bytes(800), (DEMO / "picture.jpg").read_bytes()[:1048]
    files = {
        "holiday.png": b"\x89PNG\r\n\x1a\n" + noise,
        "cut.jpg": cut,
        "voice.wav": b"RIFF\xff\xff\xff\xffWAVE" + noise,
        "broken.mp4": b"\x00\x00\x00\x18ftypmp42" + noise,
    }
    for name, data in files.items():
        is_image = name.endswith(("png", "jpg"))
        path, field = ("/v1/images/edits", "image") if is_image else ("/v1/audio/transcriptions", "file")
        form = {"prompt": "x"} if is_image else {}
        answer = omni.http.post(path, data=form, files={field: (name, data)})
        message = answer.json()["error"]["message"]
        assert answer.status_code == 400 and f"'{name}'" in message and " bytes>" not in message
        assert "object at 0x" not in message and "BytesIO" not in message
    url = f"data:image/jpeg;base64,{base64.b64encode(cut).decode()}"
    answer = omni.http.post("/v1/chat/completions", json={"messages": asked("hi", PICTURE, image(url))})
    assert "'messages.0.content.1.image_url'" in answer.json()["error"]["message"]


def recording_of_two_rates() -> bytes:
    return b"".join(sound_file("MP3", tone(rate), rate) for rate in (16000, 24000))


def video_of_two_frames() -> bytes:
    file, frames = io.BytesIO(), [Image.new("RGB", (32, 32), (90 * index, 0, 0)) for index in range(2)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def picture_of_negative_numbers() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32), -5000.0, np.float32)).save(file, "TIFF")
    return file.getvalue()


BAD_MEDIA = [
    ("audio", recording_of_two_rates, "its rate or its channels change in the middle; convert it to wav first"),
    ("audio", lambda: bytes(range(1, 200)), "samples without a header have no known rate; save it as wav"),
    ("video", video_of_two_frames, "but 4 are needed; send a longer one, or a single frame as an image"),
    ("image", picture_of_negative_numbers, "neither in 0..1 nor in 0..255"),
    ("image", lambda: photo("heic"), "heic"),
]


@pytest.mark.parametrize(("kind", "make", "message"), BAD_MEDIA)
def test_errors_speak_of_what_a_request_has(omni, endpoint, kind, make, message):
    """It has no paths, arrays and options of the library. The same for the Hub's endpoints."""
    data = base64.b64encode(make()).decode()
    url = f"data:{kind}/x;base64,{data}"
    part = {"type": "input_audio", "input_audio": {"data": data}} if kind == "audio" else image(url)
    part = {"type": "video_url", "video_url": {"url": url}} if kind == "video" else part
    answer = omni.http.post("/v1/chat/completions", json={"messages": asked("hi", part)})
    assert answer.status_code == 400
    content = [{"type": kind, kind: url}]
    said = endpoint({"inputs": [{"role": "user", "content": content}]})["error"]
    for error in (answer.json()["error"]["message"], said):
        assert message in error
        assert not re.search(r"path|file://|array|tensor|PIL|pillow|min_frames|nframes|\bfps|register", error), error


def test_unknown_models_routes_and_json(omni):
    with pytest.raises(openai.NotFoundError, match="is not served here; ask for 'omni'"):
        ask(omni, QUESTIONS[0], model="gpt-4o")
    answer = omni.http.get("/v1/nothing")
    assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error"
    assert omni.http.get("/v1/chat/completions").status_code == 405
    answer = omni.http.post("/v1/chat/completions", content=b"{", headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])  # curl -d sends the last
def test_json_without_its_content_type_is_refused(omni, kind):
    """Web pages of other sites can make a browser send these, but no application/json."""
    headers, body = {} if kind is None else {"Content-Type": kind}, json.dumps({"messages": QUESTIONS[0]})
    answer = omni.http.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_content_type"
    found = "the body has no Content-Type" if kind is None else f"the body has the Content-Type '{kind}'"
    assert answer.json()["error"]["message"] == f"{found}; send it with Content-Type: application/json"


def test_bodies_that_are_no_object_and_no_form(omni):
    for body, message in ((b"", "the body is empty; send a JSON"), (b"[]", "the body must be a JSON object, got []")):
        answer = omni.http.post("/v1/chat/completions", content=body, headers=JSON)
        assert answer.status_code == 400 and answer.json()["error"]["message"].startswith(message)
    answer = omni.http.post("/v1/audio/transcriptions", json={"file": "x"})
    assert answer.status_code == 400 and "send it with Content-Type: multipart/form-data" in answer.text


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
    middleware = AdmissionMiddleware(broken, Limits(body_bytes=10), metrics, lambda: None)
    with pytest.raises(RuntimeError, match="unforeseen"):
        asyncio.run(middleware({"type": "http", "headers": [], "path": "/", "method": "GET"}, None, None))
    assert metrics.registry.get_sample_value("ming_requests_total", {"route": "other", "status": "500"}) == 1


def test_the_document_names_every_status_and_content_type(omni):
    """What clients are generated from: /openapi.json."""
    document = omni.http.get("/openapi.json").json()
    kinds = {
        "/v1/chat/completions": {"application/json", "text/event-stream"},
        "/v1/audio/speech": {"audio/wav", "audio/flac", "audio/pcm"},
        "/v1/audio/transcriptions": {"application/json", "text/plain", "text/event-stream"},
        "/v1/images/generations": {"application/json"},
        "/v1/images/edits": {"application/json"},
    }
    for path, content_types in kinds.items():
        answers = document["paths"][path]["post"]["responses"]
        assert {"400", "401", "404", "413", "429", "500", "503"} < answers.keys() and "422" not in answers
        assert answers["200"]["content"].keys() == content_types
        assert all(answers[status]["content"].keys() == {"application/json"} for status in answers.keys() - {"200"})
    forms = {"/v1/audio/transcriptions": {"file", "prompt"}, "/v1/images/edits": {"image", "prompt", "size"}}
    for path, fields in forms.items():
        schema = document["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert fields < schema["properties"].keys()
    assert document["paths"]["/metrics"]["get"]["responses"]["200"]["content"].keys() == {"text/plain"}
    assert document["paths"]["/v1/models/{name}"]["get"]["responses"].keys() > {"401", "404"}


def test_limits_are_numbers():
    with pytest.raises(ValueError, match="queue=0 must be at least 1"):
        EngineSettings(queue=0)
    with pytest.raises(ValueError, match="streams=inf must be a finite number of at least 1"):
        EngineSettings(streams=float("inf"))
    with pytest.raises(ValueError, match="media_seconds=nan must be a finite number of at least 0"):
        Limits(media_seconds=float("nan"))


def test_models_that_threads_cannot_share_are_refused():
    """Weights that are moved for each pass, and a static cache whose tokens wander."""
    away, sliding = tiny_model(), tiny_model(llm_config={"use_sliding_window": True, "sliding_window": 6})
    away.linear_proj.to("meta")
    with pytest.raises(ValueError, match=r"linear_proj\.0\.weight is offloaded.*load the model on one device"):
        create_app(away, processor())
    sliding.compile_decoding = True
    with pytest.raises(ValueError, match="a model with a sliding window is not compiled for a server"):
        create_app(sliding, processor())
