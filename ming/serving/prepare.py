"""Checked requests -> jobs for the engine: media are read, the processor runs, and what cannot be done is refused.

Everything here is for a thread beside the event loop, before a job waits.
"""

from collections.abc import Generator
from typing import Any

import torch
from transformers import StoppingCriteriaList

from ming.configuration_bailingmm import has_component
from ming.drawing import IMAGE_FOLDER
from ming.serving.batching import CountTokens, end_ids, own_randomness
from ming.serving.errors import ApiError, shorten
from ming.serving.fetch import Fetcher
from ming.serving.jobs import Deliver, Event, Finished, Sampling, StreamJob, TextJob
from ming.serving.limits import Limits
from ming.serving.media import MediaReader
from ming.serving.requests import ChatRequest, ImageRequest, SpeechRequest, TranscriptionRequest, to_chat
from ming.speech import Done


def missing_parts(model) -> dict[str, str]:
    """What a model cannot do -> why; "audio" and "image". What it can do is read from its repository now."""
    missing = {}
    if getattr(model, "talker", None) is None:
        missing["audio"] = "this model has no talker, so it cannot speak; serve a checkpoint with a talker"
    else:
        model.talker_processor, model.audio_detokenizer  # noqa: B018 - properties that read files
    if not model.config.load_image_gen:
        missing["image"] = "this model was loaded without its image head, so it cannot draw; serve it with the head"
    elif not has_component(model.config._name_or_path, IMAGE_FOLDER, getattr(model.config, "_commit_hash", None)):
        missing["image"] = f"this model has no {IMAGE_FOLDER}/ folder, so it cannot draw; serve a checkpoint that does"
    else:
        model.image_gen  # noqa: B018
    return missing


class Preparer:
    """Makes jobs.

    Args:
        model, processor: the model and its processor.
        limits: of a request.
        fetcher: reads URLs.
        transcribe: what goes with a recording that is to be transcribed.
    """

    def __init__(self, model, processor, limits: Limits, fetcher: Fetcher, transcribe: str):
        self.model, self.processor, self.limits, self.fetcher = model, processor, limits, fetcher
        self.transcribe = transcribe
        self.missing = missing_parts(model)

    @property
    def sampling_rate(self) -> int:
        """Of the sound that the model makes, in Hz."""
        return self.model.audio_detokenizer.config.sample_rate

    def chat(self, request: ChatRequest, deliver: Deliver) -> TextJob | StreamJob:
        """A job that answers a chat, in text or in text and speech."""
        if request.wants_audio:
            self._require("audio", "modalities")
            self._check_voice(request.audio.voice if request.audio else None, "audio.voice")
            if request.stop:
                raise ApiError("stop: not together with modalities=['text', 'audio']; leave it out", "stop")
        stop, wanted = request.stop_words(), self._wanted_tokens(request)
        chat = to_chat(request.messages, self._reader())
        inputs = self._inputs(
            chat,
            "messages",
            use_whisper_encoder=request.use_whisper_encoder,
            load_audio_from_video=request.load_audio_from_video,
        )
        new_tokens = self._new_tokens(inputs, wanted, "messages")
        if not request.wants_audio:
            return TextJob(deliver, inputs, request.sampling, new_tokens, stop)
        voice = request.audio.voice if request.audio else None
        return self._spoken_chat(deliver, inputs, request, new_tokens, voice)

    def transcription(self, request: TranscriptionRequest, file: bytes, deliver: Deliver) -> TextJob:
        """A job that writes down what a recording says."""
        recording = self._reader().audio(file, "file")
        text = {"type": "text", "text": request.prompt or self.transcribe}
        chat = [{"role": "user", "content": [text, recording]}]
        inputs = self._inputs(chat, "file", use_whisper_encoder=request.use_whisper_encoder)
        return TextJob(deliver, inputs, Sampling(request.temperature), self._new_tokens(inputs, None, "file"))

    def speech(self, request: SpeechRequest, deliver: Deliver) -> StreamJob:
        """A job that reads a text aloud."""
        self._require("audio", None)
        if (count := len(request.input)) > self.limits.speech_characters:
            raise ApiError(f"input: {count} characters are more than {self.limits.speech_characters}", "input")
        self._check_voice(request.voice, "voice")
        if not self.model.talker_processor.pieces(request.input):
            raise ApiError(f"input: {shorten(request.input)} holds nothing to say; give words", "input")
        events = self.model.speak_stream(request.input, speaker=request.voice, seed=request.seed)
        return StreamJob("speech", deliver, _until_done(events))

    def drawing(self, request: ImageRequest, files: list[bytes], deliver: Deliver) -> StreamJob:
        """A job that draws pictures of a prompt, and of the pictures that come with it."""
        self._require("image", None)
        options = self._drawing_options(request)
        reader = self._reader()
        content = [reader.image(file, "image") for file in files]
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": request.prompt}]}]
        inputs = self._on_device(self._inputs(chat, "prompt"))
        try:  # `stream` checks its arguments and does no work yet
            events = self.model.stream(**inputs, generation_mode="image", **options)
        except ValueError as error:
            raise ApiError(str(error)) from error
        return StreamJob("picture", deliver, _until_done(events))

    def _require(self, mode: str, param: str | None) -> None:
        if mode in self.missing:
            raise ApiError(self.missing[mode], param, code="not_available")

    def _reader(self) -> MediaReader:
        return MediaReader(self.fetcher, self.limits)

    def _wanted_tokens(self, request: ChatRequest) -> int | None:
        name = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
        wanted = getattr(request, name)
        if wanted is not None and wanted > self.limits.new_tokens:
            raise ApiError(f"{name}: {wanted} are more than {self.limits.new_tokens}; ask for fewer", name)
        return wanted

    def _new_tokens(self, inputs: dict[str, torch.Tensor], wanted: int | None, param: str) -> int:
        """How long a reply may be; the rest of the context where nobody says how long."""
        length, context = inputs["input_ids"].shape[1], self.model.config.llm_config.max_position_embeddings
        if length + (wanted or 1) > context:
            raise ApiError(
                f"a prompt of {length} tokens and a reply of {wanted or 1} are more than the model's context of "
                f"{context}; shorten the prompt, or ask for a shorter reply",
                param,
                code="context_length_exceeded",
            )
        return wanted or min(self.limits.new_tokens, context - length)

    def _check_voice(self, voice: str | None, param: str) -> None:
        try:
            self.model.talker_processor.voice(voice)
        except ValueError as error:
            raise ApiError(f"{param}: {error}", param) from error

    def _inputs(self, chat: list[dict], param: str, **options) -> dict[str, torch.Tensor]:
        """The processor's output for one chat, on the CPU."""
        try:
            inputs = self.processor.apply_chat_template(
                [chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
            )
        except ValueError as error:
            raise ApiError(str(error), param) from error
        if (length := inputs["input_ids"].shape[1]) > self.limits.prompt_tokens:
            raise ApiError(
                f"a prompt of {length} tokens is longer than {self.limits.prompt_tokens}; shorten it",
                param,
                code="context_length_exceeded",
            )
        encoder = "load_whisper" if options.get("use_whisper_encoder") else "load_audio"
        needed = {"pixel_values": "load_vision", "pixel_values_videos": "load_vision", "audio_feats": encoder}
        for name, flag in needed.items():
            if name in inputs and not getattr(self.model.config, flag):
                part = flag.removeprefix("load_")
                raise ApiError(
                    f"this model was loaded without {part!r}, so it cannot read these media; serve it with that part",
                    param,
                    code="not_available",
                )
        return dict(inputs)

    def _on_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        device, dtype = self.model.device, self.model.dtype
        return {
            name: tensor.to(device, dtype if tensor.is_floating_point() else None) for name, tensor in inputs.items()
        }

    def _spoken_chat(self, deliver, inputs, request: ChatRequest, new_tokens: int, voice: str | None) -> StreamJob:
        prompt_tokens = inputs["input_ids"].shape[1]
        counter = CountTokens(prompt_tokens)
        sampling = request.sampling.options()
        try:
            events = self.model.stream(
                **self._on_device(inputs),
                **sampling,
                generation_mode="audio",
                max_new_tokens=new_tokens,
                stopping_criteria=StoppingCriteriaList([counter]),
                speaker=voice,
                seed=request.seed,
            )
        except ValueError as error:
            raise ApiError(str(error)) from error
        ends = end_ids(self.model)

        def finished() -> Finished:
            return Finished("stop" if counter.last_id in ends else "length", prompt_tokens, counter.count)

        return StreamJob("speech", deliver, _seeded(_until_done(events, finished), request.seed, self.model.device))

    def _drawing_options(self, request: ImageRequest) -> dict[str, Any]:
        limits, image_gen = self.limits, self.model.image_gen
        height, width = request.height_and_width()
        if request.n > limits.drawings:
            raise ApiError(f"n: {request.n} pictures are more than {limits.drawings}; ask for fewer", "n")
        try:
            size, native, steps, _ = image_gen.check_options(
                height, width, request.num_inference_steps, request.guidance_scale, request.n
            )
        except ValueError as error:
            raise ApiError(str(error)) from error
        if max(size[0] * size[1], native[0] * native[1]) > limits.drawing_pixels:
            raise ApiError(
                f"size: {size[1]}x{size[0]} (width x height), made at {native[1]}x{native[0]}, is more than "
                f"{limits.drawing_pixels} pixels; ask for less",
                "size",
            )
        if steps > limits.drawing_steps:
            raise ApiError(
                f"num_inference_steps: {steps} are more than {limits.drawing_steps}; ask for fewer",
                "num_inference_steps",
            )
        return {
            "height": height,
            "width": width,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "num_images_per_prompt": request.n,
            "seed": request.seed,
        }


def _until_done(events: Generator, finished=lambda: Finished("stop")) -> Generator[Event, None, None]:
    """Events of the model for a job, with `Finished` at the end."""
    try:
        for event in events:
            if isinstance(event, Done):
                break
            yield event
    finally:
        events.close()
    yield finished()


def _seeded(events: Generator, seed: int | None, device: torch.device) -> Generator[Event, None, None]:
    """Events made with random numbers of a seed: the words of a spoken reply draw theirs from torch's generator."""
    with own_randomness(seed, device):
        yield from events


__all__ = ["Preparer", "missing_parts"]
