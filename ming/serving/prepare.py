"""Validated requests -> jobs for the engine: media are read, the processor runs, impossible requests are refused.

All of it runs in threads beside the event loop, before a job waits in the engine's queue.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import torch

from ming.argument_checks import in_words_of_request
from ming.background import Arrivals
from ming.components import IMAGE_GEN
from ming.events import Done, StreamEvent, TextDelta
from ming.generation_arguments import raise_if_too_long
from ming.serving.batching import to_model
from ming.serving.engine_jobs import Deliver, Event, Failed, Finished, Sampling, StreamJob, TextJob
from ming.serving.errors import ApiError, shorten
from ming.serving.fetch import Fetcher
from ming.serving.media import MediaReader
from ming.serving.requests import ChatRequest, ImageRequest, SpeechRequest, TranscriptionRequest, to_chat
from ming.serving.settings import Limits
from ming.serving.spoken_replies import SpokenReplies
from ming.speech import PromptStates

Inputs = dict[str, torch.Tensor]


def missing_outputs(model) -> dict[str, str]:
    """Which of "audio" and "image" a model cannot generate -> why."""
    missing, source = {}, model.components.source
    if getattr(model, "talker", None) is None:
        missing["audio"] = "this model has no talker, so it cannot speak; serve a checkpoint with a talker"
    elif source and not model.components.talker_processor().voices:
        missing["audio"] = "this model has no voices/ folder, so it cannot speak; serve a checkpoint that does"
    if not model.config.load_image_gen:
        missing["image"] = "this model was loaded without its image head, so it cannot draw; serve it with the head"
    elif not model.image_gen.is_loaded and not (source and source.has_component(IMAGE_GEN)):
        missing["image"] = f"this model has no {IMAGE_GEN}/ folder, so it cannot draw; serve a checkpoint that does"
    return missing


def load_components(model) -> None:
    """Read the components that the model generates audio and images with, so that no request has to wait for them."""
    missing = missing_outputs(model)
    if "audio" not in missing:
        model.components.talker_processor()
        model.audio_detokenizer.load()
    if "image" not in missing:
        model.image_gen.load()


class Preparer:
    """Makes jobs.

    Args:
        model, processor: the model and its processor.
        limits: of a request.
        fetcher: reads URLs.
        transcription_prompt: the instruction that goes with a recording to transcribe.
    """

    def __init__(self, model, processor, limits: Limits, fetcher: Fetcher, transcription_prompt: str):
        self.model, self.processor, self.limits, self.fetcher = model, processor, limits, fetcher
        self.transcription_prompt = transcription_prompt
        self.replies = SpokenReplies(limits.spoken_replies, limits.spoken_seconds)
        self.missing = missing_outputs(model)

    @property
    def sampling_rate(self) -> int:
        """Of the audio that the model generates, in Hz."""
        return self.model.audio_detokenizer.config.sample_rate

    def has_words(self, text: str) -> bool:
        """Whether a text holds anything to read aloud."""
        return bool(self.model.components.talker_processor().pieces(text))

    def chat(self, request: ChatRequest, deliver: Deliver) -> TextJob | StreamJob:
        """A job that answers a chat, in text or in text and speech."""
        voice = request.audio.voice if request.audio else None
        if request.wants_audio:
            self._check_output("audio", "modalities")
            self._check_voice(voice, "audio.voice")
            if request.stop:
                raise ApiError("stop: not together with modalities=['text', 'audio']; leave it out", "stop")
        stop, wanted = request.stop_words(), self._wanted_tokens(request)
        chat = to_chat(request.messages, self._reader(), self.replies)
        inputs = self._inputs(
            chat,
            "messages",
            use_whisper_encoder=request.use_whisper_encoder,
            load_audio_from_video=request.load_audio_from_video,
        )
        new_tokens = self._new_tokens(inputs, wanted, "messages")
        if not request.wants_audio:
            return TextJob(deliver, inputs, request.sampling, new_tokens, stop)
        return self._spoken_chat(deliver, inputs, request, new_tokens, voice)

    def transcription(self, request: TranscriptionRequest, file: bytes, deliver: Deliver) -> TextJob:
        """A job that writes down what a recording says."""
        reader = self._reader()
        recording = reader.audio(file, "file")
        text = {"type": "text", "text": self.transcription_prompt}
        chat = [{"role": "user", "content": [text, recording]}]
        inputs = self._inputs(chat, "file", use_whisper_encoder=request.use_whisper_encoder)
        job = TextJob(deliver, inputs, Sampling(request.temperature), self._new_tokens(inputs, None, "file"))
        job.audio_seconds = reader.seconds["audio"]
        return job

    def speech(self, request: SpeechRequest, deliver: Deliver) -> StreamJob:
        """A job that reads a text aloud."""
        self._check_output("audio", None)
        if (count := len(request.input)) > self.limits.speech_characters:
            raise ApiError(f"input: {count} characters are more than {self.limits.speech_characters}", "input")
        self._check_voice(request.voice, "voice")
        if not self.has_words(request.input):
            raise ApiError(f"input: {shorten(request.input)} holds nothing to say; give words", "input")
        events = self.model.speak_stream(request.input, speaker=request.voice, seed=request.seed)
        return StreamJob("speech", deliver, _until_done(events))

    def drawing(self, request: ImageRequest, files: Sequence[bytes], deliver: Deliver) -> StreamJob:
        """A job that draws images from a prompt and from the images that come with it."""
        self._check_output("image", None)
        options = self._drawing_options(request)
        reader = self._reader()
        content = [reader.image(file, "image") for file in files]
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": request.prompt}]}]
        inputs = to_model(self._inputs(chat, "prompt"), self.model)
        events = self._stream(inputs, generation_mode="image", **options)
        return StreamJob("image", deliver, _until_done(events))

    def _spoken_chat(
        self, deliver: Deliver, inputs: Inputs, request: ChatRequest, new_tokens: int, voice: str | None
    ) -> StreamJob:
        """The text is decoded among the other chats, the audio follows it."""
        try:
            settings = self.model.speech.resolve(1, speaker=voice, seed=request.seed)
        except ValueError as error:
            raise ApiError(str(error)) from error
        states = PromptStates(inputs["input_ids"].shape[1], inputs["attention_mask"])
        arrivals = Arrivals()

        def arrive(event: Event) -> None:
            if isinstance(event, TextDelta):
                arrivals.items.put(event.text)
            elif isinstance(event, Finished | Failed):
                arrivals.end(event.error if isinstance(event, Failed) else None)

        text = TextJob(arrive, inputs, request.sampling, new_tokens, prompt_states=states, kind=None)
        events = self.model.speech.stream_reply(arrivals, settings, states)

        def finished() -> Finished:
            assert isinstance(text.ended, Finished)  # an error has been raised by `arrivals`
            return text.ended

        return StreamJob("speech", deliver, _until_done(events, finished), text)

    def _stream(self, inputs: Inputs, **options: Any) -> Iterator[StreamEvent]:
        """The model's events; `stream` checks its arguments at once and works when the first event is asked for."""
        try:
            return self.model.stream(**inputs, **options)
        except ValueError as error:
            raise ApiError(str(error)) from error

    def _check_output(self, mode: str, param: str | None) -> None:
        if mode in self.missing:
            raise ApiError(self.missing[mode], param, code="not_available")

    def _check_voice(self, voice: str | None, param: str) -> None:
        try:
            self.model.components.talker_processor().voice(voice)
        except ValueError as error:
            raise ApiError(f"{param}: {error}", param) from error

    def _reader(self) -> MediaReader:
        return MediaReader(self.fetcher, self.limits)

    def _wanted_tokens(self, request: ChatRequest) -> int | None:
        name = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
        wanted = getattr(request, name)
        if wanted is not None and wanted > self.limits.new_tokens:
            raise ApiError(f"{name}: {wanted} are more than {self.limits.new_tokens}; ask for fewer", name)
        return wanted

    def _new_tokens(self, inputs: Inputs, wanted: int | None, param: str) -> int:
        """How long a reply may be; the rest of the context where the request does not limit it."""
        length, context = inputs["input_ids"].shape[1], self.model.config.llm_config.max_position_embeddings
        reply = wanted or 1
        try:
            raise_if_too_long(length + reply, context, f"the prompt with a reply of {reply}")
        except ValueError as error:
            message = f"{error}; shorten the prompt, or ask for a shorter reply"
            raise ApiError(message, param, code="context_length_exceeded") from error
        return wanted or min(self.limits.new_tokens, context - length)

    def _inputs(self, chat: list[dict], param: str, **options) -> Inputs:
        """The processor's output for one chat, on the CPU."""
        try:
            inputs = self.processor.apply_chat_template(
                [chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
            )
        except ValueError as error:
            raise ApiError(in_words_of_request(error), param) from error
        if (length := inputs["input_ids"].shape[1]) > self.limits.prompt_tokens:
            raise ApiError(
                f"a prompt of {length} tokens is longer than {self.limits.prompt_tokens}; shorten it",
                param,
                code="context_length_exceeded",
            )
        self._check_encoders(inputs, param, bool(options.get("use_whisper_encoder")))
        return dict(inputs)

    def _check_encoders(self, inputs: Inputs, param: str, use_whisper_encoder: bool) -> None:
        audio = "whisper" if use_whisper_encoder else "audio"
        needed = {"pixel_values": "vision", "pixel_values_videos": "vision", "audio_feats": audio}
        for name, part in needed.items():
            if name in inputs and not getattr(self.model.config, f"load_{part}"):
                raise ApiError(
                    f"this model was loaded without {part!r}, so it cannot read these media; serve it with that part",
                    param,
                    code="not_available",
                )

    def _drawing_options(self, request: ImageRequest) -> dict[str, Any]:
        """Options of `stream` for the image mode.

        Raises:
            ApiError: the image head cannot draw this, or it is more than the limits allow.
        """
        limits = self.limits
        height, width = request.height_and_width()
        if request.n > limits.drawings:
            raise ApiError(f"n: {request.n} images are more than {limits.drawings}; ask for fewer", "n")
        try:
            size, native, steps, _ = self.model.image_gen.resolve_options(
                height, width, request.num_inference_steps, request.guidance_scale, request.n
            )
        except ValueError as error:
            name = str(error).partition("=")[0].partition(" ")[0]  # of the argument, with which the error begins
            field = {"height": "size", "width": "size", "num_images_per_prompt": "n"}.get(name, name)
            raise ApiError(f"{field}: {error}", field) from error
        if max(size[0] * size[1], native[0] * native[1]) > limits.drawing_pixels:
            raise ApiError(
                f"size: {size[1]}x{size[0]} (width x height), drawn at {native[1]}x{native[0]}, is more than "
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


def _until_done(
    events: Iterator[StreamEvent], finished: Callable[[], Finished] = lambda: Finished("stop")
) -> Generator[Event, None, None]:
    """Events of the model for a job, with `Finished` at the end."""
    try:
        for event in events:
            if isinstance(event, Done):
                break
            yield event
    finally:
        if isinstance(events, Generator):
            events.close()
    yield finished()


__all__ = ["Preparer", "load_components", "missing_outputs"]
