"""Write down the words of audio files."""

from ming.cli.arguments import add_common_options, add_length_option, add_whisper_option
from ming.cli.checks import check_media
from ming.cli.session import Session
from ming.cli.usage import Parser
from ming.prompts import TRANSCRIPTION_PROMPT, message_content


def build_parser() -> Parser:
    """The parser of `ming transcribe`."""
    parser = Parser("transcribe", __doc__)
    parser.add_argument("recordings", nargs="+", metavar="RECORDING", help="file or address")
    add_whisper_option(parser)
    add_length_option(parser)
    add_common_options(parser)
    return parser


def main(arguments: list[str]) -> None:
    """Run `ming transcribe`. All files are read before the weights."""
    args = build_parser().parse_args(arguments)
    for path in args.recordings:
        check_media("recording", path, "audio")
    session = Session.of_arguments(args)
    prepared = [
        session.prepare(message_content(TRANSCRIPTION_PROMPT, {"audio": [path]}), args.whisper)
        for path in args.recordings
    ]
    model = session.load("whisper" if args.whisper else "audio")
    with session.bar("transcribing", len(prepared), "files") as bar:
        for path, inputs in zip(args.recordings, prepared, strict=True):
            inputs = inputs.to(model.device, model.dtype)
            sequences = model.generate(**inputs, max_new_tokens=args.max_new_tokens)
            text = session.decode_reply(inputs, sequences)
            line = f"{path}: {text}" if len(prepared) > 1 else text
            session.write_result(line, {"file": path, "text": text})
            bar.update()
