"""A model and its processor as the command line uses them: read in two steps, so that bad input is noticed between."""

import argparse
import json
import logging
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from ming.cli.checks import UsageError, check_device, find_model, read_config, user_input
from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.quantization import four_bit
from ming.talker_processor import BailingMMTalkerProcessor
from ming.voices import Voice

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTS = ("vision", "audio", "whisper", "talker", "image_gen")
SEEDS = 2**31

log = logging.getLogger("ming")


class Session:
    """What one command needs of a repository.

    The constructor reads configuration and processor; `load` the weights of the parts that are wanted.

    Args:
        args: the common options of the command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = check_device(args.device)
        default = "float32" if self.device.type == "cpu" else "bfloat16"
        self.dtype = DTYPES[args.dtype or default]
        self.source = find_model(args.model)
        self.config: BailingMMConfig = read_config(self.source)
        with user_input(f"--model {self.source}: "):
            self.processor = BailingMMProcessor.from_pretrained(self.source)
        self.talker_processor: BailingMMTalkerProcessor | None = None
        self.seed = secrets.randbelow(SEEDS) if args.seed is None else args.seed
        torch.manual_seed(self.seed)  # of sampled text; speech and pictures take the seed itself

    def voice(self) -> Voice:
        """The voice that was asked for, by name or as a recording.

        Raises:
            UsageError: the model does not speak, has no such voice, or cannot clone the recording.
        """
        if self.config.talker_config is None:
            raise UsageError(f"--model {self.source} has no talker; give one that speaks")
        args = self.args
        with user_input():
            self.talker_processor = BailingMMTalkerProcessor.from_pretrained(self.source)
            return self.talker_processor.voice(args.voice, args.prompt_audio, args.prompt_text)

    def prepare(self, content: str | list[dict], use_whisper_encoder: bool = False):
        """One user message as inputs of the model, on the CPU.

        Raises:
            UsageError: a medium that cannot be read, or a message that is too long.
        """
        with user_input():
            return self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                use_whisper_encoder=use_whisper_encoder,
            )

    def load(self, *parts: str) -> BailingMMNativeForConditionalGeneration:
        """The model with those of `PARTS` that are named here.

        Raises:
            UsageError: the weights cannot be read, or do not belong to the configuration.
        """
        options = {f"load_{part}": part in parts for part in PARTS}
        if self.args.load_in_4bit:
            options["quantization_config"] = four_bit(self.dtype)
        log.info("loading %s (text%s) on %s", self.source, "".join(f", {part}" for part in parts), self.device)
        with user_input(f"--model {self.source}: "):
            model = BailingMMNativeForConditionalGeneration.from_pretrained(
                self.source, dtype=self.dtype, device_map={"": self.device}, **options
            ).eval()
        if self.talker_processor is not None:
            model.talker_processor = self.talker_processor
        return model

    def bar(self, what: str, total: int | None, unit: str = "steps") -> tqdm:
        """A progress bar on stderr."""
        return tqdm(desc=what, total=total, unit=f" {unit}", disable=self.args.quiet, file=sys.stderr)

    @contextmanager
    def speaking(self, model: BailingMMNativeForConditionalGeneration) -> Iterator[None]:
        """Shows a bar that counts the steps of the talker; nobody knows before how many there will be."""
        bars: list[tqdm] = []

        def after_step(module, args, output) -> None:  # what a hook returns would take the output's place
            if not bars:  # not before: a reply is written first
                bars.append(self.bar("speaking", None))
            bars[0].update()

        handle = model.talker.register_forward_hook(after_step)
        try:
            yield
        finally:
            handle.remove()
            for bar in bars:
                bar.close()

    def result(self, line: str, fields: dict) -> None:
        """One result on stdout: a line of text, or with --json all fields as one object."""
        line = json.dumps(fields, ensure_ascii=False) if self.args.json else line
        with tqdm.external_write_mode():  # takes bars off the screen meanwhile
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
