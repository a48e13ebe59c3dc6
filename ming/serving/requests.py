"""Shapes of requests, as in OpenAI's API, and how their content parts become content items of our chats.

Unknown fields are refused, since they might change the answer. Some fields of OpenAI's API are known, but take only
the values with which they change nothing, such as `n` and `tools`. A null is like a field that is left out.
"""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from ming.argument_checks import LOWEST_DIVISOR
from ming.randomness import MAX_SEED
from ming.serving.audio_formats import STREAMED
from ming.serving.engine_jobs import Sampling
from ming.serving.errors import ApiError, shorten
from ming.serving.media import MediaReader
from ming.serving.spoken_replies import SpokenReplies


def _encodable(text: str) -> str:
    """Refuse lone surrogates: JSON can hold such halves of characters, a tokenizer cannot take them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"not text: {error.reason} at {error.start}") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]


def _usable(temperature: float) -> float:
    """Refuse temperatures above 0 at which the logits would overflow."""
    if 0 < temperature < LOWEST_DIVISOR:
        raise ValueError(f"must be at least {LOWEST_DIVISOR:g}, or 0, which takes the likeliest token")
    return temperature


def _temperatures_up_to(highest: float) -> WithJsonSchema:
    usable = {"type": "number", "minimum": LOWEST_DIVISOR, "maximum": highest}
    return WithJsonSchema({"anyOf": [{"type": "number", "const": 0}, usable]})


ChatTemperature = Annotated[float, Field(ge=0, le=2), AfterValidator(_usable), _temperatures_up_to(2)]
FileTemperature = Annotated[float, Field(ge=0, le=1), AfterValidator(_usable), _temperatures_up_to(1)]


class Neutral:
    """Annotation of a field that this server does not support: it takes the values that change nothing.

    Args:
        values: all of them, beside null.
        remedy: what to do instead, for the error.
    """

    def __init__(self, *values: Any, remedy: str = ""):
        self.values, self.remedy = values, remedy

    def check(self, value: Any) -> Any:
        """Return the value if it changes nothing; raise a `ValueError` otherwise."""
        if not any(type(value) is type(neutral) and value == neutral for neutral in self.values):
            accepted = ", or send " + " or ".join(map(json.dumps, self.values)) if self.values else ""
            remedy = f"; {self.remedy}" if self.remedy else ""
            raise ValueError(f"not supported here; leave it out{accepted}{remedy}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: Any) -> dict[str, Any]:
        return {"enum": list(self.values) or [None]}


def _document_nulls(schema: dict[str, Any]) -> None:
    """Change a JSON schema to what `Shape` accepts: null in place of every field that may be left out."""
    for name, field in schema.get("properties", {}).items():
        if name not in schema.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}
    schema["additionalProperties"] = {"type": "null"}


class Shape(BaseModel):
    """A part of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_document_nulls)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return {name: value for name, value in data.items() if value is not None or name in required}


class CachedPart(Shape):
    """A part of a message. `prompt_cache_breakpoint` is accepted and ignored: it changes no answer."""

    prompt_cache_breakpoint: dict[str, Any] | None = None


class TextPart(CachedPart):
    type: Literal["text"]
    text: Text


class ImageUrl(Shape):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(CachedPart):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Shape):
    """`format` is not used, since the data show it; the field is there because OpenAI's clients send it."""

    data: str
    format: str | None = None


class AudioPart(CachedPart):
    type: Literal["input_audio"]
    input_audio: InputAudio


class Url(Shape):
    url: str


class VideoPart(CachedPart):
    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart, Field(discriminator="type")]
# The tags let pydantic report errors of the one form that was sent.
Content = Annotated[
    Annotated[Text | None, Tag("plain")] | Annotated[list[Part], Tag("parts")],
    Discriminator(lambda value: "parts" if isinstance(value, list) else "plain"),
]


class SpokenReply(Shape):
    """What the assistant said: by the id of its audio while the server knows it, or as it was answered."""

    id: str
    transcript: Text | None = None
    data: str | None = None
    expires_at: int | None = None


class ChatMessage(Shape):
    """One turn. The fields after `content` occur in replies, which clients send back unchanged.

    Beside `audio` the content may be left out.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Annotated[Any, Neutral("")] = None
    refusal: Annotated[Any, Neutral("")] = None
    audio: SpokenReply | None = None
    annotations: Annotated[Any, Neutral([])] = None
    function_call: Annotated[Any, Neutral()] = None
    tool_calls: Annotated[Any, Neutral([])] = None

    @model_validator(mode="before")
    @classmethod
    def _spoken_without_content(cls, data: Any) -> Any:
        is_spoken = isinstance(data, dict) and data.get("audio") is not None
        return {"content": None, **data} if is_spoken else data


class StreamOptions(Shape):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class AudioOptions(Shape):
    voice: str | None = None
    format: Literal["wav", "flac", "pcm16"] = "wav"


class Request(Shape):
    """Fields of every request. `user` and `safety_identifier` are accepted and ignored."""

    model: str | None = None
    user: str | None = None
    safety_identifier: str | None = None


class ChatRequest(Request):
    """POST /v1/chat/completions. `top_k`, `use_whisper_encoder` and `load_audio_from_video` are not OpenAI's.

    `metadata`, those of the prompt's cache and `parallel_tool_calls` are accepted and ignored. The fields from `store`
    on are not supported: they take the values that change nothing.
    """

    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: ChatTemperature | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0, lt=MAX_SEED)
    stop: Text | list[Text] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOptions | None = None
    use_whisper_encoder: bool = False
    load_audio_from_video: bool = False
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    logit_bias: Annotated[Any, Neutral({})] = None
    tools: Annotated[Any, Neutral([])] = None
    tool_choice: Annotated[Any, Neutral("none", "auto")] = None
    functions: Annotated[Any, Neutral([])] = None
    function_call: Annotated[Any, Neutral("none", "auto")] = None
    response_format: Annotated[Any, Neutral({"type": "text"})] = None
    reasoning_effort: Annotated[Any, Neutral("none")] = None
    verbosity: Annotated[Any, Neutral("medium")] = None
    service_tier: Annotated[Any, Neutral("auto", "default")] = None
    prediction: Annotated[Any, Neutral({})] = None
    web_search_options: Annotated[Any, Neutral({})] = None
    chat_template_kwargs: Annotated[Any, Neutral({})] = None
    truncation: Annotated[Any, Neutral("disabled")] = None
    repetition_penalty: Annotated[Any, Neutral(1, 1.0)] = None
    min_p: Annotated[Any, Neutral(0, 0.0)] = None
    best_of: Annotated[Any, Neutral(1)] = None
    echo: Annotated[Any, Neutral(False)] = None
    ignore_eos: Annotated[Any, Neutral(False)] = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.seed)

    @property
    def wants_audio(self) -> bool:
        return "audio" in (self.modalities or ())

    def stop_words(self) -> tuple[str, ...]:
        """Strings that end the reply.

        Raises:
            ApiError: more than four, or an empty one.
        """
        words = (self.stop,) if self.stop and isinstance(self.stop, str) else tuple(self.stop or ())
        if len(words) > 4 or not all(words):
            raise ApiError(f"stop: {len(words)} strings; give up to four, none of them empty", "stop")
        return words


class SpeechRequest(Request):
    """POST /v1/audio/speech. `seed` is not in OpenAI's API.

    `stream_format="audio"` asks for a short text, too, to be sent while it is spoken.
    """

    input: Text = Field(min_length=1)
    voice: str | None = None
    response_format: Literal["wav", "pcm", "flac"] = "wav"
    seed: int | None = Field(None, ge=0, lt=MAX_SEED)
    speed: float | None = Field(None, ge=1, le=1)
    stream_format: Literal["audio"] | None = None
    instructions: Annotated[Any, Neutral("")] = None

    def raise_if_not_streamed(self) -> None:
        """Refuse to stream a format that begins with its length.

        Raises:
            ApiError: 400.
        """
        if self.stream_format is not None and self.response_format not in STREAMED:
            raise ApiError(
                f"stream_format: a {self.response_format} begins with its length; ask for wav or pcm, or leave "
                "stream_format out",
                "stream_format",
            )

    def is_whole(self, limit: int) -> bool:
        """Whether the speech is sent when it is complete, and not while it is made.

        The request alone decides, since a second process that repeats it must send equal bytes.

        Args:
            limit: see `Limits.whole_characters`.
        """
        if self.response_format == "wav":
            return self.stream_format is None and len(self.input) <= limit
        return self.response_format not in STREAMED


OWN_WORDS = "for an instruction of your own, send the recording as input_audio to /v1/chat/completions"


class TranscriptionRequest(Request):
    """Fields beside the file of POST /v1/audio/transcriptions. `use_whisper_encoder` is not in OpenAI's
    API.

    The model recognises the language itself, and takes no hint at words to expect. The fields from `prompt` on are not
    supported: they take the values that change nothing.
    """

    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: FileTemperature | None = None
    stream: bool = False
    use_whisper_encoder: bool = False
    prompt: Annotated[Any, Neutral("", remedy=OWN_WORDS)] = None
    chunking_strategy: Annotated[Any, Neutral("auto")] = None
    timestamp_granularities: Annotated[Any, Neutral(["segment"])] = Field(None, alias="timestamp_granularities[]")


class ImageRequest(Request):
    """POST /v1/images/generations. `seed`, `num_inference_steps` and `guidance_scale` are not in OpenAI's API.

    The fields from `quality` on are not supported: they take the values that change nothing. Nothing is moderated, and
    images have no transparent background.
    """

    prompt: Text = Field(min_length=1)
    n: int = Field(1, ge=1)
    size: str = "auto"
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    seed: int | None = Field(None, ge=0, lt=MAX_SEED)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=1, allow_inf_nan=False)
    quality: Annotated[Any, Neutral("auto", "standard")] = None
    style: Annotated[Any, Neutral("vivid")] = None
    background: Annotated[Any, Neutral("auto", "opaque")] = None
    moderation: Annotated[Any, Neutral("auto", "low")] = None
    output_compression: Annotated[int | None, Neutral(100)] = None
    stream: Annotated[bool | None, Neutral(False)] = None
    partial_images: int | None = Field(None, ge=0, le=0)

    def height_and_width(self) -> tuple[int | None, int | None]:
        """The size in pixels; None leaves a side to the model.

        Raises:
            ApiError: `size` is neither "auto" nor "WIDTHxHEIGHT".
        """
        if self.size == "auto":
            return None, None
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)
        if match is None:
            raise ApiError(f"size {self.size!r} must be 'auto' or WIDTHxHEIGHT in pixels, like 512x512", "size")
        return int(match[2]), int(match[1])


class EditRequest(ImageRequest):
    """The fields beside the images of POST /v1/images/edits."""

    input_fidelity: Annotated[Any, Neutral("low")] = None


ROLES = {"developer": "system"}
# Parts that messages of a role may hold, beside text.
MEDIA_PARTS: dict[str, tuple[type[Shape], ...]] = {
    "user": (ImagePart, AudioPart, VideoPart),
    "assistant": (ImagePart,),
}


def to_chat(messages: list[ChatMessage], reader: MediaReader, replies: SpokenReplies) -> list[dict[str, Any]]:
    """Messages of a request -> a chat for the processor, with its images, audio and videos read and checked.

    Raises:
        ApiError: media in messages that hold none, a spoken reply that is not known, a chat that does not end with
            the user, or unusable media.
    """
    if messages[-1].role != "user":
        raise ApiError(
            f"the last message has the role {messages[-1].role!r}; it must be the user's",
            f"messages.{len(messages) - 1}",
        )
    chat = []
    for index, message in enumerate(messages):
        content: Any = message.content
        if isinstance(content, list):
            place = f"messages.{index}.content"
            _check_parts(content, message.role, place)
            content = [_to_item(part, reader, f"{place}.{number}") for number, part in enumerate(content)]
        if message.audio is not None:
            content = content or _spoken_words(message.audio, message.role, replies, f"messages.{index}.audio")
        chat.append({"role": ROLES.get(message.role, message.role), "content": content or ""})
    return chat


def _spoken_words(reply: SpokenReply, role: str, replies: SpokenReplies, place: str) -> str:
    if role != "assistant":
        raise ApiError(f"{place}: messages of the role {role!r} name no reply; send a recording as input_audio", place)
    words = reply.transcript if reply.transcript is not None else replies.find(reply.id)
    if words is None:
        raise ApiError(
            f"{place}.id: {shorten(reply.id)} is not known, or not any more; send what was said as the content of the "
            f"message (the last {replies.most} ids are known for {replies.seconds} s, and end with the server)",
            f"{place}.id",
            code="audio_not_found",
        )
    return words


def _check_parts(content: list[Part], role: str, place: str) -> None:
    if all(isinstance(part, (TextPart, *MEDIA_PARTS.get(role, ()))) for part in content):
        return
    allowed = "hold text and images" if role in MEDIA_PARTS else "do not hold media"
    raise ApiError(f"{place}: messages of the role {role!r} {allowed}; send other media in one of the user", place)


def _to_item(part: Part, reader: MediaReader, place: str) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return reader.image(part.image_url.url, f"{place}.image_url", part.image_url.detail)
    if isinstance(part, VideoPart):
        return reader.video(part.video_url.url, f"{place}.video_url")
    if isinstance(part, AudioPart):
        return reader.audio_base64(part.input_audio.data, f"{place}.input_audio")
    return {"type": "text", "text": part.text}


__all__ = ["ChatRequest", "EditRequest", "ImageRequest", "SpeechRequest", "TranscriptionRequest", "to_chat"]
