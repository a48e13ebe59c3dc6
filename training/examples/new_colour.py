"""Teach Ming-Tiny a colour that it has never seen or named: `python -m training.examples.new_colour`.

The example makes pictures and chats and writes them in the format of `ming finetune`: a JSONL file and a folder of
images. It trains a LoRA adapter on them, with old questions mixed in so that no ability is lost. Before and after, the
model answers questions about unseen pictures greedily, and a table is printed. The adapter is in the folder `adapter`
of `--output`.

The word has three tokens ("p", "in", "k"): the tokenizer need not know it. The adapter also covers the vision tower
and the routed experts, since the model must see the colour as well as name it.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForMultimodalLM, AutoProcessor

from ming.cli.arguments import count, number_above_zero
from ming.files import replacing
from ming.training.finetune import main as finetune

from ..tiny.drawing import render
from ..tiny.evaluate import answer, questions_of
from ..tiny.questions import Fact, has, scene_facts, word, yes_or_no
from ..tiny.scenes import COLOURS, KINDS, NUMBERS, POSITIONS, SIZES, Scene, Shape, choose, sample_canvas, sample_scene
from ..tiny.world import sample_chat

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
WORD, RGB = "pink", (255, 192, 203)  # CSS
MAX_SIDE = 160  # pixels
TURNS = 5  # questions about a picture of the training data
BACKGROUNDS = 0.25  # share of new pictures whose background has the colour, instead of a shape
WITHOUT = 0.2  # share of chats about the colour whose picture does not have it
OLD_ROWS = ("image_qa", "image_count_describe", "multi_turn", "text_only")
SEED, TEST_SEED = 11, 7_000_000


@contextmanager
def known_colour() -> Iterator[None]:
    """Make the colour known to the renderer inside this context; random scenes never use it."""
    COLOURS[WORD] = RGB
    try:
        yield
    finally:
        del COLOURS[WORD]


def split_of(shape: Shape) -> str:
    """ "test" for one in five of the combinations of size, shape and place, of each word alike; else "train"."""
    numbers = SIZES.index(shape.size) + KINDS.index(shape.kind) + POSITIONS.index(shape.position)
    return "test" if numbers % len(POSITIONS) == 0 else "train"


def new_scene(rng: np.random.Generator, split: str) -> Scene:
    """A scene with the new colour as its background or on a shape of the split."""
    if rng.random() < BACKGROUNDS:
        return replace(sample_scene(rng, split), background=WORD)
    while True:
        scene = sample_scene(rng, "train")
        index = int(rng.integers(len(scene.shapes)))
        if split_of(scene.shapes[index]) == split:
            shapes = [replace(s, colour=WORD) if n == index else s for n, s in enumerate(scene.shapes)]
            return replace(scene, shapes=tuple(shapes))


def new_facts(scene: Scene, rng: np.random.Generator) -> list[Fact]:
    """The facts about the colour in a scene; for a scene without it, that it is missing."""
    facts = [fact for group in scene_facts(scene).values() for fact in group]
    facts.append(Fact("count_colour", NUMBERS[sum(s.colour == WORD for s in scene.shapes)], {"colour": WORD}))
    for kind in ("has_colour", "has_colour_shape"):
        slots = {"colour": WORD, "shape": choose(rng, KINDS)}
        facts.append(Fact(kind, yes_or_no(has(scene, kind, slots)), slots))
    return [fact for fact in facts if WORD in fact.answer or fact.slots.get("colour") == WORD]


def new_chat(rng: np.random.Generator, split: str, turns: int) -> list[dict]:
    """Messages about one picture, with up to `turns` questions about the new colour."""
    scene = sample_scene(rng, split) if rng.random() < WITHOUT else new_scene(rng, split)
    with known_colour():
        picture = render(scene, *sample_canvas(rng, MAX_SIDE), rng)
    facts = new_facts(scene, rng)
    messages: list[dict] = []
    for index in rng.permutation(len(facts))[:turns]:
        question = word(facts[index], rng)
        content = [{"type": "text", "text": question.text}]
        if not messages:
            content.insert(0, {"type": "image", "image": picture})
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return messages


def write_chats(path: Path, chats: list[list[dict]]) -> None:
    """Write a JSONL file of chats and their images as files beside it."""
    images = path.with_suffix("")
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, messages in enumerate(chats):
        for item in (item for message in messages for item in message["content"] if item["type"] == "image"):
            name = f"{number}.png"
            item["image"].save(images / name)
            item["image"] = f"{images.name}/{name}"
        lines.append(json.dumps({"messages": messages}))
    with replacing(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def training_chats(new: int, old: int) -> list[list[dict]]:
    """`new` chats about the colour and `old` ones of the world without it."""
    chats = [new_chat(np.random.default_rng((SEED, 0, index)), "train", TURNS) for index in range(new)]
    for index in range(old):
        rng = np.random.default_rng((SEED, 1, index))
        row = OLD_ROWS[index % len(OLD_ROWS)]
        chats.append(sample_chat(row, rng, "train", dense=True, max_side=MAX_SIDE).messages)
    return chats


def unseen_questions(count: int) -> dict[str, list[tuple[list[dict], str]]]:
    """Per row of the table, prompts with their expected answers, none of them in the training data."""
    rows: dict[str, list] = {f"name the colour: the answer is {WORD}": [], f"other questions about {WORD}": []}
    named, others = rows.values()
    index = 0
    while min(len(named), len(others)) < count:
        prompt, expected = next(questions_of(new_chat(np.random.default_rng((TEST_SEED, index)), "test", 1)))
        (named if expected == WORD else others).append((prompt, expected))
        index += 1
    rows = {name: asked[:count] for name, asked in rows.items()}
    for row in OLD_ROWS:
        samples = [sample_chat(row, np.random.default_rng((TEST_SEED, index)), "test") for index in range(count)]
        rows[f"old: {row}"] = [asked for sample in samples for asked in questions_of(sample.messages)]
    return rows


def measure(model, processor, rows: dict[str, list], batch_size: int = 32) -> list[float]:
    """Share of exact answers per row, in percent."""
    shares = []
    for asked in rows.values():
        replies = []
        for start in range(0, len(asked), batch_size):
            prompts = [prompt for prompt, _ in asked[start : start + batch_size]]
            replies += answer(model.eval(), processor, prompts, whisper=False)
        right = [reply.strip() == expected for reply, (_, expected) in zip(replies, asked, strict=True)]
        shares.append(100 * float(np.mean(right)))
    return shares


def main(argv: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Run the example; returns (before, after) per row, in percent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "new_colour")
    parser.add_argument("--new", type=count, default=800, help="chats about the colour")
    parser.add_argument("--old", type=count, default=800, help="old chats mixed in")
    parser.add_argument("--test", type=count, default=100, help="questions per row of the table")
    parser.add_argument("--epochs", type=number_above_zero(1e6), default=3.0)
    parser.add_argument("--learning-rate", type=number_above_zero(1.0), default=1e-3)
    parser.add_argument("--lora-targets", nargs="+", default=["attention", "dense", "experts", "vision"])
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = unseen_questions(args.test)
    processor = AutoProcessor.from_pretrained(args.model)
    base = AutoModelForMultimodalLM.from_pretrained(args.model, dtype=torch.float32)
    before = measure(base, processor, rows)
    data, adapter = args.output / "chats.jsonl", args.output / "adapter"
    write_chats(data, training_chats(args.new, args.old))
    options = ["--epochs", str(args.epochs), "--batch-size", "16", "--learning-rate", str(args.learning_rate)]
    options += ["--lora-targets", *args.lora_targets]
    finetune(["--model", args.model, "--data", str(data), "--output", str(adapter), *options])
    after = measure(PeftModel.from_pretrained(base, adapter), processor, rows)
    table = ["| questions about unseen pictures | number | before | after |", "|---|---|---|---|"]
    for (name, asked), old, new in zip(rows.items(), before, after, strict=True):
        table.append(f"| {name} | {len(asked)} | {old:.1f} % | {new:.1f} % |")
    sys.stdout.write("\n".join(table) + "\n")
    return dict(zip(rows, zip(before, after, strict=True), strict=True))


if __name__ == "__main__":
    main()
