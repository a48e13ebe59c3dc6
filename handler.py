"""Hugging Face Inference Endpoints: `EndpointHandler(path)(data)`, called by the Hub's server for every request.

    {"inputs": "What comes after three?"}
    {"inputs": [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,..."},
                                             {"type": "text", "text": "What is it?"}]}],
     "parameters": {"generation_mode": ["audio"], "max_new_tokens": 64, "seed": 0}}

The answer holds what the request asked for: "generated_text", "generated_audio" (base64 of a WAV file, with
"sampling_rate") and "generated_images" (base64 of PNG files). The answer to a request that cannot be served is
{"error": ...}. A field that is null is like one that is left out; an unknown one is an error.

Text is the likeliest one, unless a temperature, top_p or top_k asks for drawn tokens, or "do_sample" does.
"""

import base64
import math
from typing import Any

import torch
from transformers import CompileConfig

from image_gen.configuration_image_gen import MAX_SIDE, MIN_SIDE
from ming.argument_checks import in_words_of_request
from ming.encoding import encode_audio, encode_image
from ming.loading import load_model
from ming.processing_bailingmm import BailingMMProcessor
from ming.randomness import MAX_SEED

MEDIA = ("image", "audio", "video")
MODES = ("text", "audio", "image")
MAX_NEW_TOKENS = 512
# What a request may set; other arguments of `generate` could run code or exhaust the endpoint.
FLAGS = ("do_sample", "use_whisper_encoder")
WHOLE_NUMBERS = {  # name -> lowest and highest value
    "max_new_tokens": (1, None),  # a larger one than `MAX_NEW_TOKENS` counts as that
    "top_k": (0, None),
    "seed": (0, MAX_SEED - 1),
    "height": (MIN_SIDE, MAX_SIDE),
    "width": (MIN_SIDE, MAX_SIDE),
    "num_inference_steps": (1, 50),
    "num_images_per_prompt": (1, 4),
}
NUMBERS = {"temperature": (0, 100), "top_p": (0, 1), "repetition_penalty": (0, 100), "guidance_scale": (1, 100)}
PARAMETERS = {"generation_mode", "speaker", *FLAGS, *WHOLE_NUMBERS, *NUMBERS}
OFF = {"temperature": 1, "top_p": 1, "top_k": 0}  # each asks for drawn tokens; these values change no probability
# What clients of the Hub send beside the inputs, which changes nothing here: how to wait, and what not to do.
FIELDS = {"inputs", "parameters", "options", "stream"}
OPTIONS = {"wait_for_model", "use_cache", "use_gpu"}
MESSAGE = {"role", "content"}
UNREAD = {"name", "reasoning_content"}  # of messages, as other programs keep them


class EndpointHandler:
    """Answers one request after the other.

    Args:
        path: directory of the repository.
        device, dtype: default: the first CUDA GPU in bfloat16, or the CPU in float32.
        compile: see `load_model`.
    """

    def __init__(
        self,
        path: str = "",
        device: str | None = None,
        dtype: torch.dtype | None = None,
        compile: bool | CompileConfig = False,
    ):
        self.processor = BailingMMProcessor.from_pretrained(path)
        self.model = load_model(path, device=device, dtype=dtype, compile=compile)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Serve a request; see the module's docstring."""
        try:
            return self._answer(data)
        except (ValueError, TypeError, OSError, FloatingPointError) as error:
            return {"error": in_words_of_request(error)}

    def _answer(self, data: dict[str, Any]) -> dict[str, Any]:
        messages, parameters = parse_request(data)
        modes = parameters.pop("generation_mode", "text")
        modes = [modes] if isinstance(modes, str) else list(modes)
        prepared: Any = self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            use_whisper_encoder=parameters.pop("use_whisper_encoder", False),
        )
        inputs = prepared.to(self.model.device, self.model.dtype)
        if set(modes) != {"image"}:
            parameters["max_new_tokens"] = min(parameters.get("max_new_tokens", MAX_NEW_TOKENS), MAX_NEW_TOKENS)
        output = self.model.generate(**inputs, generation_mode=modes, **parameters)
        answer: dict[str, Any] = {}
        if set(modes) != {"image"}:
            sequences = output if isinstance(output, torch.Tensor) else output.sequences
            reply = sequences[0, inputs["input_ids"].shape[1] :]
            answer["generated_text"] = self.processor.decode(reply, skip_special_tokens=True)
        if "audio" in modes:
            answer["generated_audio"] = _base64(encode_audio(output.waveforms[0], output.sampling_rate))
            answer["sampling_rate"] = output.sampling_rate
        if "image" in modes:
            answer["generated_images"] = [_base64(encode_image(image)) for image in output.images]
        return answer


def parse_request(data: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The messages and the parameters of a request.

    Images, audio and videos must come with the request: file names would read the server's disk, addresses its
    network.

    Raises:
        ValueError: it names what is wrong and what is accepted.
    """
    if not isinstance(data, dict) or "inputs" not in data:
        raise ValueError('a request is {"inputs": text or messages, "parameters": {...}}')
    _check_fields(data)
    inputs, parameters = data["inputs"], parse_parameters(data.get("parameters"))
    messages = [{"role": "user", "content": inputs}] if isinstance(inputs, str) else inputs
    has_messages = isinstance(messages, list) and len(messages) > 0
    if not has_messages or not all(isinstance(item, dict) and "content" in item for item in messages):
        raise ValueError('inputs must be text or a list of at least one {"role": ..., "content": ...}')
    for message in messages:
        if extra := sorted(_given(message) - MESSAGE - UNREAD):
            raise ValueError(f"unknown keys of a message: {', '.join(extra)}; accepted are role and content")
        _check_content(message["content"])
    return messages, parameters


def _given(fields: dict[str, Any]) -> set[str]:
    """Names of the fields that hold something; a null or an empty list is like a field that is left out."""
    return {name for name, value in fields.items() if value is not None and value != []}


def _check_fields(data: dict[str, Any]) -> None:
    """Raise a `ValueError` for a field of the request, beside its inputs and parameters, that asks for something."""
    given = {name: data[name] for name in _given(data)}
    if unknown := sorted(given.keys() - FIELDS):
        place = '; put it into "parameters"' if PARAMETERS.issuperset(unknown) else ""
        raise ValueError(f"unknown fields {', '.join(unknown)}; accepted are {', '.join(sorted(FIELDS))}{place}")
    if given.get("stream", False) is not False:
        raise ValueError(f"stream={_shown(given['stream'])}: answers come whole here; leave it out, or use ming serve")
    options = given.get("options", {})
    if not isinstance(options, dict) or not _given(options) <= OPTIONS:
        raise ValueError(
            f"options={_shown(options)} may hold {', '.join(sorted(OPTIONS))}; what the model shall do stands in "
            '"parameters"'
        )


def parse_parameters(given: Any) -> dict[str, Any]:
    """The parameters of a request; a null is like a parameter that is left out.

    Raises:
        ValueError: it names the parameter, its value and what is accepted.
    """
    if not isinstance(given, dict | None):
        raise ValueError(f"parameters={_shown(given)} must be an object of names and values")
    parameters = {name: value for name, value in (given or {}).items() if value is not None}
    if unknown := sorted(parameters.keys() - PARAMETERS):
        raise ValueError(f"unknown parameters {', '.join(unknown)}; accepted are {', '.join(sorted(PARAMETERS))}")
    for name, value in parameters.items():
        if name in FLAGS and not isinstance(value, bool):
            raise ValueError(f"{name}={_shown(value)} must be true or false")
        if name == "speaker" and not isinstance(value, str):
            raise ValueError(f"speaker={_shown(value)} must be the name of one voice")
        if name == "generation_mode":
            _check_modes(value)
        if name in WHOLE_NUMBERS:
            _check_number(name, value, (int,), *WHOLE_NUMBERS[name])
        if name in NUMBERS:
            _check_number(name, value, (int, float), *NUMBERS[name])
    return _greedy(parameters) if parameters.get("temperature") == 0 else _sampled(parameters)


def _sampled(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters in which a temperature, top_p or top_k asks for drawn tokens, with the flag for it."""
    given = [name for name in OFF if name in parameters]
    if not given or parameters.get("generation_mode") in ("image", ["image"]):
        return parameters
    if parameters.get("do_sample") is False and any(parameters[name] != OFF[name] for name in given):
        raise ValueError(f"do_sample=False takes the likeliest token; leave it out, or {', '.join(given)}")
    return {"do_sample": True, **parameters}


def _greedy(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a temperature of 0, which the library refuses, as those of the likeliest token."""
    if parameters.get("do_sample"):
        raise ValueError("temperature=0 takes the likeliest token; leave do_sample out, or raise the temperature")
    return {**{name: value for name, value in parameters.items() if name != "temperature"}, "do_sample": False}


def _check_modes(value: Any) -> None:
    modes = value if isinstance(value, list) else [value]
    if not modes or not all(isinstance(mode, str) and mode in MODES for mode in modes):
        raise ValueError(f"generation_mode={_shown(value)} must be one of {', '.join(MODES)}, or a list of them")


def _check_number(name: str, value: Any, types: tuple[type, ...], lowest: int, highest: int | None) -> None:
    is_number = isinstance(value, types) and not isinstance(value, bool)
    most = math.inf if highest is None else highest
    if not is_number or not (lowest <= value <= most) or value == math.inf:  # not for NaN, either
        kind = "whole number" if types == (int,) else "number"
        limits = f"of at least {lowest}" if highest is None else f"of {lowest} to {highest}"
        raise ValueError(f"{name}={_shown(value)} must be a {kind} {limits}")


def _shown(value: Any) -> str:
    """A value for a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_content(content: Any) -> None:
    """Raise a `ValueError` for content that is neither text nor a list of items with data URLs."""
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ValueError('content must be text or a list of {"type": ..., ...}')
    for item in content:
        kind = item.get("type")
        if kind == "text":
            if not isinstance(item.get("text"), str) or not _given(item) <= {"type", "text"}:
                raise ValueError(f'{_shown(item)} is no text item; one is {{"type": "text", "text": "..."}}')
            continue
        if kind not in MEDIA:
            raise ValueError(f"unknown content type {kind!r}; accepted are text, {', '.join(MEDIA)}")
        extra = _given(item) - {"type", kind}
        if extra or not isinstance(item.get(kind), str) or not item[kind].startswith("data:"):
            raise ValueError(f'{kind} must be a data URL: {{"type": "{kind}", "{kind}": "data:...;base64,..."}}')


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


__all__ = ["EndpointHandler"]
