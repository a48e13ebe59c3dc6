"""Ask the bundled Ming-Tiny about an image, a recording, a video and files of your own; it speaks and draws, too.

python -m demo [--image FILE] [--audio FILE] [--video FILE] [--question TEXT] [--model DIRECTORY_OR_ID]
"""

import argparse
import json
import sys
import time
from pathlib import Path

from transformers import TextStreamer

from ming.cli.checks import check_media, find_model
from ming.cli.usage import exit_code, user_input
from ming.files import replacing
from ming.loading import load_model
from ming.processing_bailingmm import BailingMMProcessor
from ming.prompts import TRANSCRIPTION_PROMPT

HERE = Path(__file__).parent
QUESTIONS = {
    "image": ("Describe the picture.", "How many shapes are there?", "What colour is the background?"),
    "audio": (TRANSCRIPTION_PROMPT,),
    "video": ("Which way does it move?", "Describe the video."),
}
DRAW, EDIT = "Draw a large green star in the center, on a white background.", "Make the star blue."


def say(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def tokens_of(processor, content: list[dict], whisper: bool = False):
    """One user message as the processor's output."""
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        use_whisper_encoder=whisper,
    )


def prepare(model, processor, content: list[dict], whisper: bool = False):
    """One user message as inputs of the model."""
    return tokens_of(processor, content, whisper).to(model.device, model.dtype)


def ask(model, processor, medium: str, path: str, question: str, whisper: bool = False) -> str:
    """Print question and streamed answer; return the answer."""
    item = {"type": medium, medium: path}
    text = {"type": "text", "text": question}
    # As in the released examples: instructions stand before recordings, and questions after images and videos.
    content = [text, item] if medium == "audio" else [item, text]
    say(f"  {question}{' (Whisper encoder)' if whisper else ''}\n    -> ", end="")
    inputs = prepare(model, processor, content, whisper)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    sequences = model.generate(**inputs, max_new_tokens=64, streamer=streamer)
    return processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def talk(model, processor, image: str, question: str, output: Path) -> dict:
    """Answer a spoken question about an image aloud; the model then transcribes its own answer."""
    content = [{"type": "image", "image": image}, {"type": "audio", "audio": question}]
    reply = model.generate(**prepare(model, processor, content), generation_mode="audio", seed=0, max_new_tokens=64)
    reply.save(output)
    seconds = len(reply.waveforms[0]) / reply.sampling_rate
    say(f"  {image} and {question}, answered aloud\n    -> {reply.text[0]}\n    -> {output} ({seconds:.1f} s)")
    heard = ask(model, processor, "audio", str(output), TRANSCRIPTION_PROMPT)
    return {"file": question, "spoken": output.name, "answer": reply.text[0], "heard": heard}


def draw(model, processor, request: str, output: Path, image: str | None = None) -> dict:
    """Draw an image from a text, or change an image."""
    say(f"  {f'{image}: ' if image else ''}{request}\n    -> ", end="")
    content = [{"type": "image", "image": image}] if image else []
    inputs = prepare(model, processor, [*content, {"type": "text", "text": request}])
    drawn = model.generate(**inputs, generation_mode="image", seed=0).images[0]
    with replacing(output) as path:
        drawn.save(path)
    say(str(output))
    return {"file": image, "question": request, "drawn": output.name}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(HERE.parent), help="directory or Hub id; default: the bundled Ming-Tiny"
    )
    parser.add_argument("--image", help="an image of yours")
    parser.add_argument("--audio", help="a recording of yours")
    parser.add_argument("--video", help="a video of yours")
    parser.add_argument("--question", help="question about your files instead of the usual ones")
    parser.add_argument("--output", type=Path, default=HERE, help="folder for answers.json, reply.wav and images")
    return parser.parse_args()


def raise_if_unusable(args: argparse.Namespace, processor: BailingMMProcessor) -> None:
    """Read the files of the user once, before the weights.

    Raises:
        UsageError: one of them cannot be read, or the folder for answers cannot be made.
    """
    for medium in QUESTIONS:
        if path := getattr(args, medium):
            check_media(f"--{medium}", path, medium)
            with user_input():
                tokens_of(processor, [{"type": medium, medium: path}, {"type": "text", "text": args.question or ""}])
    with user_input("--output: "):
        args.output.mkdir(parents=True, exist_ok=True)


def main() -> None:
    """Ask, and write the answers down.

    Raises:
        UsageError: wrong files or options; no weights were read.
    """
    args = parse()
    started = time.monotonic()
    say(f"Loading {args.model} ...")
    find_model(args.model)
    with user_input(f"--model {args.model}: "):
        processor = BailingMMProcessor.from_pretrained(args.model)
    raise_if_unusable(args, processor)
    model = load_model(args.model, device="cpu")  # the answers in expected.json are those of a CPU
    parts = (model, model.audio_detokenizer.load(), model.image_gen.load())
    size = sum(parameter.numel() for part in parts for parameter in part.parameters())
    say(f"{size / 1e6:.1f} M parameters on {model.device}, {time.monotonic() - started:.1f} s\n")

    bundled = {"image": "picture.jpg", "audio": "recording.wav", "video": "clip.mp4"}
    files = [(medium, str(HERE / name), QUESTIONS[medium]) for medium, name in bundled.items()]
    for medium in bundled:
        if path := getattr(args, medium):
            files.append((medium, path, (args.question,) if args.question else QUESTIONS[medium]))
    answers = []
    for number, (medium, path, questions) in enumerate(files, start=1):
        say(f"[{number}/{len(files) + 2}] {medium}: {path}")
        for question in questions:
            for whisper in (False, True) if medium == "audio" else (False,):
                reply = ask(model, processor, medium, path, question, whisper)
                answers.append({"file": path, "question": question, "whisper": whisper, "answer": reply})
    say(f"[{len(files) + 1}/{len(files) + 2}] speech")
    image, question = str(HERE / "picture.jpg"), str(HERE / "question.wav")
    answers.append(talk(model, processor, image, question, args.output / "reply.wav"))
    say(f"[{len(files) + 2}/{len(files) + 2}] drawing")
    drawing = args.output / "drawing.png"
    answers.append(draw(model, processor, DRAW, drawing))
    answers.append(draw(model, processor, EDIT, args.output / "edited.png", str(drawing)))
    with replacing(args.output / "answers.json") as path:
        path.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
    say(f"\nAnswers written to {args.output / 'answers.json'} after {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(exit_code("demo", main))
