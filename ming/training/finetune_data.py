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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch
from torch.utils.data import DataLoader

from ming.argument_checks import in_words_of_request
from ming.generation_arguments import raise_if_too_long
from ming.media import scheme_of
from ming.messages import CONTENT_TYPES, ROLES, MediaItem, Message, TextItem, parse_conversation
from ming.training.chats import chat_batch

SHOWN_PROBLEMS = 20
PATH_KEYS = {*CONTENT_TYPES, "url", "path"} - {"text"}


@dataclass(frozen=True)
class ChatFile:
    """The chats of a JSONL file, each as from `read_chats`, and the line of each."""

    path: Path
    chats: list[dict[str, Any]]
    lines: list[int]

    @classmethod
    def read(cls, path: str | Path, target: str | None = None) -> "ChatFile":
        """Read a file; arguments and errors as of `read_chats`."""
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such file; give a JSONL file, one chat per line")
        chats: list[dict[str, Any]] = []
        lines: list[int] = []
        problems: dict[int, str] = {}
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                chats.append(_read_chat(line, path.parent, target))
                lines.append(number)
            except ValueError as error:
                problems[number] = str(error)
        _raise_problems(path, problems, len(problems) + len(chats))
        if not chats:
            raise ValueError(f"{path}: no chats in it; give one JSON object per line")
        return cls(path, chats, lines)

    def share(self, index: int, count: int) -> "ChatFile":
        """Every `count`-th chat from the one at `index`: what one of `count` processes takes."""
        return ChatFile(self.path, self.chats[index::count], self.lines[index::count])

    def raise_if_unusable(self, use: Callable[[dict[str, Any]], None], workers: int = 0) -> None:
        """Use every chat once, as training will: media are read, tokens are counted.

        Args:
            use: takes a chat; it raises a ValueError, TypeError or OSError for one that cannot be used.
            workers: processes that do it; 0 is this one.

        Raises:
            ValueError: some cannot; the message names each bad line, its value and the remedy.
        """
        chats: Any = self.chats  # a list is a data set
        found = DataLoader(chats, batch_size=1, num_workers=workers, collate_fn=partial(_problem, use))
        problems = {line: problem for line, problem in zip(self.lines, found, strict=True) if problem}
        _raise_problems(self.path, problems, len(self.chats))


def _problem(use: Callable[[dict[str, Any]], None], chats: list[dict[str, Any]]) -> str:
    """What is wrong with the only one of `chats`; "" if it can be used."""
    try:
        use(chats[0])
    except (ValueError, TypeError, OSError) as error:
        return " ".join(in_words_of_request(error).split())
    return ""


def _raise_problems(path: Path, problems: dict[int, str], total: int) -> None:
    """Raise a `ValueError` that names the bad lines of a file, if there are any."""
    if not problems:
        return
    named = [f"  line {number}: {problem}" for number, problem in problems.items()]
    shown = "\n".join(named[:SHOWN_PROBLEMS])
    more = f"\n  ... and {len(named) - SHOWN_PROBLEMS} more" if len(named) > SHOWN_PROBLEMS else ""
    raise ValueError(f"{path}: {len(named)} of {total} chats are bad:\n{shown}{more}")


def read_chats(path: str | Path, target: str | None = None) -> list[dict[str, Any]]:
    """Read a JSONL file: one {"messages": [...]} per chat, with absolute paths of media.

    Every line is checked before anything is returned: its JSON, its roles and content items, that local media exist,
    and that the last turn is an assistant's and has text. Media are not opened here, and addresses (http, https) not
    fetched; `ming finetune` does that before it trains (`ChatFile.raise_if_unusable`).

    Args:
        target: "audio" or "image": the last turn also holds one such item. Its source is returned as "target" beside
            the messages, its text as "text" (an image needs none), and the "speaker" of the line, or "".

    Raises:
        ValueError: the file is missing, has no chats, or has bad lines; the message names each bad line, its value and
            the remedy.
    """
    return ChatFile.read(path, target).chats


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
    except (ValueError, RecursionError) as error:  # the latter: brackets within brackets
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


def _item_with_paths(item: Mapping, folder: Path, modality: str | None = None) -> dict[str, Any]:
    """A content item, or an object in one, with absolute paths; inline data stay as they are.

    Args:
        modality: of the item that the object is in.
    """
    modality = _modality(item.get("type")) or modality
    return {key: _resolved(value, folder, modality) if key in PATH_KEYS else value for key, value in item.items()}


def _resolved(value: Any, folder: Path, modality: str | None) -> Any:
    """The absolute path of a path, or of each path in a list or an object.

    Raises:
        ValueError: there is no such file. A video may be a directory of frames.
    """
    if isinstance(value, list):
        return [_resolved(part, folder, modality) for part in value]
    if isinstance(value, Mapping):
        return _item_with_paths(value, folder, modality)
    scheme = scheme_of(value)
    if not isinstance(value, str) or scheme in ("http", "https", "data"):
        return value
    path = folder / (url2pathname(urlparse(value).path) if scheme == "file" else value)
    if not os.path.exists(path):  # also False for a string that cannot be a path
        raise ValueError(
            f"{value[:120]!r}: no such file (in {folder.resolve()}); paths are relative to the JSONL file"
        )
    if os.path.isdir(path) and modality != "video":
        raise ValueError(f"{value[:120]!r} is a directory; give the file of the {modality}")
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


@dataclass(frozen=True)
class ChatTrial:
    """Makes the batch of a single chat, as training will (see `ChatFile.raise_if_unusable`).

    Args:
        processor, use_whisper_encoder: as of `ChatCollator`.
        context: the longest chat that the model takes, in tokens.
    """

    processor: Any
    use_whisper_encoder: bool
    context: int

    def __call__(self, chat: Mapping[str, Any]) -> None:
        """Raise a `ValueError`, `TypeError` or `OSError` for a chat that cannot be trained."""
        batch = chat_batch(self.processor, [chat["messages"]], self.use_whisper_encoder)
        raise_if_too_long(batch["input_ids"].shape[1], self.context, "the chat")
