"""Chats for fine-tuning: a JSONL file, checked as a whole, and its batches.

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "images/1.png"},
                                               {"type": "text", "text": "What is it?"}]},
                  {"role": "assistant", "content": "a pink star"}]}

Roles and content items are those of the processor; paths are relative to the file. For `ming finetune speech` and
`ming finetune image` the last message also holds the recording of the reply, or the image:

    {"role": "assistant", "content": [{"type": "text", "text": "Hello."}, {"type": "audio", "audio": "hello.wav"}]}
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch

from ming.messages import CONTENT_TYPES, ROLES, MediaItem, Message, TextItem, parse_conversation
from ming.training.chats import chat_batch

SHOWN_PROBLEMS = 20
PATH_KEYS = {*CONTENT_TYPES, "url", "path"} - {"text"}
REMOTE = ("http://", "https://", "data:")


def read_chats(path: str | Path, target: str | None = None) -> list[dict[str, Any]]:
    """Read a JSONL file: one {"messages": [...]} per chat, with absolute paths of media.

    Every line is checked before anything is returned: its JSON, its roles and content items, that local media exist,
    and that the last turn is an assistant's and has text. Addresses (http, https) are not fetched.

    Args:
        target: "audio" or "image": the last turn also holds one such item. Its source is returned as "target" beside
            the messages, its text as "text" (an image needs none), and the "speaker" of the line, or "".

    Raises:
        ValueError: the file is missing, has no chats, or has bad lines; the message names each bad line, its value and
            the remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a JSONL file, one chat per line")
    chats: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            chats.append(_read_chat(line, path.parent, target))
        except ValueError as error:
            problems.append(f"  line {number}: {error}")
    if problems:
        shown = "\n".join(problems[:SHOWN_PROBLEMS])
        more = f"\n  ... and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise ValueError(f"{path}: {len(problems)} of {len(problems) + len(chats)} chats are bad:\n{shown}{more}")
    if not chats:
        raise ValueError(f"{path}: no chats in it; give one JSON object per line")
    return chats


def _read_chat(line: bytes, folder: Path, target: str | None) -> dict[str, Any]:
    """The messages of a line and, with a `target`, the recording or image that they lead to."""
    chat = _parse(line)
    messages: list = chat["messages"]
    source: dict[str, Any] = {}
    if target is not None:
        messages, items = _split_target(messages, target)
        source = {"target": _target([_item_with_paths(item, folder) for item in items], target)}
    for message in messages:
        _check_message(message)
    checked = parse_conversation(messages)
    turns = [message for message in checked if message.role == "ASSISTANT"]
    if not turns:
        raise ValueError(f"none of {len(messages)} messages is an assistant's; add the reply to learn")
    if checked[-1].role != "ASSISTANT":
        raise ValueError(f"the last message is of role {messages[-1]['role']!r}; end with the assistant's reply")
    needed = turns[:-1] if target == "image" else turns
    if not all(_text(turn).strip() for turn in needed):
        raise ValueError("an assistant's message is empty; write the reply to learn")
    if any(item.modality == "audio" and not item.sources for item in _media(checked)):
        raise ValueError("an audio item has no recording; give the audio of a video as a separate file")
    if source:
        source |= {"text": _text(checked[-1]), "speaker": _speaker(chat)}
    return {"messages": [_with_paths(message, folder) for message in messages], **source}


def _text(message: Message) -> str:
    return "".join(item.text for item in message.content if isinstance(item, TextItem))


def _parse(line: bytes) -> dict[str, Any]:
    """The object of a line, with a list of messages."""
    try:
        chat = json.loads(line)
    except ValueError as error:
        start = line[:60].decode("utf-8", errors="replace")
        raise ValueError(f"{start!r} is not JSON in UTF-8 ({error}); write one object per line") from error
    if not isinstance(chat, dict) or not isinstance(chat.get("messages"), list):
        found = f"an object with the keys {sorted(chat)}" if isinstance(chat, dict) else repr(chat)[:60]
        raise ValueError(f"{found} is not a chat; write " + '{"messages": [{"role": ..., "content": ...}, ...]}')
    return chat


def _split_target(messages: list, target: str) -> tuple[list, list[Mapping]]:
    """The messages without the items of a modality in the last one, and these items."""
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or not isinstance(content := last.get("content"), list):
        return messages, []
    taken = [item for item in content if isinstance(item, Mapping) and _modality(item.get("type")) == target]
    kept = [item for item in content if item not in taken]
    return [*messages[:-1], {**last, "content": kept or ""}], taken


def _target(items: list[Mapping], target: str) -> Any:
    """The source of the one item to learn."""
    media = _media(parse_conversation([{"role": "user", "content": items}])) if items else []
    sources = [source for item in media for source in item.sources]
    if len(sources) != 1:
        raise ValueError(f"the last message holds {len(sources)} items of type {target!r}; give the one to learn")
    return sources[0]


def _speaker(chat: Mapping) -> str:
    speaker = chat.get("speaker", "")
    if not isinstance(speaker, str):
        raise ValueError(f"speaker {speaker!r} is not a name; write a string, the same for all recordings of a voice")
    return speaker


def _media(messages: list[Message]) -> list[MediaItem]:
    return [item for message in messages for item in message.content if isinstance(item, MediaItem)]


def _check_message(message: Any) -> None:
    """Check what the processor does not check itself.

    Raises:
        ValueError: a role or type that is not a string, or media in an assistant's message.
    """
    if not isinstance(message, Mapping):
        return
    role, content = message.get("role"), message.get("content")
    kinds = [item.get("type") for item in content if isinstance(item, Mapping)] if isinstance(content, list) else []
    if odd := [value for value in (role, *kinds) if not isinstance(value, str)]:
        raise ValueError(
            f"{odd[0]!r} is not a role or type; roles are {', '.join(ROLES)}, types {', '.join(CONTENT_TYPES)}"
        )
    media = [kind for kind in kinds if _modality(kind) not in (None, "text")]
    if media and isinstance(role, str) and ROLES.get(role) == "ASSISTANT":
        raise ValueError(
            f"an assistant's message holds an item of type {media[0]!r}, which is not trained here; leave it out "
            "(for the recording or image of the last message: ming finetune speech or ming finetune image)"
        )


def _modality(kind: Any) -> str | None:
    """The modality of a type of content item, None for an unknown type."""
    return CONTENT_TYPES.get(kind) if isinstance(kind, str) else None


def _with_paths(message: Mapping, folder: Path) -> dict[str, Any]:
    """The message with absolute paths of its media."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [_item_with_paths(item, folder) for item in content]}


def _item_with_paths(item: Mapping, folder: Path) -> dict[str, Any]:
    """A content item, or an object in one, with absolute paths; inline data stay as they are."""
    return {key: _resolved(value, folder) if key in PATH_KEYS else value for key, value in item.items()}


def _resolved(value: Any, folder: Path) -> Any:
    """The absolute path of a path, or of each path in a list or an object.

    Raises:
        ValueError: there is no such file.
    """
    if isinstance(value, list):
        return [_resolved(part, folder) for part in value]
    if isinstance(value, Mapping):
        return _item_with_paths(value, folder)
    if not isinstance(value, str) or value.startswith(REMOTE):
        return value
    path = folder / (url2pathname(urlparse(value).path) if value.startswith("file://") else value)
    if not os.path.exists(path):  # also False for a string that cannot be a path
        raise ValueError(
            f"{value[:120]!r}: no such file (in {folder.resolve()}); paths are relative to the JSONL file"
        )
    return str(path.resolve())


@dataclass(frozen=True)
class ChatCollator:
    """Makes batches of chats from `read_chats`, or from similar rows of a data set: inputs of the model with `labels`.

    The labels cover the assistant turns. For these inputs the loss of the model includes its router losses.
    """

    processor: Any
    use_whisper_encoder: bool = False

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, torch.Tensor | bool]:
        chats = [row["messages"] for row in rows]
        batch = chat_batch(self.processor, chats, self.use_whisper_encoder)
        return {**batch, "output_router_logits": True, "use_cache": False}
