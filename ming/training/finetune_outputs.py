"""Fine-tuning of the talker on recorded replies, and of the image head on images; the language model stays frozen.

Every step trains on one batch of chats that end with the recording or image to learn (see `finetune_data`).
"""

import argparse
import logging
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor, set_seed

from image_gen.configuration_image_gen import FOLDER as IMAGE_FOLDER
from image_gen.configuration_image_gen import MAX_SIDE, MIN_SIDE, ImageGenConfig
from ming.argument_checks import shown
from ming.files import saving
from ming.generation_arguments import raise_if_no_room_to_draw, raise_if_too_long
from ming.media import load_audio, load_image
from ming.source import CheckpointSource
from ming.talker_processor import FILES, BailingMMTalkerProcessor
from ming.talker_steps import TalkerPrompt
from ming.training.chats import prompt_batch
from ming.training.drawing import AlignmentHead, drawing_loss, encode_scales
from ming.training.finetune_data import ChatFile
from ming.training.finetune_settings import are_checked, run_settings, save_settings
from ming.training.loop import SeededBatches, fit
from ming.training.talker import talker_batch, talker_loss, thinker_states
from ming.voices import Voice, check_recording, check_words

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
        raise_if_alone(name, len(indices))
    return speakers


def raise_if_alone(speaker: str, recordings: int) -> None:
    """Raise a `ValueError` for a speaker with one recording."""
    if recordings < 2:
        raise ValueError(f"speaker {speaker!r} has one recording; give a second one, which provides the voice")


def reply_words(speech: BailingMMTalkerProcessor, row: dict) -> str:
    """The words of a recorded reply, as they are spoken."""
    content = row["messages"][-1]["content"]
    text = "".join(item.get("text", "") for item in content if item.get("type") == "text")
    return " ".join(speech.pieces(text))


@dataclass(frozen=True)
class SpokenTrial:
    """Uses a chat with its recording as training will (see `ChatFile.raise_if_unusable`), without any network.

    Args:
        recordings: their number per speaker.
        context: the longest prompt that the model takes, in tokens.
    """

    processor: Any
    speech: BailingMMTalkerProcessor
    recordings: dict[str, int]
    context: int

    def __call__(self, row: dict) -> None:
        """Raise a `ValueError`, `TypeError` or `OSError` for a chat that cannot be trained."""
        raise_if_alone(row["speaker"], self.recordings[row["speaker"]])
        prompt = prompt_batch(self.processor, [row["messages"][:-1]])
        raise_if_too_long(prompt["input_ids"].shape[1], self.context)
        if not (words := reply_words(self.speech, row)):
            raise ValueError(f"there is nothing to say in {shown(row['text'])}; write the words of the recording")
        waveform, rate = load_audio(row["target"])
        check_recording(waveform[0], rate)
        check_words(words, waveform.shape[-1] / rate)


@dataclass(frozen=True)
class DrawnTrial:
    """Uses a chat with its image as training will (see `ChatFile.raise_if_unusable`), without any network.

    Args:
        image_gen: configuration of the image head.
        context: the longest prompt with query tokens that the model takes, in tokens.
    """

    processor: Any
    image_gen: ImageGenConfig
    context: int

    def __call__(self, row: dict) -> None:
        """Raise a `ValueError`, `TypeError` or `OSError` for a chat that cannot be trained."""
        prompt = prompt_batch(self.processor, [row["messages"][:-1]])
        raise_if_no_room_to_draw(prompt["input_ids"].shape[1], self.image_gen, self.context)
        load_image(row["target"])


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
            row, encoder = self.rows[index], self.speech.load_voice_encoder()
            try:
                self.voices[index] = encoder.encode(row["target"], reply_words(self.speech, row))
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


@dataclass(frozen=True)
class Run:
    """What is known before the model is read: chats as from `read_chats`, and the settings of the run."""

    rows: list[dict]
    settings: dict[str, Any]
    processor: Any

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> "Run":
        """Read and check the files and options of the command line. Every chat is read once, as training will.

        The chats of a run that goes on were checked when it began.

        Raises:
            ValueError: bad chats, a directory that cannot be used, or a model without the part to train.
            OSError: there is no such model, or it lacks the networks that encode recordings.
        """
        chats, settings = ChatFile.read(args.data, MODALITY[args.target]), run_settings(args)
        config = AutoConfig.from_pretrained(args.model)
        source = CheckpointSource(args.model).of_components(config.components_from).pinned()
        if args.target == "speech" and config.talker_config is None:
            raise ValueError(f"--model {args.model} has no talker; give a model that speaks")
        if args.target == "image" and not source.has_component(IMAGE_FOLDER):
            raise ValueError(f"--model {args.model} has no image head; give a model that draws")
        processor = AutoProcessor.from_pretrained(args.model)
        context = config.llm_config.max_position_embeddings
        trial: SpokenTrial | DrawnTrial
        if args.target == "speech":
            folder = source.directory(FILES)
            BailingMMTalkerProcessor.from_pretrained(folder).load_voice_encoder()  # raises if it is missing
            speech = BailingMMTalkerProcessor.from_pretrained(folder)
            recordings = Counter(row["speaker"] for row in chats.chats)
            trial = SpokenTrial(processor, speech, recordings, context)
        else:
            part = source.folder(IMAGE_FOLDER)
            image_gen = ImageGenConfig.from_pretrained(source.name, subfolder=part, **source.options())
            trial = DrawnTrial(processor, image_gen, context)
        if not are_checked(args, settings):
            logger.info("reading the %d chats of %s once, to check them", len(chats.chats), chats.path)
            chats.raise_if_unusable(trial, args.workers)
        return cls(chats.chats, settings, processor)


def load_model(args: argparse.Namespace, dtype: torch.dtype) -> nn.Module:
    """The frozen model, on the GPU if there is one."""
    model = AutoModelForMultimodalLM.from_pretrained(args.model, dtype=dtype)
    return model.requires_grad_(False).to("cuda" if torch.cuda.is_available() else "cpu")


def train(args: argparse.Namespace, run: Run) -> None:
    """Train, and save the whole model; continue from the last checkpoint in `args.output` if there is one."""
    rows, processor = run.rows, run.processor
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    model = load_model(args, dtype)
    data_class = {"speech": SpokenReplies, "image": DrawnReplies}[args.target]
    data = data_class(rows, model, processor, 1, args.batch_size, args.seed)
    data.steps = args.steps or math.ceil(args.epochs * data.per_epoch)
    set_seed(args.seed)
    task: OutputTask = SpokenTask(model) if args.target == "speech" else DrawnTask(model)
    adapter, parameters = task.train_part(args.target, args.lora)
    logger.info("%d chats, %d steps, %d parameters", len(rows), len(data), sum(p.numel() for p in parameters))
    save_settings(args.output, run.settings)
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
