"""Shapes of requests, as in OpenAI's API; content parts -> content items of our chats.

Fields that would change the answer and are not supported are refused; a field typed with a neutral value only, such as
`n`, takes that value and no other.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from ming.serving.errors import ApiError
from ming.serving.jobs import Sampling
from ming.serving.media import MediaReader


def _encodable(text: str) -> str:
    """JSON can write halves of characters, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"no text: {error.reason} at {error.start}") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]


class Shape(BaseModel):
    """A part of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class TextPart(Shape):
    type: Literal["text"]
    text: Text


class ImageUrl(Shape):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Shape):
    type: Literal["image_url"]
    image_url: ImageUrl


class Sound(Shape):
    """`format` is told from the data; the field is there because OpenAI's clients send it."""

    data: str
    format: str | None = None


class AudioPart(Shape):
    type: Literal["input_audio"]
    input_audio: Sound


class Url(Shape):
    url: str


class VideoPart(Shape):
    type: Literal["video_url"]
    video_url: Url


Part = Annotated[TextPart | ImagePart | AudioPart | VideoPart, Field(discriminator="type")]
# The tags tell pydantic which of the two to complain about.
Content = Annotated[
    Annotated[Text | None, Tag("plain")] | Annotated[list[Part], Tag("parts")],
    Discriminator(lambda value: "parts" if isinstance(value, list) else "plain"),
]


class ChatMessage(Shape):
    """One turn. The fields behind the second one are those of a reply that a client sends back."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: None = None
    refusal: None = None
    audio: None = None
    annotations: None = None
    function_call: None = None
    tool_calls: None = None


class StreamOptions(Shape):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class AudioOptions(Shape):
    voice: str | None = None
    format: Literal["wav", "flac", "pcm16"] = "wav"


class Client(Shape):
    """What every request may say. `user`, `metadata` and `store` are for whoever sends it; nothing is kept."""

    model: str | None = None
    user: str | None = None


class ChatRequest(Client):
    """POST /v1/chat/completions. `top_k`, `use_whisper_encoder` and `load_audio_from_video` are our own."""

    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=0, lt=2**62)
    stop: Text | list[Text] | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOptions | None = None
    use_whisper_encoder: bool = False
    load_audio_from_video: bool = False
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)

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
        words = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(words) > 4 or not all(words):
            raise ApiError(f"stop: {len(words)} strings; give up to four, none of them empty", "stop")
        return words


class SpeechRequest(Client):
    """POST /v1/audio/speech. `seed` is our own."""

    input: Text = Field(min_length=1)
    voice: str | None = None
    response_format: Literal["wav", "pcm", "flac"] = "wav"
    seed: int | None = Field(None, ge=0, lt=2**62)
    speed: float | None = Field(None, ge=1, le=1)
    stream_format: Literal["audio"] | None = None


class TranscriptionRequest(Client):
    """Fields beside the file of POST /v1/audio/transcriptions. `use_whisper_encoder` is our own.

    `prompt` replaces the instruction that goes with the recording; the model recognises the language itself.
    """

    prompt: Text | None = None
    response_format: Literal["json", "text"] = "json"
    temperature: float | None = Field(None, ge=0, le=1)
    stream: bool = False
    use_whisper_encoder: bool = False


class ImageRequest(Client):
    """POST /v1/images/generations, and the fields beside the pictures of /v1/images/edits.

    `seed`, `num_inference_steps` and `guidance_scale` are our own.
    """

    prompt: Text = Field(min_length=1)
    n: int = Field(1, ge=1)
    size: str = "auto"
    response_format: Literal["b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] = "png"
    seed: int | None = Field(None, ge=0, lt=2**62)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=1)

    def height_and_width(self) -> tuple[int | None, int | None]:
        """In pixels; None is the model's own.

        Raises:
            ApiError: `size` is neither "auto" nor "WIDTHxHEIGHT".
        """
        if self.size == "auto":
            return None, None
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)
        if match is None:
            raise ApiError(f"size {self.size!r} must be 'auto' or WIDTHxHEIGHT in pixels, like 512x512", "size")
        return int(match[2]), int(match[1])


ROLES = {"developer": "system"}


def to_chat(messages: list[ChatMessage], reader: MediaReader) -> list[dict[str, Any]]:
    """Messages of a request -> a chat for the processor, its media read and checked.

    Raises:
        ApiError: media outside of user messages, a chat that does not end with the user, or unusable media.
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
            if message.role != "user" and any(not isinstance(part, TextPart) for part in content):
                raise ApiError(f"{place}: only messages of the user hold media, not of {message.role!r}", place)
            content = [_to_item(part, reader, f"{place}.{number}") for number, part in enumerate(content)]
        chat.append({"role": ROLES.get(message.role, message.role), "content": content or ""})
    return chat


def _to_item(part: Part, reader: MediaReader, place: str) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return reader.image(part.image_url.url, f"{place}.image_url", part.image_url.detail)
    if isinstance(part, VideoPart):
        return reader.video(part.video_url.url, f"{place}.video_url")
    if isinstance(part, AudioPart):
        return reader.audio_base64(part.input_audio.data, f"{place}.input_audio")
    return {"type": "text", "text": part.text}


__all__ = ["ChatRequest", "ImageRequest", "SpeechRequest", "TranscriptionRequest", "to_chat"]
