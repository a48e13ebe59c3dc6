"""A model and its processor for one command: read in two steps, so that bad input is noticed before the weights."""

import argparse
import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from ming.cli.arguments import load_options
from ming.cli.checks import find_device, find_model, read_config
from ming.cli.logs import log, set_up_logging
from ming.cli.usage import UsageError, user_input
from ming.components import AUDIO_DETOKENIZER
from ming.configuration_bailingmm import BailingMMConfig
from ming.loading import LoadOptions
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.source import CheckpointSource
from ming.speech import SpeechOutput
from ming.talker_processor import BailingMMTalkerProcessor
from ming.voices import Voice, raise_if_longer

SEEDS = 2**31  # seeds that are drawn for the user have few digits to type again


class Session:
    """The constructor reads configuration and processor, `load` the weights of the parts that are needed.

    Args:
        model: directory or Hub id; None is the repository that the command runs in.
        options: where and how the model computes.
        seed: of speech, images and sampled text; None draws one.
        as_json: whether results are written as JSON.
        quiet: whether there are no progress bars.

    Raises:
        UsageError: there is no such model or device.
    """

    def __init__(
        self,
        model: str | None = None,
        options: LoadOptions | None = None,
        *,
        seed: int | None = None,
        as_json: bool = False,
        quiet: bool = False,
    ):
        self.options, self.as_json, self.quiet = options or LoadOptions(), as_json, quiet
        self.device = find_device(self.options.device)
        self.source = find_model(model)
        self.config: BailingMMConfig = read_config(self.source)
        with user_input(f"--model {self.source}: "):
            self.processor = BailingMMProcessor.from_pretrained(self.source)
        self.talker_processor: BailingMMTalkerProcessor | None = None
        self.seed = secrets.randbelow(SEEDS) if seed is None else seed
        torch.manual_seed(self.seed)  # of sampled text; speech and images take the seed itself

    @classmethod
    def of_arguments(cls, args: argparse.Namespace) -> "Session":
        """The session that the common options of the command line ask for; sets up logging, too."""
        set_up_logging(args.quiet)
        return cls(args.model, load_options(args), seed=args.seed, as_json=args.json, quiet=args.quiet)

    def read_talker_processor(self) -> BailingMMTalkerProcessor:
        """What the talker needs beside the weights: voices, tokenizer, codec vocabulary.

        Raises:
            UsageError: the model does not speak.
        """
        if self.config.talker_config is None:
            raise UsageError(f"--model {self.source} has no talker; give a model that speaks")
        if self.talker_processor is None:
            with user_input():
                if not CheckpointSource(self.source).has_component(AUDIO_DETOKENIZER):
                    what = f"--model {self.source} has no {AUDIO_DETOKENIZER}/ folder"
                    raise ValueError(f"{what}; give a model that speaks")
                self.talker_processor = BailingMMTalkerProcessor.from_pretrained(self.source)
        return self.talker_processor

    def read_voice(self, name: str | None, prompt_audio: str | None, prompt_text: str | None) -> Voice:
        """A voice by its name, or the voice of a recording with these words; without either, the first voice.

        Raises:
            UsageError: the model does not speak, has no such voice, or cannot clone the recording.
        """
        with user_input():
            voice = self.read_talker_processor().voice(name, prompt_audio, prompt_text)
            raise_if_longer(voice, self.config.talker_config.max_prompt_seconds)
        return voice

    def prepare(self, content: str | list[dict], use_whisper_encoder: bool = False):
        """One user message as inputs of the model, on the CPU.

        Raises:
            UsageError: an image, a recording or a video cannot be read, or the message is too long.
        """
        return self.prepare_chat([{"role": "user", "content": content}], use_whisper_encoder)

    def prepare_chat(self, messages: list[dict], use_whisper_encoder: bool = False):
        """A conversation as inputs of the model, on the CPU.

        Raises:
            UsageError: as of `prepare`.
        """
        with user_input():
            return self.processor.apply_chat_template(
                messages,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                use_whisper_encoder=use_whisper_encoder,
            )

    def load(self, *parts: str) -> BailingMMNativeForConditionalGeneration:
        """The model with the named parts, of `ming.loading.PARTS`.

        Raises:
            UsageError: the weights cannot be read, or do not belong to the configuration.
        """
        log.info("loading %s (text%s) on %s", self.source, "".join(f", {part}" for part in parts), self.device)
        with user_input(f"--model {self.source}: "):
            model = self.options.load(self.source, parts=parts)
        if self.talker_processor is not None:
            model.components.use(talker_processor=self.talker_processor)
        return model

    def decode_reply(self, inputs: dict[str, torch.Tensor], sequences: torch.Tensor) -> str:
        """The text that the model wrote after the prompt `inputs`, from the ids [1, L] of both."""
        return str(self.processor.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def bar(self, what: str, total: int | None, unit: str = "steps") -> tqdm:
        """A progress bar on stderr."""
        return tqdm(desc=what, total=total, unit=f" {unit}", disable=self.quiet, file=sys.stderr)

    @contextmanager
    def speaking_bar(self, model: BailingMMNativeForConditionalGeneration) -> Iterator[None]:
        """A bar that counts the talker's steps during the block; their number is not known in advance."""
        bars: list[tqdm] = []

        def after_step() -> None:
            if not bars:  # the bar appears with the first step, since the text of a reply is written before
                bars.append(self.bar("speaking", None))
            bars[0].update()

        model.talker.step_callbacks.append(after_step)
        try:
            yield
        finally:
            model.talker.step_callbacks.remove(after_step)
            for bar in bars:
                bar.close()

    def write_speech(self, output: SpeechOutput, path: str) -> dict:
        """Write the waveform of a reply as a file; returns fields for `write_result`.

        Raises:
            UsageError: the file cannot be written.
        """
        assert output.waveforms is not None and output.sampling_rate is not None, "a spoken reply has a waveform"
        with user_input():
            output.save(path)
        seconds = round(len(output.waveforms[0]) / output.sampling_rate, 3)
        log.info("wrote %s (%.1f s, seed %d)", path, seconds, self.seed)
        return {"speech": path, "seconds": seconds, "sampling_rate": output.sampling_rate, "seed": self.seed}

    def write_result(self, line: str, fields: dict) -> None:
        """Write one result to stdout: the line, or with --json the fields as one object."""
        line = json.dumps(fields, ensure_ascii=False) if self.as_json else line
        with tqdm.external_write_mode():  # hides progress bars meanwhile
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
