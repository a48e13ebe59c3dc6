"""A page to try a model in the browser: `python -m serving.app --model DIRECTORY`.

Text, pictures, recordings and clips in; text, text that is also spoken, or a picture out.
"""

import argparse
import html
import logging
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.utils import get_upload_folder

from ming.cli.checks import UsageError
from ming.cli.commands import TRANSCRIBE, ask_content
from ming.cli.session import DTYPES, PARTS, Session
from ming.drawing import ImageDone, ImageProgress
from ming.serving.limits import LOOPBACK
from ming.serving.prepare import missing_parts
from ming.serving.sounds import encode
from ming.speech import AudioChunk, Done, StreamEvent, TextDelta, save_audio

logger = logging.getLogger(__name__)

# What the answer may be: the model's generation mode -> what the page calls it.
ANSWERS = {"text": "Text", "audio": "Text and speech", "image": "Picture"}
ENDINGS = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
    "video": (".mp4", ".webm", ".mov", ".mkv"),
    "audio": (".wav", ".mp3", ".flac", ".ogg", ".m4a"),
}
ALL_ENDINGS = [ending for endings in ENDINGS.values() for ending in endings]
DEMO = Path(__file__).resolve().parents[2] / "demo"
EXAMPLES = (
    ("Describe a picture", "Describe the picture.", "picture.jpg"),
    ("Ask aloud about a picture", "", "picture.jpg", "question.wav"),
    ("Write down a recording", TRANSCRIBE, "recording.wav"),
    ("Ask about a clip", "Which way does it move?", "clip.mp4"),
)
HINT = (
    "Write, attach pictures, recordings and clips, or record a question. For a picture, say what to draw; to change a "
    "picture, attach it and say what to change. What is drawn follows the last message alone."
)
# No links to an API that is not offered, no record of calls, no Node.js.
LAUNCH = {"footer_links": [], "run_history": False, "ssr_mode": False, "max_file_size": "64mb"}
HOUR, DAY = 3600, 24 * 3600
HELP = """\
examples:
  python -m serving.app --model .
  python -m serving.app --model . --device cuda --port 7861
  python -m serving.app --model . --share       # a public address for 3 days, for everybody who knows it
"""


def content_of(message: dict[str, Any]) -> list[dict[str, str]]:
    """A message of the page, {"text": ..., "files": [...]}, as content items of the model.

    Raises:
        ValueError: it is empty, or a file is no medium or was not uploaded.
    """
    media: dict[str, list[str]] = {kind: [] for kind in ENDINGS}
    for file in message["files"]:
        path = _path_of(file)
        # Gradio checks what comes from its text box, but believes the browser where it says which example was clicked.
        if not path.is_relative_to(Path(get_upload_folder()).resolve()):
            raise ValueError(f"{path.name} was not uploaded to this page; attach it")
        kind = next((kind for kind, endings in ENDINGS.items() if path.suffix.lower() in endings), None)
        if kind is None:
            raise ValueError(f"{path.name} is no picture, recording or clip; attach {', '.join(ALL_ENDINGS)}")
        media[kind].append(str(path))
    if not message["text"].strip() and not message["files"]:
        raise ValueError("the message is empty; write something, or attach a file")
    return ask_content(message["text"], media)


def _path_of(file: str | dict[str, Any]) -> Path:
    return Path(file["path"] if isinstance(file, dict) else file).resolve()


def messages_of(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The page's conversation as messages of the model: those turns that were answered in words.

    What failed, was stopped before the first word, or was answered by a picture is left out, so that a file that
    cannot be read spoils one turn only.
    """
    messages, question = [], None
    for turn in history:
        text = "\n".join(item["text"] for item in turn["content"] if item["type"] == "text")
        if turn["role"] == "user":
            question = {"text": text, "files": [item["file"] for item in turn["content"] if item["type"] == "file"]}
        elif question and text and not (turn.get("metadata") or {}).get("title"):  # that of a `remark`
            messages.append({"role": "user", "content": content_of(question)})
            messages.append({"role": "assistant", "content": text})
            question = None
    return messages


def remark(title: str, text: str) -> dict[str, Any]:
    """A message that is no answer of the model."""
    return {"content": html.escape(text), "metadata": {"title": title}}


def updates(events: Iterator[StreamEvent], folder: Path, streams: bool) -> Iterator[tuple[dict[str, Any], Any]]:
    """Events of the model -> what the page shows: the reply so far, and what is new for the player of sound.

    Args:
        events: from `stream` of the model; closed when this iterator is.
        folder: for the finished recording or pictures, which the reply then holds as files.
        streams: whether the player takes sound while it is made, or the whole recording at the end.
    """
    text, waveforms, rate = "", [], 0
    with closing(events):
        for event in events:
            sound = gr.skip()
            if isinstance(event, ImageProgress):
                yield remark("Drawing", f"step {event.step + 1} of {event.num_steps}"), sound
            elif isinstance(event, ImageDone):
                yield {"content": [_save_picture(image, folder) for image in event.images]}, sound
            elif isinstance(event, Done):
                _report_unfinished(event)
                if waveforms:
                    recording = folder / f"{uuid.uuid4().hex}.wav"
                    save_audio(recording, torch.cat(waveforms), rate)
                    yield {"content": [text, {"path": str(recording)}]}, sound if streams else str(recording)
            else:
                if isinstance(event, TextDelta):
                    text += event.text
                elif isinstance(event, AudioChunk):
                    waveforms.append(event.waveform)
                    rate = event.sampling_rate
                    sound = encode(event.waveform, rate, "wav") if streams else sound
                yield {"content": text}, sound


def _save_picture(image, folder: Path) -> dict[str, str]:
    path = folder / f"{uuid.uuid4().hex}.png"
    image.save(path)
    return {"path": str(path)}


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
        folder: for what it says and draws.
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

        What goes wrong is said in the reply: what the user can mend in full, the rest stands in the log.

        Args:
            message: the new one; history: of the page, before it.
            mode: one of `ANSWERS`.
            voice, seed: of speech, and of speech and pictures; None leaves the choice to the model.
        """
        shown = []
        try:
            for reply, sound in updates(self._events(message, history, mode, voice, seed), self.folder, self.streams):
                shown = [reply]
                yield shown, sound
        except ValueError as error:
            reason = str(error)
            for path in map(_path_of, message["files"]):
                reason = reason.replace(str(path), path.name)
            yield [*shown, remark("Not answered", reason)], gr.skip()
        except Exception:  # what the page would make of it is a chat that waits for ever
            logger.exception("a message could not be answered")
            yield [*shown, remark("Not answered", "Something failed; the log of the page says what.")], gr.skip()

    def _events(self, message, history, mode: str, voice: str | None, seed: int | None) -> Iterator[StreamEvent]:
        model = self.model
        earlier = [] if mode == "image" else messages_of(history)
        inputs = self.processor.apply_chat_template(
            [*earlier, {"role": "user", "content": content_of(message)}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device, model.dtype)
        length, context = inputs["input_ids"].shape[1], model.config.llm_config.max_position_embeddings
        if length >= context:
            raise ValueError(
                f"the conversation has {length} tokens, the model's context is {context}; begin a new one"
            )
        options = {} if mode == "image" else {"max_new_tokens": min(self.max_new_tokens, context - length)}
        if mode != "text":
            options["seed"] = seed
        if mode == "audio":
            options["speaker"] = voice
        return model.stream(**inputs, generation_mode=mode, **options)


def build_page(answerer: Answerer) -> gr.Blocks:
    """The page. Answers that the model cannot give are not offered, and the page says why."""
    missing = missing_parts(answerer.model)
    offered = [(name, mode) for mode, name in ANSWERS.items() if mode not in missing]
    voices = [] if "audio" in missing else list(answerer.model.talker_processor.voices)
    remarks = [f"{reason[0].upper()}{reason[1:]}." for reason in missing.values()]
    if voices and not answerer.streams:
        remarks.append("ffmpeg is not installed, so speech is played when it is complete, not while it is made.")
    with gr.Blocks(title="Ming-Lite-Omni", fill_width=True, analytics_enabled=False, delete_cache=(HOUR, DAY)) as page:
        with gr.Sidebar(width=340):
            gr.Markdown("\n\n".join(["# Ming-Lite-Omni", HINT]))
            mode = gr.Radio(offered, value="text", label="Answer")
            voice = gr.Dropdown(voices, value=voices[0] if voices else None, label="Voice", visible=False)
            seed = gr.Number(
                0, label="Seed", info="another seed: another speech or picture", precision=0, visible=False
            )
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


def _settings_of(mode: str) -> list[dict[str, Any]]:
    """Which of voice, seed and player an answer needs."""
    return [gr.update(visible=visible) for visible in (mode == "audio", mode != "text", mode == "audio")]


def _examples() -> list[list[dict[str, Any]]] | None:
    """What a click asks; an installed package has no demo files, and then there are none."""
    if not DEMO.is_dir():
        return None
    return [[{"text": text, "files": [str(DEMO / name) for name in names]}] for _, text, *names in EXAMPLES]


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder for uploads, speech and pictures, removed at the end.

    Gradio may hand out files of the working and of the temporary directory. Meanwhile both are this folder.
    """
    with tempfile.TemporaryDirectory(prefix="ming-page-") as name, chdir(name):
        tempfile.tempdir = name
        try:
            yield Path(name)
        finally:
            tempfile.tempdir = None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.app",
        description="A page to try a model in the browser: chat with text, pictures, recordings and clips.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help="directory or Hub id of a checkpoint; default: the repository the command runs in")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine only)")
    add("--port", type=int, default=7860, help="port to listen at (default: %(default)s)")
    add("--share", action="store_true", help="a public address as well, through Gradio's servers")
    add("--device", help="cpu, cuda, cuda:1, mps, ...; default: a CUDA card if there is one")
    add("--dtype", choices=tuple(DTYPES), help="default: float32 on a CPU, else bfloat16")
    add("--load-in-4bit", action="store_true", help="a quarter of the memory (bitsandbytes)")
    add("--without", nargs="+", choices=PARTS, default=[], metavar="PART", help=f"leave parts out: {', '.join(PARTS)}")
    add("--max-new-tokens", type=int, default=512, metavar="N", help="longest text of an answer (%(default)s)")
    return parser


def main() -> None:
    """Load the model and show its page until interrupted."""
    parser = build_parser()
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if args.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {args.max_new_tokens}: must be at least 1")
    if args.model and os.path.isdir(args.model):
        args.model = os.path.abspath(args.model)  # parts are read on first use, from another working directory
    args.seed = None
    try:
        session = Session(args)
        model = session.load(*(part for part in PARTS if part not in args.without))
    except UsageError as error:
        parser.error(str(error))
    if args.share or args.host not in LOOPBACK:
        logger.warning("everybody who reaches the page may use the model")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the folder is removed then, too
    with private_folder() as folder:
        streams = shutil.which("ffmpeg") is not None  # Gradio's player streams with its help
        page = build_page(Answerer(model, session.processor, folder, args.max_new_tokens, streams))
        page.launch(server_name=args.host, server_port=args.port, share=args.share, **LAUNCH)


if __name__ == "__main__":
    main()
