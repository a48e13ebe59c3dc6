"""Fine-tuning of the talker on recorded replies, and of the image head on images; the language model stays frozen.

Every step trains on one batch of chats that end with the recording or image to learn (see `finetune_data`).
"""

import argparse
import logging
import math
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor, set_seed

from image_gen.configuration_image_gen import MAX_SIDE, MIN_SIDE
from ming.files import saving
from ming.media import load_image
from ming.talker_steps import TalkerPrompt
from ming.training.chats import prompt_batch
from ming.training.drawing import AlignmentHead, drawing_loss, encode_scales
from ming.training.finetune_data import read_chats
from ming.training.finetune_settings import run_settings, save_settings
from ming.training.loop import SeededBatches, fit
from ming.training.talker import talker_batch, talker_loss, thinker_states
from ming.voices import Voice

logger = logging.getLogger(__name__)

MODALITY = {"speech": "audio", "image": "image"}
LORA_MODULES = {
    "speech": r"model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
    "image": r"connector\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    r"|transformer\.transformer_blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0)",
}


class Rows(SeededBatches):
    """Item `step` is a batch of chats; every epoch has a new order.

    Args:
        groups: indices of the rows that may share a batch.
        steps: number of batches.
    """

    def __init__(self, groups: list[list[int]], steps: int, batch_size: int, seed: int):
        super().__init__(steps, batch_size, seed)
        self.groups = groups
        self.per_epoch = sum(math.ceil(len(group) / batch_size) for group in groups)
        self._order: dict[int, list[list[int]]] = {}  # of the epoch that was asked for last

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


def rows_by_speaker(rows: list[dict]) -> dict[str, list[int]]:
    """Indices of the rows of each speaker.

    Raises:
        ValueError: a speaker with one recording.
    """
    speakers = defaultdict(list)
    for index, row in enumerate(rows):
        speakers[row["speaker"]].append(index)
    for name, indices in speakers.items():
        if len(indices) < 2:
            raise ValueError(f"speaker {name!r} has one recording; give a second one, which provides the voice")
    return speakers


class SpokenReplies(Rows):
    """Batches of replies, each in the voice of another recording of the same speaker.

    Args:
        rows: from `read_chats` with target "audio".
        model: the model whose talker is trained.

    Raises:
        ValueError: see `rows_by_speaker`.
    """

    def __init__(self, rows: list[dict], model, processor, steps: int, batch_size: int, seed: int):
        super().__init__([list(range(len(rows)))], steps, batch_size, seed)
        self.rows, self.talker, self.processor = rows, model.talker, processor
        self.speech = model.components.talker_processor()
        self.by_speaker = rows_by_speaker(rows)
        self.voices: dict[int, Voice] = {}

    def voice(self, index: int) -> Voice:
        """The recording of a row as a voice: text, codes and speaker embedding; encoded once.

        Raises:
            ValueError: the recording cannot be used.
        """
        if index not in self.voices:
            row = self.rows[index]
            content = row["messages"][-1]["content"]
            text = "".join(item.get("text", "") for item in content if item.get("type") == "text")
            pieces = " ".join(self.speech.pieces(text))
            try:
                self.voices[index] = self.speech.load_voice_encoder().encode(row["target"], pieces)
            except ValueError as error:
                raise ValueError(f"chat {index + 1}: {error}") from error
        return self.voices[index]

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng, chosen = self.rng(step), self.chosen(step)
        chats = dict(prompt_batch(self.processor, [self.rows[index]["messages"][:-1] for index in chosen]))
        prompts: list[TalkerPrompt] = []
        targets: list[torch.Tensor] = []
        for index, length in zip(chosen, chats["attention_mask"].sum(dim=1).tolist(), strict=True):
            others = [other for other in self.by_speaker[self.rows[index]["speaker"]] if other != index]
            reply, voice = self.voice(index), self.voice(others[rng.integers(len(others))])
            # Only the number of states matters here; the task computes their values.
            states = torch.zeros(length, self.talker.config.qa_model_hidden_size)
            prompts.append(self.speech.prompt(reply.prompt_text, voice, states))
            targets.append(torch.tensor(self.speech.codec_bpe.encode(reply.prompt_codes, unknown="drop")))
        return {"talker": talker_batch(self.talker, prompts, targets), "chats": chats}


class OutputTask(nn.Module):
    """A trained part of a model beside the frozen rest.

    Args:
        model: a `BailingMMNativeForConditionalGeneration`.
        part: the module to train.
    """

    def __init__(self, model: nn.Module, part: nn.Module):
        super().__init__()
        self.part = part
        self.frozen = [model]  # in a list: not a submodule, so neither trained nor saved with this module

    def train_part(self, target: str, rank: int | None) -> tuple[PeftModel | None, list[nn.Parameter]]:
        """Prepare the part for training -> its adapter, if a rank is given, and the parameters to train."""
        self.part.float()
        if rank is None:
            return None, [value for name, value in self.part.named_parameters() if not name.startswith("vae.")]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_MODULES[target])
        adapter = get_peft_model(self.part, config)
        return adapter, [value for name, value in self.part.named_parameters() if "lora_" in name]


class SpokenTask(OutputTask):
    """The talker's loss on the states of the frozen thinker."""

    def __init__(self, model: nn.Module):
        super().__init__(model, model.talker)

    def forward(self, talker: dict[str, torch.Tensor], chats: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states = thinker_states(self.frozen[0], chats)
        batch = {**talker, "thinker_states": states.to(talker["thinker_states"].dtype)}
        return {"loss": talker_loss(self.part, batch)[0]}


class DrawnReplies(Rows):
    """Batches of images of one native size, scaled and cropped to fill it.

    Args:
        rows: from `read_chats` with target "image".
        model: the model whose image head is trained.
    """

    def __init__(self, rows: list[dict], model, processor, steps: int, batch_size: int, seed: int):
        groups = defaultdict(list)
        for index, row in enumerate(rows):
            image = load_image(row["target"])
            shape = (image.height, image.width)
            scale = max(MIN_SIDE / min(shape), min(1.0, MAX_SIDE / max(shape)))
            sides = (min(MAX_SIDE, round(side * scale)) for side in shape)
            groups[model.image_gen.config.native_size(*sides)].append(index)
        super().__init__(list(groups.values()), steps, batch_size, seed)
        self.sizes = {index: size for size, indices in groups.items() for index in indices}
        self.rows, self.processor = rows, processor

    def pixels(self, index: int) -> torch.Tensor:
        """The image of a row: float32 [3, height, width] in -1..1."""
        height, width = self.sizes[index]
        image = load_image(self.rows[index]["target"])
        scale = max(height / image.height, width / image.width)
        filled = resize(image, [math.ceil(image.height * scale), math.ceil(image.width * scale)])
        return pil_to_tensor(center_crop(filled, [height, width])).float() / 127.5 - 1

    def __getitem__(self, step: int) -> dict[str, Any]:
        chosen = self.chosen(step)
        chats = dict(prompt_batch(self.processor, [self.rows[index]["messages"][:-1] for index in chosen]))
        return {"chats": chats, "pixels": torch.stack([self.pixels(index) for index in chosen])}


class DrawnTask(OutputTask):
    """Flow matching and alignment at every scale; gradients reach the query tokens through the frozen thinker."""

    def __init__(self, model: nn.Module):
        super().__init__(model, model.image_gen.load())
        self.alignment = AlignmentHead(self.part)

    def forward(self, chats: dict[str, torch.Tensor], pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.frozen[0].drawing.states(**chats)
        losses = drawing_loss(self.part, states, encode_scales(self.part, pixels), self.alignment)
        return {"loss": losses.loss, "flow": torch.stack(losses.flow).mean().detach()}

    def train_part(self, target: str, rank: int | None) -> tuple[PeftModel | None, list[nn.Parameter]]:
        """As `OutputTask.train_part`, and the alignment head."""
        adapter, parameters = super().train_part(target, rank)
        return adapter, [*parameters, *self.alignment.parameters()]


def load_model(args: argparse.Namespace, dtype: torch.dtype) -> nn.Module:
    """The frozen model, on the GPU if there is one.

    Raises:
        ValueError: a model without a talker cannot learn to speak.
    """
    config = AutoConfig.from_pretrained(args.model)
    if args.target == "speech" and config.talker_config is None:
        raise ValueError(f"--model {args.model} has no talker; give a model that speaks")
    model = AutoModelForMultimodalLM.from_pretrained(args.model, dtype=dtype)
    return model.requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def train(args: argparse.Namespace) -> None:
    """Train, and save the whole model; continue from the last checkpoint in `args.output` if there is one.

    Raises:
        ValueError: bad chats, a directory that cannot be used, or a model without the part to train.
    """
    rows, settings = read_chats(args.data, MODALITY[args.target]), run_settings(args)
    if args.target == "speech":
        rows_by_speaker(rows)  # raises before the model is read
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    model, processor = load_model(args, dtype), AutoProcessor.from_pretrained(args.model)
    data_class = {"speech": SpokenReplies, "image": DrawnReplies}[args.target]
    data = data_class(rows, model, processor, 1, args.batch_size, args.seed)
    data.steps = args.steps or math.ceil(args.epochs * data.per_epoch)
    set_seed(args.seed)
    task: OutputTask = SpokenTask(model) if args.target == "speech" else DrawnTask(model)
    adapter, parameters = task.train_part(args.target, args.lora)
    logger.info("%d chats, %d steps, %d parameters", len(rows), len(data), sum(p.numel() for p in parameters))
    save_settings(args.output, settings)
    fit(
        task,
        data,
        args.output,
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
    save(args, model, processor, part)


def save(args: argparse.Namespace, model: nn.Module, processor, part: nn.Module) -> None:
    """Write the whole repository with the trained part."""
    if args.target == "speech":
        model.talker = part
    else:
        model.components.use(image_gen=part)
    with saving(args.output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    logger.info("the model is in %s", args.output)
