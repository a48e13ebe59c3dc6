"""Hold a conversation: questions come from the terminal or, one a line, from stdin."""

import os
import shlex
import sys
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import TextStreamer

from ming.chat import Chat
from ming.cli.arguments import add_common_options, add_length_option, add_whisper_option
from ming.cli.checks import check_image_output, check_media, read_image_config
from ming.cli.draw import draw, write_image
from ming.cli.session import Session
from ming.cli.usage import Parser, UsageError, user_input
from ming.prompts import message_content

MEDIA = ("image", "audio", "video")
COMMANDS = "/image FILE, /audio FILE, /video FILE, /drop, /draw WORDS, /reset, /help or /quit"
HELP = """/image FILE, /audio FILE, /video FILE   attach a file to your next message; /drop takes all of them away
/draw WORDS   draw or change an image, into a new file here: drawing-1.png, drawing-2.png, ...
/reset   forget the conversation      /help   show this      /quit   end it (or Ctrl-D, or Ctrl-C twice)
Ctrl-C interrupts an answer."""
AGAIN = "Ctrl-C once more, Ctrl-D or /quit ends the conversation."


def build_parser() -> Parser:
    """The parser of `ming chat`."""
    parser = Parser("chat", __doc__)
    parser.add_argument("--system", metavar="TEXT", help="instructions above the conversation")
    add_whisper_option(parser)
    add_length_option(parser)
    add_common_options(parser)
    return parser


def read_line(interactive: bool) -> str | None:
    """The next line without spaces around it; None at the end."""
    try:
        line = input("> ") if interactive else sys.stdin.readline()
    except EOFError:
        return None
    return line.strip() if line or interactive else None


def typed_files(text: str) -> list[str]:
    """The files that a user names: as they are, or as terminals paste dragged ones, in quotes or with backslashes."""
    if os.path.exists(text):
        return [text]
    try:
        words = [os.path.expanduser(word) for word in shlex.split(text)]
    except ValueError:  # a quotation mark of the name itself
        words = []
    return words if len(words) == 1 or words and all(map(os.path.exists, words)) else [text]


@dataclass
class Conversation:
    """A chat with the model, and the files that go with the next message.

    Args:
        session: reads and writes.
        chat: the model's side.
        whisper: whether the Whisper encoder reads audio.

    Attributes:
        attached: files that go with the next message, by medium.
        drawn: the last image that the model drew, which goes with the next message, too.
        ended: whether the user ended it.
    """

    session: Session
    chat: Chat
    whisper: bool
    attached: dict[str, list[str]] = field(default_factory=dict)
    drawn: Image.Image | None = None
    ended: bool = False

    def answer(self, line: str) -> None:
        """Answer a line of the user, or do what its command says.

        Raises:
            UsageError: an unknown command, or a file that cannot be read; conversation and files are as before.
        """
        if line.startswith("/"):
            name, *rest = line.split(maxsplit=1)
            self._do(name[1:], rest[0] if rest else "")
        elif line or self.attached:
            self._reply(line)

    def kept(self) -> str:
        """What a line that failed has left, for the user."""
        files = [os.path.basename(path) for paths in self.attached.values() for path in paths]
        goes = f"; attached: {', '.join(files)} (/drop takes files away)" if files else ""
        return f"the conversation is as it was before (/reset begins a new one){goes}"

    def _do(self, command: str, words: str) -> None:
        alone = {"reset": self._reset, "drop": self.attached.clear, "help": self._help, "quit": self._quit}
        if command in MEDIA:
            self._attach(command, words)
        elif command == "draw":
            self._draw(words)
        elif command not in alone:
            raise UsageError(f"/{command} is not understood; use {COMMANDS}")
        elif words:
            raise UsageError(f"/{command} {words}: this command takes no words; write /{command} alone")
        else:
            alone[command]()

    def _reset(self) -> None:
        self.chat.reset()
        self.attached, self.drawn = {}, None

    def _help(self) -> None:
        sys.stderr.write(HELP + "\n")

    def _quit(self) -> None:
        self.ended = True

    def _attach(self, medium: str, words: str) -> None:
        """Files that can be read go with the next message; one that cannot would make it fail."""
        if not words:
            raise UsageError(f"/{medium} names no file; say which one to attach: /{medium} FILE")
        paths = typed_files(words)
        for path in paths:
            check_media(f"/{medium}", path, medium)
            self.session.prepare([{"type": medium, medium: path}], self.whisper)
        self.attached.setdefault(medium, []).extend(paths)

    def _reply(self, line: str) -> None:
        """One turn: the reply is streamed, or with --json written as an object."""
        session, options = self.session, {}
        content, media = self._content(line)
        if not session.as_json:
            options["streamer"] = TextStreamer(session.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with user_input():
            reply = self.chat.say(content, use_whisper_encoder=self.whisper, **options)
        self.attached, self.drawn = {}, None
        if session.as_json:
            session.write_result(reply, {"question": line, **media, "answer": reply})

    def _content(self, line: str) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
        """The content of the next message, and the attached files in it."""
        drawn, media = [] if self.drawn is None else [self.drawn], self.attached
        return message_content(line, {**media, "image": [*drawn, *media.get("image", [])]}), media

    def _draw(self, words: str) -> None:
        """One turn that is answered with an image, written as a new file; it changes the image before it."""
        if not words:
            raise UsageError("/draw names no image; say what to draw or what to change: /draw WORDS")
        steps = read_image_config(self.session.source).num_inference_steps
        path = next(name for name in (f"drawing-{number}.png" for number in count(1)) if not Path(name).exists())
        check_image_output("/draw", path)
        content, media = self._content(words)
        messages = [*self.chat.messages, {"role": "user", "content": content}]
        inputs = self.session.prepare_chat(messages, self.whisper)
        with user_input():
            image = draw(self.session, self.chat.model, inputs, steps)
        write_image(self.session, image, path, {"prompt": words, **media})
        # The chat reads its messages again with the next turn: nothing of this one is in its cache.
        self.chat.reset()
        self.chat.messages = [*map(_without_drawing, messages), {"role": "assistant", "content": ""}]
        self.attached, self.drawn = {}, image


def _without_drawing(message: dict[str, Any]) -> dict[str, Any]:
    """A message without the image that the model drew before, which a new one replaces; the user's are files."""
    if isinstance(message["content"], str):
        return message
    return {
        **message,
        "content": [item for item in message["content"] if not isinstance(item.get("image"), Image.Image)],
    }


def talk(conversation: Conversation) -> None:
    """Answer the lines of a terminal, where what fails or is interrupted does not end the conversation.

    Raises:
        KeyboardInterrupt: twice in a row, while no answer is written.
    """
    is_leaving = False
    while not conversation.ended:
        try:
            line = read_line(interactive=True)
        except KeyboardInterrupt:
            if is_leaving:
                raise
            is_leaving = True
            sys.stderr.write(f"\n{AGAIN}\n")
            continue
        if line is None:
            return
        is_leaving = False
        try:
            conversation.answer(line)
        except KeyboardInterrupt:
            sys.stderr.write(f"\ninterrupted; {conversation.kept()}\n")
        except UsageError as problem:
            sys.stderr.write(f"\n{problem}\n{conversation.kept()}\n")


def main(arguments: list[str]) -> None:
    """Run `ming chat`. At a terminal wrong input is reported and the conversation goes on; else it ends there."""
    args = build_parser().parse_args(arguments)
    session = Session.of_arguments(args)
    model = session.load("vision", "whisper" if args.whisper else "audio", "image_gen")
    chat = model.chat(session.processor, args.system, max_new_tokens=args.max_new_tokens)
    conversation = Conversation(session, chat, args.whisper)
    if interactive := sys.stdin.isatty() and sys.stdout.isatty():
        import readline  # noqa: F401  (gives `input` a history and line editing)

        sys.stdout.write(HELP + "\n")
        talk(conversation)
    else:
        while not conversation.ended and (line := read_line(interactive)) is not None:
            conversation.answer(line)
