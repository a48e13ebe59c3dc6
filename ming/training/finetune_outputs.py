"""Fine-tune what answers in sound and pictures, on the user's own chats.

    python -m ming.training.finetune_outputs speech --model DIR --data chats.jsonl --output OUT
    python -m ming.training.finetune_outputs image --model DIR --data chats.jsonl --output OUT --lora 16

The language model stays as it is (Ming-Omni, section 3, second stage): `speech` trains the talker on recordings of
replies, `image` the query tokens, connector and transformer on pictures. OUT becomes a whole repository. The same
command goes on after a kill. Chats: see `finetune_data`.

A voice is told to the talker by another recording of it, so every speaker needs two; chats name theirs as "speaker".
Recordings are heard through the repository's `campplus.onnx` and `speech_tokenizer_v1.onnx`, 0.5 to 30 s each.
"""

import argparse
import json
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor, set_seed

from image_gen.configuration_image_gen import MAX_SIDE, MIN_SIDE
from ming.media import load_image

from .drawing import AlignmentHead, drawing_loss, encode_scales
from .finetune import LEARNING_RATE, SETTINGS, add_run_options, check_settings, positive
from .finetune_data import read_chats
from .loop import fit
from .talker import talker_batch, talker_loss, thinker_states

logger = logging.getLogger(__name__)

TARGETS = {"speech": "audio", "image": "image"}
LORA_MODULES = {
    "speech": r"model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "image": r"connector\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    r"|transformer\.transformer_blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0)",
}


class Rows(torch.utils.data.Dataset):
    """Item `step`: a batch of chats; every epoch is a new order of groups that may stand in one batch.

    Args:
        groups: indexes of rows that fit together.
        steps: number of batches.
    """

    def __init__(self, groups: list[list[int]], steps: int, batch_size: int, seed: int):
        self.groups, self.steps, self.batch_size, self.seed = groups, steps, batch_size, seed
        self.per_epoch = sum(math.ceil(len(group) / batch_size) for group in groups)
        self._order: dict[int, list[list[int]]] = {}  # of the last epoch that was asked for

    def __len__(self) -> int:
        return self.steps

    def batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch: every row once."""
        if epoch not in self._order:
            rng, size = np.random.default_rng((self.seed, epoch)), self.batch_size
            shuffled = [rng.permutation(group).tolist() for group in self.groups]
            cut = [group[start : start + size] for group in shuffled for start in range(0, len(group), size)]
            self._order = {epoch: [cut[index] for index in rng.permutation(len(cut))]}
        return self._order[epoch]

    def chosen(self, step: int) -> list[int]:
        """Rows of a step."""
        return self.batches(step // self.per_epoch)[step % self.per_epoch]


def prompts(processor, rows: list[dict]) -> dict[str, torch.Tensor]:
    """What was said before the last messages, as the model's inputs, padded on the left."""
    chats = [row["messages"][:-1] for row in rows]
    inputs = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    return {name: tensor for name, tensor in inputs.items() if name != "audio_placeholder_loc_lens"}


def rows_by_speaker(rows: list[dict]) -> dict[str, list[int]]:
    """Indexes of the rows of each speaker.

    Raises:
        ValueError: a speaker with one recording.
    """
    speakers = defaultdict(list)
    for index, row in enumerate(rows):
        speakers[row["speaker"]].append(index)
    for name, indexes in speakers.items():
        if len(indexes) < 2:
            raise ValueError(f"speaker {name!r} has one recording; give a second one, that lends its voice")
    return speakers


class SpokenReplies(Rows):
    """Batches of replies, each in the voice of another recording of its speaker.

    Args:
        rows: of `finetune_data.read_chats` with target "audio".
        model: whose talker learns.

    Raises:
        ValueError: see `rows_by_speaker`.
    """

    def __init__(self, rows: list[dict], model, processor, steps: int, batch_size: int, seed: int):
        super().__init__([list(range(len(rows)))], steps, batch_size, seed)
        self.rows, self.talker, self.processor = rows, model.talker, processor
        self.speech = model.talker_processor
        self.by_speaker = rows_by_speaker(rows)
        self.voices: dict[int, Any] = {}

    def voice(self, index: int):
        """The recording of a row, heard once: its text, codes and speaker embedding."""
        if index not in self.voices:
            row = self.rows[index]
            content = row["messages"][-1]["content"]
            text = "".join(item.get("text", "") for item in content if item.get("type") == "text")
            try:
                self.voices[index] = self.speech.voice_encoder.encode(
                    row["target"], " ".join(self.speech.pieces(text))
                )
            except ValueError as error:
                raise ValueError(f"chat {index + 1}: {error}") from error
        return self.voices[index]

    def __getitem__(self, step: int) -> dict:
        rng, chosen = np.random.default_rng((self.seed, step)), self.chosen(step)
        chats = prompts(self.processor, [self.rows[index] for index in chosen])
        examples = []
        for index, length in zip(chosen, chats["attention_mask"].sum(dim=1).tolist(), strict=True):
            others = [other for other in self.by_speaker[self.rows[index]["speaker"]] if other != index]
            said, lender = self.voice(index), self.voice(others[rng.integers(len(others))])
            # Only the number of the states counts here; they are made when the batch is trained on.
            states = torch.zeros(length, self.talker.config.qa_model_hidden_size)
            prompt = self.speech.prompt(said.prompt_text, lender, states)
            examples.append((prompt, torch.tensor(self.speech.codec_bpe.encode(said.prompt_codes, unknown="drop"))))
        return {"talker": talker_batch(self.talker, *map(list, zip(*examples, strict=True))), "chats": chats}


class SpokenTask(nn.Module):
    """The talker's loss on what a frozen thinker makes of the chats."""

    def __init__(self, model):
        super().__init__()
        self.part = model.talker
        self.frozen = [model]  # in a list: no part of this module, so neither trained nor saved with it

    def forward(self, talker: dict[str, torch.Tensor], chats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states = thinker_states(self.frozen[0], chats)
        batch = {**talker, "thinker_states": states.to(talker["thinker_states"].dtype)}
        return {"loss": talker_loss(self.part, batch)[0]}


class DrawnReplies(Rows):
    """Batches of pictures of one native size, filled and cut like the pictures that `draw` resizes.

    Args:
        rows: of `finetune_data.read_chats` with target "image".
        model: whose image head learns.
    """

    def __init__(self, rows: list[dict], model, processor, steps: int, batch_size: int, seed: int):
        groups = defaultdict(list)
        for index, row in enumerate(rows):
            picture = load_image(row["target"])
            shape = (picture.height, picture.width)
            scale = max(MIN_SIDE / min(shape), min(1.0, MAX_SIDE / max(shape)))
            sides = (min(MAX_SIDE, round(side * scale)) for side in shape)
            groups[model.image_gen.config.native_size(*sides)].append(index)
        super().__init__(list(groups.values()), steps, batch_size, seed)
        self.sizes = {index: size for size, indexes in groups.items() for index in indexes}
        self.rows, self.processor = rows, processor

    def pixels(self, index: int) -> torch.Tensor:
        """The picture of a row [3, height, width] in -1..1."""
        height, width = self.sizes[index]
        picture = load_image(self.rows[index]["target"])
        scale = max(height / picture.height, width / picture.width)
        filled = resize(picture, [math.ceil(picture.height * scale), math.ceil(picture.width * scale)])
        return pil_to_tensor(center_crop(filled, [height, width])).float() / 127.5 - 1

    def __getitem__(self, step: int) -> dict:
        chosen = self.chosen(step)
        chats = prompts(self.processor, [self.rows[index] for index in chosen])
        return {"chats": chats, "pixels": torch.stack([self.pixels(index) for index in chosen])}


class DrawnTask(nn.Module):
    """Flow matching and alignment at every scale; gradients reach the query tokens through the frozen thinker."""

    def __init__(self, model):
        super().__init__()
        self.part = model.image_gen
        self.alignment = AlignmentHead(self.part)
        self.frozen = [model]

    def forward(self, chats: dict[str, torch.Tensor], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.frozen[0].image_states(**chats)
        losses = drawing_loss(self.part, states, encode_scales(self.part, pixels), self.alignment)
        return {"loss": losses.loss, "flow": torch.stack(losses.flow).mean().detach()}


def trained_part(task: nn.Module, what: str, rank: int | None) -> tuple[PeftModel | None, list[nn.Parameter]]:
    """Prepare a part for training -> its adapter, if a rank is given, and what requires gradients."""
    task.part.float()
    if rank is None:
        adapter = None
        parameters = [p for name, p in task.part.named_parameters() if not name.startswith("vae.")]
    else:
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_MODULES[what])
        adapter = get_peft_model(task.part, config)
        parameters = [p for name, p in task.part.named_parameters() if "lora_" in name]
    if what == "image":
        parameters += task.alignment.parameters()
    return adapter, parameters


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(TARGETS))
    parser.add_argument("--lora", type=positive, metavar="RANK", help="train an adapter, merged at the end")
    add_run_options(parser)
    args = parser.parse_args(argv)
    if args.learning_rate is None:
        args.learning_rate = LEARNING_RATE["full" if args.lora is None else "lora"]
    return args


def train(args: argparse.Namespace, rows: list[dict], settings: dict) -> None:
    """Train, and save the whole model; goes on from the last checkpoint in `args.output`.

    Raises:
        ValueError: the model lacks the part, or the chats do not suit it.
    """
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    config = AutoConfig.from_pretrained(args.model, trust_remote_code=True)
    if args.what == "speech" and config.talker_config is None:
        raise ValueError(f"--model {args.model} has no talker; give one that speaks")
    model = AutoModelForMultimodalLM.from_pretrained(args.model, trust_remote_code=True, dtype=dtype)
    model.requires_grad_(False)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = AutoProcessor.from_pretrained(args.model, trust_remote_code=True)
    data_class, task_class = {"speech": (SpokenReplies, SpokenTask), "image": (DrawnReplies, DrawnTask)}[args.what]
    data = data_class(rows, model, processor, 1, args.batch_size, args.seed)
    data.steps = args.steps or math.ceil(args.epochs * data.per_epoch)
    set_seed(args.seed)
    task = task_class(model)
    adapter, parameters = trained_part(task, args.what, args.lora)
    logger.info("%d chats, %d steps, %d parameters", len(rows), len(data), sum(p.numel() for p in parameters))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    fit(
        task,
        data,
        output,
        args.learning_rate,
        args.seed,
        parameters=parameters,
        adamw=True,
        bf16=args.bf16,
        save_steps=args.save_steps,
        logging_steps=args.logging_steps,
        report_to=args.report_to,
        dataloader_num_workers=args.workers,
        dataloader_prefetch_factor=2 if args.workers else None,
    )
    part = (task.part if adapter is None else adapter.merge_and_unload()).to(dtype).eval()
    setattr(model, "talker" if args.what == "speech" else "image_gen", part)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    if args.what == "image":
        part.save_pretrained(output / "image_gen")
    logger.info("the model is in %s", output)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(argv)
    try:
        rows, settings = read_chats(args.data, TARGETS[args.what]), check_settings(args)
        if args.what == "speech":
            rows_by_speaker(rows)  # raises before the model is read
        train(args, rows, settings)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
