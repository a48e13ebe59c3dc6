"""A page to try a model in the browser (`ming page`).

Text, images, recordings and videos in; text, text with speech, or an image out.
"""

import html
import logging
import os
import random
import shutil
import signal
import tempfile
import uuid
from collections.abc import Generator, Iterator
from contextlib import chdir, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.utils import get_upload_folder

from ming.encoding import encode_audio, encode_image
from ming.events import AudioChunk, Done, ImageDone, ImageProgress, StreamEvent, TextDelta
from ming.files import replacing
from ming.generation_arguments import raise_if_too_long
from ming.media import open_container, open_source
from ming.prompts import TRANSCRIPTION_PROMPT, message_content
from ming.serving.prepare import load_components, missing_outputs

logger = logging.getLogger(__name__)

# Kinds of answers: generation mode of the model -> label on the page.
ANSWERS = {"text": "Text", "audio": "Text and speech", "image": "Image"}
# Files that the library reads. Not .heic: a phone that sees it here sends such a file, else it sends a jpeg.
ENDINGS = {
    "image": (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
    "video": (".mp4", ".m4v", ".webm", ".mov", ".mkv", ".avi", ".mpg", ".mpeg", ".3gp", ".wmv", ".flv"),
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".amr"),
}
ALL_ENDINGS = [ending for endings in ENDINGS.values() for ending in endings]
DEMO = Path(__file__).resolve().parents[2] / "demo"
EXAMPLES = (
    ("Describe an image", "Describe the picture.", "picture.jpg"),
    ("Ask aloud about an image", "", "picture.jpg", "question.wav"),
    ("Write down a recording", TRANSCRIPTION_PROMPT, "recording.wav"),
    ("Ask about a video", "Which way does it move?", "clip.mp4"),
)
HINT = (
    "Write, attach images, recordings and videos, or record a question. For an image, say what to draw; to change an "
    "image, say what to change: the last one that was drawn, or attach another. Reload the page to begin anew."
)
# No links to an API that is not offered, no record of calls, no Node.js.
LAUNCH = {"footer_links": [], "run_history": False, "ssr_mode": False, "max_file_size": "64mb"}
HOUR, DAY = 3600, 24 * 3600
NO_WORDS = "Empty answer"  # title of the remark in its place


def content_of(message: dict[str, Any]) -> list[dict[str, str]]:
    """A message of the page, {"text": ..., "files": [...]}, as content items of the model.

    Raises:
        ValueError: the message is empty, or a file was not uploaded or is not an image, a recording or a video.
    """
    media: dict[str, list[str]] = {kind: [] for kind in ENDINGS}
    for file in message["files"]:
        path = _path_of(file)
        _raise_if_foreign(path)
        media[_kind_of(path)].append(str(path))
    if not message["text"].strip() and not message["files"]:
        raise ValueError("the message is empty; write something, or attach a file")
    return message_content(message["text"], media)


def _path_of(file: str | dict[str, Any]) -> Path:
    return Path(file["path"] if isinstance(file, dict) else file).resolve()


def _raise_if_foreign(path: Path) -> None:
    """Raise a `ValueError` for a file that is not one of the page.

    Gradio checks the files of its text box, but not those of an example that the browser claims was clicked.
    """
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ValueError(f"{path.name} was not uploaded to this page; attach it")


def _kind_of(path: Path) -> str:
    """The kind of a file, a key of `ENDINGS`; recordings of browsers end like a video, but have no video track."""
    kind = next((kind for kind, endings in ENDINGS.items() if path.suffix.lower() in endings), None)
    if kind is None:
        raise ValueError(f"{path.name} is not an image, recording or video; attach {', '.join(ALL_ENDINGS)}")
    if kind == "video":
        with open_source(str(path), kind) as file, open_container(file, str(path), kind) as container:
            if container.streams.audio and not container.streams.video:
                return "audio"
    return kind


def messages_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The page's conversation as messages of the model, with those turns only that were answered.

    Turns that failed or were stopped before the first word are left out, so that a file that cannot be read spoils one
    turn only. An image that was drawn takes the place of the one that was drawn before it. Words take the place of
    files that are no longer there, since uploads are deleted after a day.
    """
    messages: list[dict[str, Any]] = []
    question = None
    for turn in history:
        if turn["role"] == "user":
            question = turn
            continue
        drawn = [_image_or_words(path) for path in _images_of(turn)]
        title = (turn.get("metadata") or {}).get("title")  # of a `remark`
        text = "" if title else _text_of(turn)
        if question is None or not (text or drawn or title == NO_WORDS):
            continue
        if drawn:
            messages = [_without_images(message) for message in messages]
        answer = [*drawn, {"type": "text", "text": text}] if drawn else text
        messages += [
            {"role": "user", "content": content_of(_question_of(question))},
            {"role": "assistant", "content": answer},
        ]
        question = None
    return messages


def _question_of(turn: dict[str, Any]) -> dict[str, Any]:
    """An earlier message of the user, as `content_of` takes it."""
    files = _files_of(turn)
    lost = [path for path in map(_path_of, files) if _is_lost(path)]
    words = [_text_of(turn), *(_words_for(path.name) for path in lost)]
    kept = [file for file in files if _path_of(file) not in lost]
    return {"text": "\n".join(part for part in words if part), "files": kept}


def _image_or_words(path: Path) -> dict[str, str]:
    """A content item: an image that was drawn, or words in its place."""
    if _is_lost(path):
        return {"type": "text", "text": _words_for("the image that was drawn")}
    return {"type": "image", "image": str(path)}


def _is_lost(path: Path) -> bool:
    """Whether a file of the page is no longer there."""
    _raise_if_foreign(path)
    return not path.is_file()


def _words_for(name: str) -> str:
    """What the model is told in the place of a lost file; the user is told, too."""
    gr.Warning(html.escape(f"{name} is no longer there; the conversation goes on without it"))
    return f"[{name} is no longer there]"


def _text_of(turn: dict[str, Any]) -> str:
    return "\n".join(item["text"] for item in turn["content"] if item["type"] == "text")


def _files_of(turn: dict[str, Any]) -> list[str | dict[str, Any]]:
    return [item["file"] for item in turn["content"] if item["type"] == "file"]


def _images_of(turn: dict[str, Any]) -> list[Path]:
    """The images of an answer, without its recordings."""
    return [path for path in map(_path_of, _files_of(turn)) if path.suffix.lower() in ENDINGS["image"]]


def _without_images(message: dict[str, Any]) -> dict[str, Any]:
    """A message of the assistant without the images that it drew; others as they are."""
    if message["role"] != "assistant" or isinstance(message["content"], str):
        return message
    return {**message, "content": [item for item in message["content"] if item["type"] == "text"]}


def remark(title: str, text: str) -> dict[str, Any]:
    """A message of the page itself, not an answer of the model."""
    return {"content": html.escape(text), "metadata": {"title": title}}


def updates(
    events: Generator[StreamEvent, None, None], folder: Path, streams: bool
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Events of the model -> what the page shows: the reply so far, and new audio for the player.

    Args:
        events: from `stream` of the model; closed when this iterator is.
        folder: for the finished audio or images, which the reply then holds as files.
        streams: whether the player gets audio while it is generated, or all of it at the end.
    """
    reply = ReplyOnPage(folder, streams)
    with closing(events):
        for event in events:
            yield from reply.updates(event)


@dataclass
class ReplyOnPage:
    """What the page shows of a reply so far. Arguments as of `updates`."""

    folder: Path
    streams: bool
    text: str = ""
    has_images: bool = False
    waveforms: list[torch.Tensor] = field(default_factory=list)
    sampling_rate: int = 0

    def updates(self, event: StreamEvent) -> Iterator[tuple[dict[str, Any], Any]]:
        """The updates, at most one, for the next event."""
        if isinstance(event, ImageProgress):
            yield remark("Drawing", f"step {event.step + 1} of {event.num_steps}"), gr.skip()
        elif isinstance(event, ImageDone):
            self.has_images = True
            paths = [_save(encode_image(image), self.folder, "png") for image in event.images]
            yield {"content": [{"path": path} for path in paths]}, gr.skip()
        elif isinstance(event, TextDelta):
            self.text += event.text
            yield {"content": self.text}, gr.skip()
        elif isinstance(event, AudioChunk):
            self.waveforms.append(event.waveform)
            self.sampling_rate = event.sampling_rate
            audio = encode_audio(event.waveform, event.sampling_rate) if self.streams else gr.skip()
            yield {"content": self.text}, audio
        else:
            _report_unfinished(event)
            yield from self._recording()
            if not (self.text.strip() or self.waveforms or self.has_images):
                yield remark(NO_WORDS, "The model answered with nothing."), gr.skip()

    def _recording(self) -> Iterator[tuple[dict[str, Any], Any]]:
        if self.waveforms:
            path = _save(encode_audio(torch.cat(self.waveforms), self.sampling_rate), self.folder, "wav")
            yield {"content": [self.text, {"path": path}]}, gr.skip() if self.streams else path


def _without_folders(reason: str, files: list[str | dict[str, Any]]) -> str:
    """An error without the folders of files, which are the server's; a long path in it may be cut off."""
    for folder in [*(path.parent for path in map(_path_of, files)), Path(get_upload_folder()).resolve()]:
        reason = reason.replace(f"{folder}{os.sep}", "").replace(str(folder), "")
    return reason


def _save(data: bytes, folder: Path, ending: str) -> str:
    """Write a new file; returns its path."""
    path = folder / f"{uuid.uuid4().hex}.{ending}"
    with replacing(path) as partial:
        partial.write_bytes(data)
    return str(path)


def _report_unfinished(done: Done) -> None:
    for piece in done.pieces:
        if piece.finish_reason != "stop":
            what = "was not spoken" if piece.finish_reason == "empty" else "was cut off"
            gr.Warning(html.escape(f"{piece.text!r} {what}; another seed may do better"))


@dataclass(frozen=True)
class Answerer:
    """Answers messages of the page.

    Args:
        model, processor: the model in eval mode, and its processor.
        folder: for the audio and images that it generates.
        max_new_tokens: of a text.
        streams: see `updates`.
    """

    model: Any
    processor: Any
    folder: Path
    max_new_tokens: int = 512
    streams: bool = False

    def answer(
        self, message: dict[str, Any], history: list[dict[str, Any]], mode: str, voice: str | None, seed: int | None
    ) -> Iterator[tuple[list[dict[str, Any]], Any]]:
        """Updates of the page while the model answers; closing the iterator stops the model.

        Errors appear in the reply: those that the user can put right with their message, others are in the log.

        Args:
            message: the new message of the page; history: the messages before it.
            mode: one of `ANSWERS`.
            voice: of speech; None leaves it to the model.
            seed: of speech and images; None draws one.
        """
        shown = []
        try:
            for reply, audio in updates(self._events(message, history, mode, voice, seed), self.folder, self.streams):
                shown = [reply]
                yield shown, audio
        except ValueError as error:
            files = [*message["files"], *(file for turn in history for file in _files_of(turn))]
            yield [*shown, remark("Not answered", _without_folders(str(error), files))], gr.skip()
        except Exception:  # without an answer the chat would wait for ever
            logger.exception("a message could not be answered")
            yield [*shown, remark("Not answered", "Something failed; the log of the page has the details.")], gr.skip()

    def _events(
        self, message: dict[str, Any], history: list[dict[str, Any]], mode: str, voice: str | None, seed: int | None
    ) -> Generator[StreamEvent, None, None]:
        """The model's events for a message; arguments as of `answer`.

        Raises:
            ValueError: the message cannot be answered.
        """
        model = self.model
        inputs = self.processor.apply_chat_template(
            [*messages_of(history), {"role": "user", "content": content_of(message)}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device, model.dtype)
        length, context = inputs["input_ids"].shape[1], model.config.llm_config.max_position_embeddings
        raise_if_too_long(length + 1, context, "the conversation with the first token of an answer")
        options = {} if mode == "image" else {"max_new_tokens": min(self.max_new_tokens, context - length)}
        if mode != "text":
            options["seed"] = seed
        if mode == "audio":
            options["speaker"] = voice
        return model.stream(**inputs, generation_mode=mode, **options)


def build_page(answerer: Answerer) -> gr.Blocks:
    """The page. It offers the kinds of answers that the model can give, and says why others are missing."""
    load_components(answerer.model)
    missing = missing_outputs(answerer.model)
    offered = [(name, mode) for mode, name in ANSWERS.items() if mode not in missing]
    voices = [] if "audio" in missing else list(answerer.model.components.talker_processor().voices)
    remarks = [f"{reason[0].upper()}{reason[1:]}." for reason in missing.values()]
    if voices and not answerer.streams:
        remarks.append("ffmpeg is not installed, so speech is played when it is complete, not while it is generated.")
    options = {"fill_width": True, "analytics_enabled": False, "delete_cache": (HOUR, DAY)}
    with _process_kept(), gr.Blocks(title="Ming-Lite-Omni", **options) as page:
        with gr.Sidebar(width=340):
            gr.Markdown("\n\n".join(["# Ming-Lite-Omni", HINT]))
            mode = gr.Radio(offered, value="text", label="Answer")
            voice = gr.Dropdown(voices, value=voices[0] if voices else None, label="Voice", visible=False)
            seed = gr.Number(0, label="Seed", info="another seed: another speech or image", precision=0, visible=False)
            player = gr.Audio(
                label="Speech", streaming=answerer.streams, autoplay=True, interactive=False, visible=False, buttons=[]
            )
            gr.Markdown("\n\n".join(f"*{remark}*" for remark in remarks))
        mode.change(_settings_of, mode, [voice, seed, player], api_visibility="private", queue=False)
        gr.ChatInterface(
            answerer.answer,
            multimodal=True,
            chatbot=gr.Chatbot(show_label=False, height="calc(100vh - 150px)", buttons=["copy"]),
            textbox=gr.MultimodalTextbox(
                placeholder="Message",
                sources=["upload", "microphone"],
                file_types=ALL_ENDINGS,
                file_count="multiple",
                stop_btn=True,
                autofocus=True,
            ),
            additional_inputs=[mode, voice, seed],
            additional_outputs=[player],
            examples=_examples(),
            example_labels=[label for label, *_ in EXAMPLES],
            cache_examples=False,
            concurrency_limit=1,
            api_visibility="private",
        )
    return page


@contextmanager
def _process_kept() -> Iterator[None]:
    """What belongs to the user is given back: Gradio draws the number of a page from Python's global generator, and
    says in the environment that there shall be no telemetry."""
    state, variable = random.getstate(), "HF_HUB_DISABLE_TELEMETRY"
    before = os.environ.get(variable)
    try:
        yield
    finally:
        random.setstate(state)
        os.environ.pop(variable, None)
        if before is not None:
            os.environ[variable] = before


def _settings_of(mode: str) -> list[dict[str, Any]]:
    """Visibility of voice, seed and player for a kind of answer."""
    return [gr.update(visible=visible) for visible in (mode == "audio", mode != "text", mode == "audio")]


def _examples() -> list[list[dict[str, Any]]] | None:
    """The messages that a click sends; none where the package is installed without the demo files."""
    if not DEMO.is_dir():
        return None
    return [[{"text": text, "files": [str(DEMO / name) for name in names]}] for _, text, *names in EXAMPLES]


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder for uploads, audio and images, removed at the end.

    Gradio hands out files of the working and of the temporary directory, so both are this folder meanwhile.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="ming-page-") as name, chdir(name):
        tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = before


def show_page(model, processor, max_new_tokens: int, host: str, port: int, share: bool) -> None:
    """Show the page until interrupted.

    Args:
        model, processor: the model in eval mode, and its processor.
        max_new_tokens: of a text.
        host, port: to listen at.
        share: whether the page gets a public address as well, through Gradio's servers.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder is removed then, too
    try:
        with private_folder() as folder:
            streams = shutil.which("ffmpeg") is not None  # Gradio's player needs it to stream
            page = build_page(Answerer(model, processor, folder, max_new_tokens, streams))
            page.launch(server_name=host, server_port=port, share=share, **LAUNCH)
    finally:
        signal.signal(signal.SIGTERM, before)


__all__ = ["Answerer", "build_page", "private_folder", "show_page"]
