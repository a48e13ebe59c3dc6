"""Answer one question about any files, aloud too if asked for."""

import argparse

from transformers import TextStreamer

from ming.cli.arguments import add_common_options, add_length_option, add_voice_options, add_whisper_option
from ming.cli.checks import check_media, check_voice_options
from ming.cli.session import Session
from ming.cli.usage import Parser, UsageError
from ming.prompts import message_content

MEDIA = {"image": "an image", "video": "a video", "audio": "a recording"}


def build_parser() -> Parser:
    """The parser of `ming ask`."""
    parser = Parser("ask", __doc__)
    parser.add_argument("question", nargs="?", help="may be left out when --audio asks it")
    for medium, what in MEDIA.items():
        text = f"{what}, file or address; may be repeated"
        parser.add_argument(f"--{medium}", action="append", default=[], metavar="FILE", help=text)
    add_whisper_option(parser)
    parser.add_argument("--speak", metavar="FILE", help="answer aloud, too, into this audio file")
    add_voice_options(parser)
    add_length_option(parser)
    add_common_options(parser)
    return parser


def needed_parts(media: dict[str, list[str]], whisper: bool) -> list[str]:
    """The parts of the model that read these media."""
    parts = ["vision"] if media["image"] or media["video"] else []
    if media["audio"]:
        parts.append("whisper" if whisper else "audio")
    return parts


def check_arguments(args: argparse.Namespace) -> None:
    """Raise a `UsageError` for what can be seen to be wrong before anything is read."""
    for medium in MEDIA:
        for source in getattr(args, medium):
            check_media(f"--{medium}", source, medium)
    if not args.question and not args.audio:
        raise UsageError("there is no question; write one, or give a spoken one with --audio FILE")
    check_voice_options(args, "--speak", args.speak)


def main(arguments: list[str]) -> None:
    """Run `ming ask`."""
    args = build_parser().parse_args(arguments)
    check_arguments(args)
    media = {medium: getattr(args, medium) for medium in MEDIA}
    session = Session.of_arguments(args)
    speech = {}
    if args.speak:
        speaker = session.read_voice(args.voice, args.prompt_audio, args.prompt_text)
        speech = {"generation_mode": "audio", "speaker": speaker, "seed": session.seed}
    inputs = session.prepare(message_content(args.question, media), args.whisper)
    model = session.load(*needed_parts(media, args.whisper), *(["talker"] if speech else []))
    inputs = inputs.to(model.device, model.dtype)
    options = {"max_new_tokens": args.max_new_tokens, **speech}
    if not args.json:
        options["streamer"] = TextStreamer(session.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    written = {}
    if speech:
        with session.speaking_bar(model):
            output = model.generate(**inputs, **options)
        sequences, written = output.sequences, session.write_speech(output, args.speak)
    else:
        sequences = model.generate(**inputs, **options)
    if args.json:
        answer = session.decode_reply(inputs, sequences)
        given = {medium: sources for medium, sources in media.items() if sources}
        session.write_result(answer, {"question": args.question, **given, "answer": answer, **written})
