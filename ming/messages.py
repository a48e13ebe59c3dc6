"""Messages: parsing of conversations, the media in them, and literal special tokens in their text.

A parsed conversation is a list of `Message`s whose content is a tuple of `TextItem`s and `MediaItem`s. Control tokens
that a user writes in a message are text: `mark_literals` puts one private-use character behind the first character of
each, so that it is no control token in the rendered prompt, and `unmark_literals` removes it when the text is encoded.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import zip_longest
from typing import Any

import numpy as np

from .media import decode_base64, fetch
from .video import VideoOptions

LITERAL_MARK = "\ue000"

ROLES = {
    "HUMAN": "HUMAN",
    "user": "HUMAN",
    "ASSISTANT": "ASSISTANT",
    "assistant": "ASSISTANT",
    "SYSTEM": "SYSTEM",
    "system": "SYSTEM",
}
CONTENT_TYPES = {
    "text": "text",
    "image": "image",
    "image_url": "image",
    "video": "video",
    "video_url": "video",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
}
COMMON_KEYS = ("url", "path", "base64")
RATE_KEYS = ("sample_rate", "sampling_rate")
IMAGE_ITEM_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
# Where an item of a modality may hold its medium, and further keys that it is read for.
SOURCE_KEYS = {
    "image": ("image", "image_url", *COMMON_KEYS),
    "video": ("video", "video_url", *COMMON_KEYS),
    "audio": ("audio", "audio_url", "input_audio", *COMMON_KEYS),
}
OPTION_KEYS = {"image": IMAGE_ITEM_KEYS, "video": tuple(sorted(VideoOptions.names())), "audio": RATE_KEYS}
ITEM_KEYS = {"text": ("text",)} | {name: (*keys, *OPTION_KEYS[name]) for name, keys in SOURCE_KEYS.items()}
# What the value of an item is read for, where it is a dict.
VALUE_KEYS = ("url", "data", "path", "bytes", "array", *RATE_KEYS)
# What clients and data sets write beside that, and what says nothing to the model.
ITEM_REMARKS = {
    *("type", "id", "index", "name", "label", "format", "detail", "mime_type", "filename", "metadata"),
    *("annotations", "citations", "cache_control", "prompt_cache_breakpoint"),
}
VALUE_REMARKS = {*ITEM_REMARKS, "transcript", "expires_at", "size", "orig_name", "is_stream", "meta"}
MESSAGE_KEYS = ("role", "content")
# Words of keys beside `content` that hold a medium, and of those that only tell of one.
MEDIA_WORDS = {
    *("image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "video", "videos"),
    *("audio", "audios", "recording", "recordings", "media", "file", "files", "attachment", "attachments"),
}
TELLING_WORDS = {"id", "ids", "token", "tokens", "count", "num", "has"}
NEAR = 0.8  # similarity of a misspelt key


@dataclass(frozen=True)
class TextItem:
    """Text as the user wrote it."""

    text: str


@dataclass(frozen=True)
class MediaItem:
    """Media of one content item.

    Attributes:
        modality: `"image"`, `"video"` or `"audio"`.
        sources: what to load; several where the item holds a list, none where it stands for a video's audio track.
        item: the item as the user wrote it, with its options.
    """

    modality: str
    sources: tuple
    item: Mapping


Item = TextItem | MediaItem


@dataclass(frozen=True)
class Message:
    """One turn; `role` is HUMAN, ASSISTANT or SYSTEM, and `written_role` what the user wrote."""

    role: str
    content: tuple[Item, ...]
    written_role: str


def literal_pattern(tokens: Iterable[str]) -> re.Pattern:
    """Matches each token with any number of marks behind its first character."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(f"{re.escape(t[0])}{LITERAL_MARK}*{re.escape(t[1:])}" for t in longest_first))


def mark_literals(text: str, pattern: re.Pattern) -> str:
    """Add one mark to every literal token, also where marks are there already, so that every text survives."""
    return pattern.sub(lambda match: match[0][0] + LITERAL_MARK + match[0][1:], text)


def unmark_literals(text: str, pattern: re.Pattern) -> str:
    """Remove one mark from every marked token: the inverse of `mark_literals`."""
    return pattern.sub(lambda match: match[0].replace(LITERAL_MARK, "", 1), text)


def _raise_if_keys_unknown(given: Mapping, known: Iterable[str], remarks: set[str], what: str) -> None:
    """Refuse keys that nothing reads, such as misspelt options; one that holds nothing is like one left out.

    Tables of `datasets` give every row all keys, with None for those that it does not have.
    """
    known = tuple(known)
    for key, value in given.items():
        if key in known or key in remarks or value is None:
            continue
        is_empty = isinstance(value, (str, list, tuple, dict)) and not value
        if not (is_empty and key in CONTENT_TYPES):
            raise ValueError(f"{what} has the unknown key {_shorten(key)}; known are {', '.join(known)}")


def _raise_if_several_sources(item: Mapping, kind: str, modality: str) -> None:
    """Refuse an item with two media, of which one would be lost."""
    held = [key for key in SOURCE_KEYS[modality] if item.get(key) is not None]
    if len(held) > 1:
        raise ValueError(
            f"content item of type {kind!r} holds {modality}s under {' and '.join(held)}; give one, and an item for "
            "each other one"
        )


def _raise_if_unread(message: Mapping) -> None:
    """Refuse a message without content, and one that says something under a key that nothing reads.

    Other keys pass: histories hold ids, names, thoughts, calls of tools and much more beside the content.
    """
    for key, value in message.items():
        empty = value is None or (isinstance(value, (str, bytes, list, tuple, dict)) and not len(value))
        if key in MESSAGE_KEYS or not isinstance(key, str) or empty:
            continue
        words = set(key.lower().split("_"))
        holds_media = words & MEDIA_WORDS and not words & TELLING_WORDS and not isinstance(value, (bool, int, float))
        if holds_media or key in CONTENT_TYPES or any(key in keys for keys in ITEM_KEYS.values()):
            raise ValueError(
                f"a message has the key {key!r} beside its content, where nothing reads it; give it as an item of the "
                'content, such as {"type": "image", "image": ...} or {"type": "text", "text": ...}'
            )
        if close := get_close_matches(key.lower(), MESSAGE_KEYS, 1, NEAR):
            raise ValueError(f"a message has the key {key!r}; did you mean {close[0]!r}?")
    if "content" not in message and not any(message.get(key) for key in ("tool_calls", "function_call")):
        raise ValueError(
            f"a message of role {_shorten(message.get('role'))} has no content, only the keys "
            f"{', '.join(map(str, message))}; give a text or a list of items as its content"
        )


def _media_source(item: Mapping, kind: str, modality: str) -> Any:
    """What a media item points to: the value of the first key that holds something, or None."""
    for key in (kind, modality, *COMMON_KEYS):
        value = item.get(key)
        if value is None:
            continue
        if isinstance(value, Mapping):
            _raise_if_keys_unknown(value, VALUE_KEYS, VALUE_REMARKS, f"{key} of a content item of type {kind!r}")
        if isinstance(value, Mapping) and "data" in value:  # {"data": base64, "format": ...}
            return decode_base64(value["data"], f"this {kind} item")
        if isinstance(value, Mapping) and "url" in value:  # {"url": ..., "detail": ...}
            value = value["url"]
        value = decode_base64(value, f"this {kind} item") if key == "base64" else value
        rate = next((item[key] for key in RATE_KEYS if item.get(key) is not None), None)
        plain = rate is None or isinstance(value, (list, tuple, Mapping))
        return value if plain else {"array": value, "sampling_rate": rate}
    return None


def _is_listed(value: Any, modality: str) -> bool:
    """Whether the value of a media item is several media; a list under video is the frames of one video."""
    if modality == "video" or not isinstance(value, list):
        return False
    return not all(isinstance(part, (int, float, np.number)) for part in value) or not value


def _parse_media_item(item: Mapping, kind: str, follows_video: bool) -> MediaItem:
    modality = CONTENT_TYPES[kind]
    _raise_if_keys_unknown(item, ITEM_KEYS[modality], ITEM_REMARKS, f"content item of type {kind!r}")
    _raise_if_several_sources(item, kind, modality)
    value = _media_source(item, kind, modality)
    if value is None:
        if modality == "audio" and follows_video:  # stands for the audio track of the video before it
            return MediaItem(modality, (), item)
        keys = dict.fromkeys((kind, modality, *COMMON_KEYS))
        raise ValueError(f"content item of type {kind!r} has no {modality}; give one under {', '.join(keys)}")
    if not _is_listed(value, modality):
        return MediaItem(modality, (value,), item)
    if not value:
        raise ValueError(f"content item of type {kind!r} has an empty list; leave the item out")
    rate = {key: item[key] for key in RATE_KEYS if key in item}
    parts = [part if _is_item(part) else {**rate, modality: part} for part in value]
    known = (*SOURCE_KEYS[modality], *RATE_KEYS) if modality == "audio" else SOURCE_KEYS[modality]
    for part in parts:
        _raise_if_keys_unknown(part, known, VALUE_REMARKS, f"an entry of the {kind!r} item")
    sources = [_media_source(part, kind, modality) for part in parts]
    if any(source is None for source in sources):
        raise ValueError(f"the list of the {kind!r} item has an entry without {modality}")
    return MediaItem(modality, tuple(sources), item)


def _is_item(value: Any) -> bool:
    return isinstance(value, Mapping) and any(key in value for key in (*CONTENT_TYPES, "url"))


def _parse_text(text: str, role: str) -> TextItem:
    """Text that can be encoded: half of a surrogate pair, which broken JSON escapes leave behind, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text of the {role} message has a lone surrogate, {text[error.start]!r}, at {error.start}; remove it or "
            "write the whole character"
        ) from error
    return TextItem(text)


def _parse_content(content: Any, role: str) -> list[Item]:
    if content is None:
        return []
    if isinstance(content, str):
        return [_parse_text(content, role)]
    if not isinstance(content, (list, tuple)):
        raise ValueError(
            f"content of a {role} message is a {type(content).__name__}; give a string or a list of items"
        )
    items: list[Item] = []
    for item in content:
        items.append(_parse_item(item, role, items[-1] if items else None))
    return items


def _parse_item(item: Any, role: str, previous: Item | None) -> Item:
    """One content item; `previous` is the one before it in the message."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if not isinstance(kind, str) or kind not in CONTENT_TYPES:
        raise ValueError(
            f"content type {_shorten(kind)} of an item {_shorten(item)} is unknown; accepted types are "
            f"{', '.join(CONTENT_TYPES)}"
        )
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise ValueError(f"content item of type 'text' holds {_shorten(item.get('text'))}, not a string")
        _raise_if_keys_unknown(item, ITEM_KEYS["text"], ITEM_REMARKS, "content item of type 'text'")
        return _parse_text(item["text"], role)
    is_drawing = ROLES.get(role) == "ASSISTANT" and CONTENT_TYPES[kind] == "image"
    if role != "HUMAN" and not is_drawing:
        allowed = "'text' and 'image' are" if ROLES.get(role) == "ASSISTANT" else "only 'text' is"
        raise ValueError(f"a message of role {role} holds an item of type {kind!r}; {allowed} accepted there")
    return _parse_media_item(item, kind, isinstance(previous, MediaItem) and previous.modality == "video")


def _shorten(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else str(type(value).__name__)
    if isinstance(value, Mapping):
        text = "with the keys " + ", ".join(map(str, value))
    return text[:80]


def _join_texts(content: list[Item]) -> tuple[Item, ...]:
    """Join neighbouring texts, so that two of them cannot form a control token in the prompt."""
    joined: list[Item] = []
    for item in content:
        previous = joined[-1] if joined else None
        if isinstance(item, TextItem) and isinstance(previous, TextItem):
            joined[-1] = TextItem(previous.text + item.text)
        else:
            joined.append(item)
    return tuple(joined)


def parse_conversation(messages: Any) -> list[Message]:
    """Parse one conversation; neighbouring human messages become one, as they do in the prompt.

    The model reads media in messages of the user only. Images of the assistant, which are drawings that it made, stand
    before the words of the user's next message: there they are changed like one that was attached.

    Nothing is loaded: the sources of media items are what the user gave (base64 as bytes).

    Args:
        messages: list of dicts with `role` (HUMAN, ASSISTANT, SYSTEM, user, assistant, system) and `content` (string
            or list of items with a `type`).

    Raises:
        ValueError: an unknown role or content type, a key that nothing reads, an item without its medium, bad base64,
            text that cannot be encoded, or a drawing behind which the user says nothing; the message names it.
    """
    parsed: list[Message] = []
    drawings: list[Item] = []
    for message in messages:
        found = message.get("role") if isinstance(message, Mapping) else message
        if not isinstance(message, Mapping) or not isinstance(found, str) or found not in ROLES:
            raise ValueError(f"role {_shorten(found)} is unknown; accepted roles are {', '.join(ROLES)}")
        role = ROLES[message["role"]]
        _raise_if_unread(message)
        content = _parse_content(message.get("content"), message["role"] if role != "HUMAN" else role)
        if role == "HUMAN":
            content, drawings = [*drawings, *content], []
        elif role == "ASSISTANT":
            drawings += [item for item in content if isinstance(item, MediaItem)]
            content = [item for item in content if isinstance(item, TextItem)]
        if role == "HUMAN" and parsed and parsed[-1].role == role:
            content = [*parsed.pop().content, *content]
        parsed.append(Message(role, _join_texts(content), message["role"]))
    if drawings:
        raise ValueError("the last message holds an image of the assistant; add a message of the user behind it")
    return parsed


def split_batch(conversation: Any) -> tuple[list, bool]:
    """One conversation or a batch of them -> (list of conversations, whether it was a batch)."""
    if not isinstance(conversation, (list, tuple)):
        kind = type(conversation).__name__
        raise ValueError(f"a conversation is a list of messages (or a list of such lists), got {kind}")
    batched = len(conversation) > 0 and all(isinstance(chat, (list, tuple)) for chat in conversation)
    return (list(conversation), True) if batched else ([conversation], False)


def add_audio_tracks(messages: list[Message], has_audio_track: Callable[[Any], bool]) -> list[Message]:
    """Put an audio item without sources, which stands for the audio track, behind every video that has a track.

    Videos at URLs are downloaded here, once, since their frames and their audio are read later.

    Args:
        messages: one conversation.
        has_audio_track: whether the source of a video has one. A video without one stays alone; an audio item that
            the user wrote behind it stays, too.
    """
    result = []
    for message in messages:
        content: list[Item] = []
        for item, after in zip_longest(message.content, message.content[1:]):
            if not (isinstance(item, MediaItem) and item.modality == "video"):
                content.append(item)
                continue
            item = replace(item, sources=(fetch(item.sources[0], "video"),))
            content.append(item)
            stated = isinstance(after, MediaItem) and after.modality == "audio" and not after.sources
            if not stated and has_audio_track(item.sources[0]):
                content.append(MediaItem("audio", (), {}))
        result.append(replace(message, content=tuple(content)))
    return result


def template_messages(messages: list[Message], pattern: re.Pattern, written_roles: bool = False) -> list[dict]:
    """Parsed messages in the form that the chat template takes: marked text, and the number of media of an item.

    `written_roles`: for a template of the user's own, which may know other names of the roles than the model's.
    """
    rendered = []
    for message in messages:
        content = [
            {"type": "text", "text": mark_literals(item.text, pattern)}
            if isinstance(item, TextItem)
            else {"type": item.modality, "count": max(1, len(item.sources))}
            for item in message.content
        ]
        rendered.append({"role": message.written_role if written_roles else message.role, "content": content})
    return rendered
