"""The Hub's endpoint handler, called as the Hub's server does: from the repository's folder, with JSON in and out."""

import base64
import importlib.util
import io
import json
from pathlib import Path

import pytest
import soundfile
import torch
from image_helpers import build_drawing_repository
from PIL import Image

from ming.encoding import encode_audio

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def handler(tmp_path_factory):
    """The server imports handler.py of the repository and hands over the repository's folder."""
    specification = importlib.util.spec_from_file_location("handler", ROOT / "handler.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.EndpointHandler(str(build_drawing_repository(tmp_path_factory.mktemp("endpoint"))))


def data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def call(handler, inputs, **parameters) -> dict:
    request = json.loads(json.dumps({"inputs": inputs, "parameters": parameters}))
    return json.loads(json.dumps(handler(request)))


def asked(*media: dict, text: str) -> list[dict]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


PICTURE = {"type": "image", "image": data_url(ROOT / "demo" / "picture.jpg", "image/jpeg")}
RECORDING = {"type": "audio", "audio": data_url(ROOT / "demo" / "recording.wav", "audio/wav")}
CLIP = {"type": "video", "video": data_url(ROOT / "demo" / "clip.mp4", "video/mp4")}


def test_text(handler):
    assert call(handler, "What comes after three?") == {"generated_text": "four"}


def test_media(handler):
    expected = json.loads((ROOT / "demo" / "expected.json").read_text())
    assert call(handler, asked(PICTURE, text="Describe the picture."))["generated_text"] == expected["picture"]
    for whisper in (False, True):
        heard = call(handler, asked(RECORDING, text="Transcribe this recording."), use_whisper_encoder=whisper)
        assert heard["generated_text"] == expected["recording"]
    assert call(handler, asked(CLIP, text="Which way does it move?"))["generated_text"] == "down"


def test_pictures_out(handler):
    options = {"generation_mode": "image", "num_inference_steps": 1, "seed": 0, "num_images_per_prompt": 2}
    answer = call(handler, "Draw a circle.", **options)
    assert answer.keys() == {"generated_images"} and len(answer["generated_images"]) == 2
    image = Image.open(io.BytesIO(base64.b64decode(answer["generated_images"][0])))
    assert image.format == "PNG" and image.size == (64, 64)
    both = call(handler, "What comes after three?", **{**options, "generation_mode": ["text", "image"]})
    assert both["generated_text"] == "four" and len(both["generated_images"]) == 2


def test_speech_out(handler):
    options = {"generation_mode": "audio", "speaker": "oscar", "seed": 0, "max_new_tokens": 8}
    answer = call(handler, "What comes after three?", **options)
    assert (
        answer.keys() == {"generated_text", "generated_audio", "sampling_rate"} and answer["generated_text"] == "four"
    )
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(answer["generated_audio"])))
    assert rate == answer["sampling_rate"] == 22050 and 0.1 < len(samples) / rate < 3 and abs(samples).max() > 0.01


def test_audio_is_a_wav_file():
    waveform = torch.sin(torch.arange(2205) / 10)
    samples, rate = soundfile.read(io.BytesIO(encode_audio(waveform, 22050)))
    assert rate == 22050 and abs(samples - waveform.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("request_data", "message"),
    [
        ({}, 'a request is {"inputs"'),
        ({"inputs": 3}, "inputs must be text or a list"),
        ({"inputs": []}, "inputs must be text or a list of at least one"),
        ({"inputs": "hi", "parameters": {"max_tokens": 3}}, "unknown parameters max_tokens"),
        ({"inputs": asked({"type": "image", "image": "/etc/passwd"}, text="?")}, "image must be a data URL"),
        ({"inputs": asked({"type": "audio", "audio": "http://10.0.0.1/"}, text="?")}, "audio must be a data URL"),
        ({"inputs": asked({"type": "image", "image": "data:,", "path": "/x"}, text="?")}, "image must be a data URL"),
        ({"inputs": asked({"type": "smell"}, text="?")}, "unknown content type 'smell'"),
        ({"inputs": asked({"type": "image", "image": "data:image/png;base64,AAAA"}, text="?")}, "image"),
        ({"inputs": "hi", "parameters": {"generation_mode": "smell"}}, "generation_mode='smell'"),
        ({"inputs": "hi", "parameters": {"speaker": "x"}}, "generation_mode='audio'"),
        ({"inputs": "hi", "stream": True}, "stream=True: answers come whole here; leave it out"),
        ({"inputs": "hi", "options": {"do_sample": True}}, "options={'do_sample': True} may hold use_cache, use_gpu"),
        ({"inputs": "hi", "options": "fast"}, "options='fast' may hold use_cache, use_gpu, wait_for_model"),
        ({"inputs": "hi", "generation_mode": "audio"}, "unknown fields generation_mode; accepted are inputs, options"),
        (
            {"inputs": "hi", "seed": 0, "top_k": 3},
            "seed, top_k; accepted are inputs, options, parameters, stream; put",
        ),
        ({"inputs": "hi", "paramters": {}}, "unknown fields paramters; accepted are inputs, options, parameters"),
        ({"inputs": asked({"type": "text", "text": "a", "bold": True}, text="?")}, "is no text item; one is"),
        ({"inputs": asked({"type": "text", "content": "a"}, text="?")}, "is no text item; one is"),
        ({"inputs": [{"role": "user", "content": "a", "images": ["b"]}]}, "unknown keys of a message: images; accept"),
        ({"inputs": "hi", "parameters": {"do_sample": False, "top_p": 0.5}}, "do_sample=False takes the likeliest"),
        ({"inputs": "hi", "parameters": [1]}, "parameters=[1] must be an object"),
        ({"inputs": "hi", "parameters": {"speaker": ["iris"]}}, "speaker=['iris'] must be the name of one voice"),
        ({"inputs": "hi", "parameters": {"generation_mode": []}}, "generation_mode=[] must be one of text, audio"),
        ({"inputs": "hi", "parameters": {"generation_mode": [["text"]]}}, "generation_mode=[['text']] must be one of"),
        (
            {"inputs": "hi", "parameters": {"use_whisper_encoder": "no"}},
            "use_whisper_encoder='no' must be true or fal",
        ),
    ],
)
def test_bad_requests_are_answered_by_one_error(handler, request_data, message):
    answer = handler(request_data)
    assert answer.keys() == {"error"} and message in answer["error"]


NUMBERS = {
    "max_new_tokens": "whole number of at least 1",
    "top_k": "whole number of at least 0",
    "seed": "whole number of 0 to",
    "height": "whole number of 64 to 2048",
    "width": "whole number of 64 to 2048",
    "num_inference_steps": "whole number of 1 to 50",
    "num_images_per_prompt": "whole number of 1 to 4",
    "temperature": "number of 0 to 100",
    "top_p": "number of 0 to 1",
    "repetition_penalty": "number of 0 to 100",
    "guidance_scale": "number of 1 to 100",
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["Infinity", "-Infinity", "NaN", "-1", "true", '"3"', "[3]", "1e400"])
def test_numbers_are_finite_and_within_limits(handler, name, value):
    """Python's JSON reads infinity and NaN; the answer names parameter, value and what is accepted."""
    request = json.loads(f'{{"inputs": "hi", "parameters": {{"{name}": {value}}}}}')
    expected = f"{name}={request['parameters'][name]!r} must be a {NUMBERS[name]}"
    assert handler(request)["error"].startswith(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", 1e-40, "temperature=1e-40 must be at least 0.0001; 0 or do_sample=False takes the likeliest"),
        ("temperature", 0, "temperature=0 takes the likeliest token; leave do_sample out"),
        ("repetition_penalty", 1e-40, "repetition_penalty=1e-40 must be a finite number of at least 0.0001"),
        ("repetition_penalty", 0, "repetition_penalty=0 must be a finite number of at least 0.0001"),
    ],
)
def test_numbers_that_cannot_be_drawn_with(handler, name, value, message):
    assert message in call(handler, "hi", do_sample=True, **{name: value})["error"]


@pytest.mark.parametrize(
    "parameters",
    [{"temperature": 0}, {"temperature": 0, "do_sample": False}, {"repetition_penalty": 1}, {"guidance_scale": 2}]
    + [{name: value, "do_sample": True} for name, value in (("temperature", 2), ("top_p", 1), ("top_p", 0))]
    + [{"repetition_penalty": 100}, {"temperature": 1e-4, "do_sample": True}, {"temperature": 100, "do_sample": True}],
)
def test_whole_numbers_and_limits_are_answered(handler, parameters):
    modes = {"generation_mode": ["text", "image"], "num_inference_steps": 1} if "guidance_scale" in parameters else {}
    answer = call(handler, "What comes after three?", max_new_tokens=4, **parameters, **modes)
    assert "error" not in answer
    if not parameters.get("do_sample") and parameters.get("repetition_penalty") != 100:
        assert answer["generated_text"] == "four"


def test_a_model_that_is_not_finite_is_an_error(handler):
    """As every other request that cannot be served; the server would only say that something broke."""
    weight = handler.model.get_output_embeddings().weight.data
    kept = weight.clone()
    try:
        weight.fill_(float("nan"))
        assert "not finite" in call(handler, "hi")["error"]
    finally:
        weight.copy_(kept)


@pytest.mark.parametrize(
    ("name", "value"), [("num_inference_steps", 51), ("num_images_per_prompt", 5), ("width", 4096)]
)
def test_work_has_an_upper_limit(handler, name, value):
    request = {"inputs": "A circle.", "parameters": {"generation_mode": "image", name: value}}
    assert handler(request)["error"].startswith(f"{name}={value} must be a whole number of ")


def test_a_null_is_like_a_parameter_that_is_left_out(handler):
    assert call(handler, "What comes after three?", seed=None, return_full_text=None) == {"generated_text": "four"}


@pytest.mark.parametrize(
    "fields",
    [
        {"options": {}, "stream": False},
        {"options": {"wait_for_model": True, "use_cache": False, "use_gpu": None}, "stream": None, "model": None},
        {"parameters": {"do_sample": False, "temperature": 1.0, "top_p": 1, "top_k": 0}},
    ],
)
def test_what_clients_send_as_a_matter_of_course_changes_nothing(handler, fields):
    message = {"role": "user", "content": "What comes after three?", "name": "anna", "tool_calls": None}
    kept = {"role": "assistant", "content": "two", "tool_calls": [], "reasoning_content": "a number"}
    inputs = [{"role": "user", "content": "What comes after one?"}, kept, message]
    assert handler({"inputs": inputs, **fields}) == {"generated_text": "four"}


@pytest.mark.parametrize("parameters", [{}, {"temperature": 1.0}, {"top_p": 1.0}, {"top_k": 1000}])
def test_a_parameter_of_drawing_draws(handler, parameters):
    """As text-generation-inference has it: nobody sends a temperature for the likeliest token."""
    torch.manual_seed(0)
    texts = {call(handler, "Tell me a story.", max_new_tokens=8, **parameters)["generated_text"] for _ in range(4)}
    assert (len(texts) > 1) == bool(parameters)


def test_images_that_the_assistant_made_are_seen(handler):
    history = [*asked(text="Draw something."), {"role": "assistant", "content": [PICTURE]}]
    question = [{"role": "user", "content": "What colour is the background?"}]
    assert call(handler, [*history, *question]) == {"generated_text": "black"}
    assert "add a message of the user behind it" in call(handler, history)["error"]
