"""Hold a conversation: questions come from the terminal or, one a line, from stdin."""

import sys
from dataclasses import dataclass, field

from transformers import TextStreamer

from ming.chat import Chat
from ming.cli.arguments import add_common_options, add_whisper_option
from ming.cli.checks import check_media
from ming.cli.session import Session
from ming.cli.usage import Parser, UsageError, user_input
from ming.prompts import message_content

MEDIA = ("image", "audio", "video")
HELP = """/image FILE, /audio FILE, /video FILE   attach a file to your next message
/reset   forget the conversation      /quit   end it (or Ctrl-D)"""


def build_parser() -> Parser:
    """The parser of `ming chat`."""
    parser = Parser("chat", __doc__)
    parser.add_argument("--system", metavar="TEXT", help="instructions above the conversation")
    add_whisper_option(parser)
    add_common_options(parser)
    return parser


def read_line(interactive: bool) -> str | None:
    """The next line without spaces around it; None at the end."""
    try:
        line = input("> ") if interactive else sys.stdin.readline()
    except EOFError:
        return None
    return line.strip() if line or interactive else None


@dataclass
class Conversation:
    """A chat with the model, and the files that go with the next message.

    Args:
        session: reads and writes.
        chat: the model's side.
        whisper: whether the Whisper encoder reads audio.
    """

    session: Session
    chat: Chat
    whisper: bool
    attached: dict[str, list[str]] = field(default_factory=dict)

    def answer(self, line: str) -> None:
        """Answer a line of the user, or do what its command says.

        Raises:
            UsageError: an unknown command, or a file that cannot be read; the conversation is as before.
        """
        if line == "/reset":
            self.chat.reset()
            self.attached = {}
        elif line == "/help":
            sys.stderr.write(HELP + "\n")
        elif line.startswith("/"):
            self._attach(line)
        elif line or self.attached:
            self._reply(line)

    def _attach(self, line: str) -> None:
        medium, _, path = line[1:].partition(" ")
        path = path.strip()
        if medium not in MEDIA or not path:
            raise UsageError(
                f"/{medium} is not understood; use /image FILE, /audio FILE, /video FILE, /reset or /quit"
            )
        check_media(f"/{medium}", path)
        self.attached.setdefault(medium, []).append(path)

    def _reply(self, line: str) -> None:
        """One turn: the reply is streamed, or with --json written as an object."""
        media, self.attached = self.attached, {}  # also of a message that fails, or every further one would fail
        session, options = self.session, {}
        if not session.as_json:
            options["streamer"] = TextStreamer(session.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with user_input():
            reply = self.chat.say(message_content(line, media), use_whisper_encoder=self.whisper, **options)
        if session.as_json:
            session.write_result(reply, {"question": line, **media, "answer": reply})


def main(arguments: list[str]) -> None:
    """Run `ming chat`. At a terminal wrong input is reported and the conversation goes on; else it ends there."""
    args = build_parser().parse_args(arguments)
    session = Session.of_arguments(args)
    model = session.load("vision", "whisper" if args.whisper else "audio")
    chat = model.chat(session.processor, args.system, max_new_tokens=args.max_new_tokens)
    conversation = Conversation(session, chat, args.whisper)
    if interactive := sys.stdin.isatty() and sys.stdout.isatty():
        import readline  # noqa: F401  (gives `input` a history and line editing)

        sys.stdout.write(HELP + "\n")
    while (line := read_line(interactive)) not in (None, "/quit"):
        try:
            conversation.answer(line)
        except (UsageError, KeyboardInterrupt) as problem:
            if not interactive:
                raise
            sys.stderr.write(f"\n{str(problem) or 'interrupted; the conversation is as it was before'}\n")
