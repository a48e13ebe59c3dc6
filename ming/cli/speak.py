"""Read a text aloud into an audio file."""

from ming.cli.arguments import add_common_options, add_voice_options
from ming.cli.checks import check_voice_options
from ming.cli.session import Session
from ming.cli.usage import Parser, UsageError


def build_parser() -> Parser:
    """The parser of `ming speak`."""
    parser = Parser("speak", __doc__)
    parser.add_argument("text", help="the text to read aloud")
    parser.add_argument("--out", required=True, metavar="FILE", help="audio file: .wav, .flac, .ogg or .mp3")
    add_voice_options(parser)
    add_common_options(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Run `ming speak`."""
    args = build_parser().parse_args(arguments)
    check_voice_options(args, "--out", args.out)
    session = Session.of_arguments(args)
    voice = session.read_voice(args.voice, args.prompt_audio, args.prompt_text)
    if not session.read_talker_processor().pieces(args.text):
        raise UsageError(f"there is nothing to say in {args.text!r}; give words")
    model = session.load("talker")
    with session.speaking_bar(model):
        output = model.speak(args.text, speaker=voice, seed=session.seed)
    fields = session.write_speech(output, args.out)
    session.write_result(args.out, {"text": args.text, "voice": voice.name, **fields})
