"""The commands of `python -m ming`: each takes parsed arguments, checks them, loads what it needs and works."""

import argparse
import logging
import sys

from transformers import TextStreamer

from ming.cli.checks import UsageError, check_media, check_output, read_image_config, user_input
from ming.cli.session import Session
from ming.speech import SpeechOutput

TRANSCRIBE = "Please recognize the language of this speech and transcribe it. Format: oral."
MEDIA_PARTS = {"image": "vision", "video": "vision", "audio": "audio"}
CHAT_HELP = """/image FILE, /audio FILE, /video FILE   show or play a file with your next message
/reset   forget the conversation      /quit   end it (or Ctrl-D)"""

log = logging.getLogger("ming")


def ask(args: argparse.Namespace) -> None:
    """Answer one question about any files, aloud too if asked for."""
    media = {medium: getattr(args, medium) or [] for medium in ("image", "video", "audio")}
    for medium, sources in media.items():
        for source in sources:
            check_media(f"--{medium}", source)
    if not args.question and not media["audio"]:
        raise UsageError("there is no question; write one, or give a spoken one with --audio FILE")
    check_voice_options(args, "--speak", args.speak)
    session = Session(args)
    speech = {"speaker": session.voice(), "seed": session.seed} if args.speak else None
    inputs = session.prepare(ask_content(args.question, media), args.whisper)
    model = session.load(*parts_for(media, args.whisper), *(["talker"] if args.speak else []))
    inputs = inputs.to(model.device, model.dtype)
    options = {"max_new_tokens": args.max_new_tokens}
    if not args.json:
        options["streamer"] = TextStreamer(session.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    fields = {"question": args.question, **{medium: sources for medium, sources in media.items() if sources}}
    if speech is None:
        sequences, written = model.generate(**inputs, **options), {}
    else:
        with session.speaking(model):
            output = model.generate(**inputs, **options, generation_mode="audio", **speech)
        sequences, written = output.sequences, write_speech(session, output, args.speak)
    if args.json:
        answer = session.processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        session.result(answer, {**fields, "answer": answer, **written})


def ask_content(question: str | None, media: dict[str, list[str]]) -> list[dict]:
    """Content of a message: pictures and clips stand before the question, recordings after it, as released."""
    items = {medium: [{"type": medium, medium: source} for source in sources] for medium, sources in media.items()}
    text = [{"type": "text", "text": question}] if question else []
    return [*items["image"], *items["video"], *text, *items["audio"]]


def parts_for(media: dict[str, list[str]], whisper: bool) -> list[str]:
    """The parts that understand some media."""
    parts = {MEDIA_PARTS[medium] for medium, sources in media.items() if sources}
    return sorted("whisper" if part == "audio" and whisper else part for part in parts)


def check_voice_options(args: argparse.Namespace, option: str, output: str | None) -> None:
    """Raise a `UsageError` for a sound file that cannot be written, or a voice without one."""
    given = [name for name in ("voice", "prompt_audio", "prompt_text") if getattr(args, name) is not None]
    if output is None:
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} chooses a voice for {option} FILE; give it, too")
        return
    check_output(option, output, "sound")
    if args.prompt_audio is not None:
        check_media("--prompt-audio", args.prompt_audio)
    if (args.prompt_audio is None) != (args.prompt_text is None):
        raise UsageError("--prompt-audio FILE and --prompt-text WORDS (what is said in it) belong together; give both")
    if args.voice is not None and args.prompt_audio is not None:
        raise UsageError(f"--voice {args.voice} and --prompt-audio are two voices; give one of them")


def write_speech(session: Session, output: SpeechOutput, path: str) -> dict:
    """Write the sound of a reply; returns what there is to say about it."""
    with user_input():
        output.save(path)
    seconds = round(len(output.waveforms[0]) / output.sampling_rate, 3)
    log.info("wrote %s (%.1f s, seed %d)", path, seconds, session.seed)
    return {"speech": path, "seconds": seconds, "sampling_rate": output.sampling_rate, "seed": session.seed}


def speak(args: argparse.Namespace) -> None:
    """Read a text aloud."""
    check_voice_options(args, "--out", args.out)
    session = Session(args)
    voice = session.voice()
    if not session.talker_processor.pieces(args.text):
        raise UsageError(f"there is nothing to say in {args.text!r}; give words")
    model = session.load("talker")
    with session.speaking(model):
        output = model.speak(args.text, speaker=voice, seed=session.seed)
    fields = write_speech(session, output, args.out)
    session.result(args.out, {"text": args.text, "voice": voice.name, **fields})


def draw(args: argparse.Namespace) -> None:
    """Draw a picture from words."""
    if not args.prompt.strip():
        raise UsageError("the prompt is empty; say what to draw")
    _draw(args, args.prompt, {"prompt": args.prompt}, ())


def edit(args: argparse.Namespace) -> None:
    """Draw a picture again as an instruction says."""
    check_media("picture", args.picture)
    if not args.instruction.strip():
        raise UsageError("the instruction is empty; say what to change")
    content = [{"type": "image", "image": args.picture}, {"type": "text", "text": args.instruction}]
    _draw(args, content, {"picture": args.picture, "instruction": args.instruction}, ("vision",))


def _draw(args: argparse.Namespace, content: str | list[dict], fields: dict, parts: tuple[str, ...]) -> None:
    check_output("--out", args.out, "picture")
    session = Session(args)
    config = read_image_config(session.source)
    inputs = session.prepare(content)
    model = session.load("image_gen", *parts)
    options = {"num_inference_steps": args.steps or config.num_inference_steps, "guidance_scale": args.guidance}
    if args.size is not None:
        options |= {"width": args.size[0], "height": args.size[1]}
    with session.bar("drawing", options["num_inference_steps"]) as bar:

        def after_step(step, num_steps, latents) -> None:
            bar.update()

        image = model.generate(
            **inputs.to(model.device, model.dtype),
            **options,
            generation_mode="image",
            seed=session.seed,
            callback=after_step,
        ).images[0]
    with user_input():
        image.save(args.out)
    log.info("wrote %s (%d x %d, seed %d)", args.out, *image.size, session.seed)
    made = {"file": args.out, "width": image.width, "height": image.height, "seed": session.seed}
    session.result(args.out, {**fields, **made})


def transcribe(args: argparse.Namespace) -> None:
    """Write down what is said in recordings."""
    for path in args.recordings:
        check_media("recording", path)
    session = Session(args)
    prepared = [
        session.prepare([{"type": "text", "text": TRANSCRIBE}, {"type": "audio", "audio": path}], args.whisper)
        for path in args.recordings
    ]
    model = session.load("whisper" if args.whisper else "audio")
    several = len(prepared) > 1
    with session.bar("transcribing", len(prepared), "files") as bar:
        for path, inputs in zip(args.recordings, prepared, strict=True):
            inputs = inputs.to(model.device, model.dtype)
            sequences = model.generate(**inputs, max_new_tokens=args.max_new_tokens)
            text = session.processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            session.result(f"{path}: {text}" if several else text, {"file": path, "text": text})
            bar.update()


def chat(args: argparse.Namespace) -> None:
    """A conversation: questions from the terminal or, one a line, from stdin."""
    session = Session(args)
    model = session.load("vision", "whisper" if args.whisper else "audio")
    conversation = model.chat(session.processor, args.system, max_new_tokens=args.max_new_tokens)
    if interactive := sys.stdin.isatty() and sys.stdout.isatty():
        import readline  # noqa: F401  (gives `input` a history and line editing)

        sys.stdout.write(CHAT_HELP + "\n")
    attached: list[dict] = []
    while (line := _read_line(interactive)) is not None:
        try:
            if line == "/quit":
                return
            if line == "/reset":
                conversation.reset()
                attached = []
            elif line == "/help":
                sys.stderr.write(CHAT_HELP + "\n")
            elif line.startswith("/"):
                attached.append(_attachment(line))
            elif line or attached:
                sent, attached = attached, []  # also of a message that fails, or it would fail for ever
                _say(session, conversation, line, sent)
        except (UsageError, KeyboardInterrupt) as problem:
            if not interactive:
                raise
            sys.stderr.write(f"\n{str(problem) or 'interrupted; the conversation is as it was before'}\n")


def _read_line(interactive: bool) -> str | None:
    """The next line without spaces around it; None at the end."""
    try:
        line = input("> ") if interactive else sys.stdin.readline()
    except EOFError:
        return None
    return line.strip() if line or interactive else None


def _attachment(line: str) -> dict:
    command, _, path = line[1:].partition(" ")
    if command not in MEDIA_PARTS or not path.strip():
        raise UsageError(f"/{command} is not understood; use /image FILE, /audio FILE, /video FILE, /reset or /quit")
    return {"type": command, command: check_media(f"/{command}", path.strip())}


def _say(session: Session, conversation, line: str, attached: list[dict]) -> None:
    """One turn: the reply is streamed, or with --json written as an object."""
    media = {medium: [item[medium] for item in attached if item["type"] == medium] for medium in MEDIA_PARTS}
    options = {}
    if not session.args.json:
        options["streamer"] = TextStreamer(session.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with user_input():
        reply = conversation.say(ask_content(line, media), use_whisper_encoder=session.args.whisper, **options)
    if session.args.json:
        fields = {medium: sources for medium, sources in media.items() if sources}
        session.result(reply, {"question": line, **fields, "answer": reply})
