"""What lives beside the main weights of a model: audio detokenizer, image head, voices, tokenizer.

`Components` knows how the model was loaded and reads each part in the same way when it is first needed: same source,
revision, cache and token, same dtype, device and quantisation, and code of the checkpoint only if the user agreed to
run it (`trust_remote_code=True`).
"""

import importlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import logging

from .compat import silent_about_kernels
from .files import prepare_reading
from .quantization import is_quantized, quantization_of_image_gen
from .source import PARTS, CheckpointSource
from .talker_processor import (
    CODEC_FOLDERS,
    FILES,
    TOKENIZER_FOLDER,
    VOICES_FOLDER,
    BailingMMTalkerProcessor,
)
from .voices import VOICE_FILES, save_voices

logger = logging.get_logger(__name__)

# Folder, which is also the name of the package that holds the code -> class in its `modeling_<folder>.py`.
AUDIO_DETOKENIZER, IMAGE_GEN = "audio_detokenizer", "image_gen"
CLASSES = {AUDIO_DETOKENIZER: "AudioDetokenizer", IMAGE_GEN: "ImageGen"}
TRAINER_CHECKPOINT = re.compile(r"checkpoint-\d+")  # the library's `PREFIX_CHECKPOINT_DIR`, whose module imports peft


class Component:
    """A module that is read from its folder when `load` is first called; until then this handle stands for it.

    Everything else that is asked of the handle is asked of the loaded module: `model.image_gen.config`.

    Args:
        read: reads the module from its files, in the model's dtype or in the given one.
        place: moves it to where the model computes.

    Attributes:
        is_own: whether the user put a module in its place.
    """

    def __init__(self, name: str, read: Callable[..., PreTrainedModel], place: Callable[[nn.Module], nn.Module]):
        self.name = name
        self._read, self._place = read, place
        self._module: nn.Module | None = None
        self.is_own = False

    @property
    def is_loaded(self) -> bool:
        return self._module is not None

    def load(self) -> nn.Module:
        """The module, read at the first call, on the model's device.

        Raises:
            ValueError: the checkpoint does not have it, or the model was loaded without it.
        """
        if self._module is None:
            with silent_about_kernels():
                self._module = self._read()
        self._module = self._place(self._module)
        return self._module

    def use(self, module: nn.Module) -> None:
        """Put a module of your own in its place."""
        self._module, self.is_own = module, True

    def is_changed(self) -> bool:
        """Whether its files do not hold the module as it is: it is the user's own, or was changed since it was read.

        A module in a lower precision than its files is not changed by that. It is compared with its files, which are
        read once more: nothing else shows every way to change weights, such as `weight.data.add_(1)`.
        """
        if self._module is None or self.is_own:
            return self.is_own
        module: Any = self._module
        try:
            stored = self._read(module.dtype)
        except (OSError, ValueError, SafetensorError):  # files that are gone hold nothing
            return True
        return _settings(module) != _settings(stored) or not _have_same_weights(module, stored)

    def save(self, directory: Path) -> None:
        """Write the loaded module into its folder in a directory, in place of weights that are there."""
        module = self.load()
        if reason := _why_unsaved(module):
            logger.warning(
                f"the model is saved with the {self.name} of its checkpoint, not with the one in its place: {reason}"
            )
            return
        for weights in (directory / self.name).glob("*.safetensors*"):
            weights.unlink()
        module.save_pretrained(directory / self.name, state_dict=_weights(module))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying and pickling look for hooks; they must not load anything
            raise AttributeError(name)
        return getattr(self.load(), name)


class Components:
    """The parts of one model.

    Args:
        model: has `config`, `device` and `dtype`.

    Attributes:
        source: where the parts are; None if the model was not read from a checkpoint.
        code: the checkpoint whose code is run for the parts, since its code made the model, too; None for the code of
            this package.
        audio_detokenizer: speech codes -> waveform.
        image_gen: states of the query tokens -> images.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.source: CheckpointSource | None = None
        self.code: CheckpointSource | None = None
        self.audio_detokenizer = Component(AUDIO_DETOKENIZER, self._read_audio_detokenizer, self._on_device)
        self.image_gen = Component(IMAGE_GEN, self._read_image_gen, self._image_gen_on_device)
        self._talker_processor: BailingMMTalkerProcessor | None = None
        self._tokenizer: Any = None

    def talker_processor(self) -> BailingMMTalkerProcessor:
        """Voices, codec vocabulary and the talker's tokenizer; read at the first call."""
        if self._talker_processor is None:
            directory = self.require_source("talker_processor").directory(FILES)
            self._talker_processor = BailingMMTalkerProcessor.from_pretrained(directory)
        return self._talker_processor

    def tokenizer(self) -> Any:
        """The thinker's tokenizer, for calls that return text; read at the first call."""
        if self._tokenizer is None:
            source = self.require_source("tokenizer")
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(
                source.name, subfolder=source.subfolder, **source.options()
            )
        return self._tokenizer

    def use(
        self,
        audio_detokenizer: nn.Module | None = None,
        image_gen: nn.Module | None = None,
        talker_processor: BailingMMTalkerProcessor | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Put parts of your own in the place of those of the checkpoint."""
        if audio_detokenizer is not None:
            self.audio_detokenizer.use(audio_detokenizer)
        if image_gen is not None:
            self.image_gen.use(image_gen)
        self._talker_processor = talker_processor or self._talker_processor
        self._tokenizer = tokenizer or self._tokenizer

    def require_source(self, part: str) -> CheckpointSource:
        """The source to read a part from.

        Raises:
            ValueError: the model was not read from a checkpoint.
        """
        if self.source is None:
            raise ValueError(
                f"this model was not read from a directory, so its {part} is unknown; "
                f"give one with model.components.use({part}=...) first"
            )
        return self.source

    def changed(self) -> list[Component]:
        """The parts that their files do not hold as they are, see `Component.is_changed`."""
        return [component for component in (self.audio_detokenizer, self.image_gen) if component.is_changed()]

    def copy(self, folder: Path, directory: str | os.PathLike) -> None:
        """Copy the parts of the checkpoint into the folder that a model is being saved in, voices as they are now.

        Args:
            directory: where the model will lie; parts that it has already stay there.
        """
        if self.source is not None:
            self._copy(folder, directory)
        if self._talker_processor is not None:
            voices = self._talker_processor.voices
            for copied in (folder / VOICES_FOLDER).glob("*"):
                if copied.suffix in VOICE_FILES and copied.stem not in voices:  # taken out since they were read
                    copied.unlink()
            save_voices(voices, folder / VOICES_FOLDER)

    def _copy(self, folder: Path, directory: str | os.PathLike) -> None:
        source = self.require_source("parts")
        stay = source.is_in(directory)
        if not stay:
            source.copy(PARTS, folder, "voices, audio detokenizer and image head")
        there = Path(directory) if stay else folder
        codec, released = CODEC_FOLDERS
        if not (there / codec).exists() and (there / TOKENIZER_FOLDER).is_dir():
            # The library uploads no folder inside a folder, so the codec does not stay in its released place.
            shutil.copytree(source.directory([f"{released}/*"]) / released, folder / codec)

    def _read_audio_detokenizer(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        return self._read(AUDIO_DETOKENIZER, "speaks", dtype=dtype or self.model.dtype).eval()

    def _read_image_gen(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        if not self.model.config.load_image_gen:
            raise ValueError(
                "this model was loaded with load_image_gen=False; load it with load_image_gen=True to draw"
            )
        options: dict[str, Any] = {"dtype": dtype or self.model.dtype}
        if is_quantized(self.model.config):
            quantization = quantization_of_image_gen(self.model.config.quantization_config, self._build_image_gen)
            options |= {"quantization_config": quantization, "device_map": {"": self.model.device}}
        return self._read(IMAGE_GEN, "draws", **options).eval()

    def _build_image_gen(self) -> nn.Module:
        """The image head without its weights, to see which of its layers can be quantised."""
        source = self.require_source(IMAGE_GEN)
        where = {"subfolder": source.folder(IMAGE_GEN), **source.options()}
        model_class = self._class(IMAGE_GEN)
        return model_class(model_class.config_class.from_pretrained(source.name, **where))

    def _read(self, name: str, does: str, **options: Any) -> PreTrainedModel:
        source = self.require_source(name)
        if not source.has_component(name):
            raise ValueError(f"{source.name} has no {name}/ folder; take a repository that {does}")
        prepare_reading(source.name, source.folder(name))
        options |= {"subfolder": source.folder(name), **source.options()}
        return self._class(name).from_pretrained(source.name, **options)

    def _class(self, name: str) -> Any:
        """The class of a component, wherever its weights lie: of the trusted checkpoint's code, or of this package."""
        if self.code is None:
            return installed_class(name)
        reference = f"{self.code.folder(name)}/modeling_{name}.{CLASSES[name]}"
        return get_class_from_dynamic_module(reference, self.code.name, **self.code.options())

    def _on_device(self, module: nn.Module) -> nn.Module:
        """Offloaded weights stay where they are.

        A module that is in place is not touched: another thread may compute with it.
        """
        devices = {weight.device for weight in (*module.parameters(), *module.buffers())}
        stays = any(device.type == "meta" for device in devices) or devices == {self.model.device}
        return module if stays else module.to(self.model.device)

    def _image_gen_on_device(self, module: nn.Module) -> nn.Module:
        """Quantised or offloaded weights stay where they are."""
        stays = is_quantized(self.model.config) or getattr(module, "offload_hook", None) is not None
        return module if stays else self._on_device(module)


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a module; offloaded weights are fetched to the CPU."""
    is_offloaded = any(weight.is_meta for weight in module.parameters())
    return get_state_dict_offloaded_model(module) if is_offloaded else module.state_dict()


def _have_same_weights(module: nn.Module, stored: nn.Module) -> bool:
    """Whether the weights of a module are the stored ones in its own precision."""
    own, read = _weights(module), stored.state_dict()
    return own.keys() == read.keys() and all(
        torch.equal(value, read[name].to(value.device, value.dtype)) for name, value in own.items()
    )


def _settings(module: PreTrainedModel) -> dict[str, Any]:
    """What a module's config.json tells about it, but for the precision and the place of the weights."""
    return module.config.to_dict() | dict.fromkeys(("dtype", "_name_or_path"))


def _why_unsaved(module: nn.Module) -> str | None:
    """Why a module cannot be saved so that it loads again; None if it can."""
    if not isinstance(module, PreTrainedModel):
        return f"a {type(module).__name__} is no PreTrainedModel, whose save_pretrained would write it"
    if is_quantized(module.config):  # its weights have names of their own
        return None
    with torch.device("meta"):
        described = type(module)(module.config).state_dict()
    own = _weights(module)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in described.items()}:
        return "its weights are not those that its configuration tells of; merge adapters, or save them by themselves"
    return None


def installed_class(name: str) -> Any:
    """The class of a component in the package that is installed or on the path, not in the checkpoint.

    Raises:
        ValueError: there is none, and the user did not agree to run the checkpoint's code.
    """
    try:
        # By name: a plain import would be taken for a requirement of the checkpoint's code.
        module = importlib.import_module(f"{name}.modeling_{name}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the code of {name} is not installed, and the checkpoint's own may not be run: load the model with "
            "trust_remote_code=True, or install this package"
        ) from error
    return getattr(module, CLASSES[name])


def is_trainer_checkpoint(directory: str | os.PathLike) -> bool:
    """Whether a directory has the name of a checkpoint that `transformers.Trainer` writes during training."""
    return TRAINER_CHECKPOINT.fullmatch(Path(directory).name) is not None


__all__ = ["AUDIO_DETOKENIZER", "IMAGE_GEN", "Component", "Components", "is_trainer_checkpoint"]
