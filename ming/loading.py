"""Loading a model in one call, with defaults that suit the machine."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig, CompileConfig

from .argument_checks import Kind, raise_if_no, raise_if_no_flag, raise_if_no_settings, shown
from .compiled import raise_if_quantized_apart
from .modeling_bailingmm import BailingMMNativeForConditionalGeneration
from .quantization import four_bit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Parts that can be left out; each is an option `load_<part>` of `from_pretrained`. Text is always there.
PARTS = ("vision", "audio", "whisper", "talker", "image_gen")
QUANTIZATIONS = ("4bit", "8bit")
SOURCE = Kind("a directory, or the Hub id of a checkpoint", lambda value: isinstance(value, (str, os.PathLike)))
PART_NAMES = Kind(
    f"a list of parts, of {', '.join(PARTS)}",
    lambda value: isinstance(value, Iterable) and not isinstance(value, (str, bytes)),
)
QUANTIZATION = Kind(
    "'4bit', '8bit' or a configuration of the library",
    lambda value: isinstance(value, dict) or hasattr(value, "quant_method"),
)


def default_device() -> torch.device:
    """The first CUDA GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device | str) -> torch.dtype:
    """float32 on a CPU, bfloat16 on every other device."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a model computes, in the words of the command line.

    Args:
        device: its name; None chooses by the machine.
        dtype: a key of `DTYPES`; None chooses by the device.
        load_in_4bit: whether weights are quantised.
        compiled: whether the steps of text, speech and images are compiled.
    """

    device: str | None = None
    dtype: str | None = None
    load_in_4bit: bool = False
    compiled: bool = False

    def load(self, source: str | os.PathLike, **options: Any) -> BailingMMNativeForConditionalGeneration:
        """The model of a checkpoint; options and errors of `load_model`."""
        return load_model(
            source,
            device=self.device,
            dtype=DTYPES[self.dtype] if self.dtype else None,
            quantization="4bit" if self.load_in_4bit else None,
            compile=self.compiled,
            **options,
        )


def load_model(
    source: str | os.PathLike,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    parts: Iterable[str] | None = None,
    quantization: Any = None,
    compile: bool | CompileConfig = False,
    trust_remote_code: bool = False,
    **options: Any,
) -> BailingMMNativeForConditionalGeneration:
    """A model in eval mode, with all weights on one device.

    Args:
        source: directory or Hub id of a checkpoint.
        device: default: `default_device()`.
        dtype: of the weights that are not quantised; default: `default_dtype(device)`.
        parts: those of `PARTS` to load; None loads all that the checkpoint has.
        quantization: "4bit", "8bit", or a configuration as `from_pretrained` takes it.
        compile: whether text, speech and images are made by compiled steps, see `generate`. The first call of a size
            waits for the compiler.
        trust_remote_code: whether code in the checkpoint may run; without it, only the code of this package runs.
        options: further options of `from_pretrained`, such as `revision`, `token` or `cache_dir`.

    Raises:
        OSError: there is no such checkpoint.
        TypeError: an argument of another kind than its name says, or an option that nothing takes.
        ValueError: an unknown part, quantisation or device, or the weights do not fit the configuration; or `compile`
            with a quantised model whose experts are called one by one: all but 4 bit on a GPU.
    """
    raise_if_no_settings({"compile": compile})
    raise_if_no("source", source, SOURCE)
    raise_if_no_flag("trust_remote_code", trust_remote_code)
    if "device_map" in options:
        raise TypeError(
            f"device_map={shown(options['device_map'])}: load_model puts all weights on one device, which is device=; "
            "from_pretrained takes a device_map"
        )
    device = default_device() if device is None else _device(device)
    part_options = _part_options(parts)
    if compile and quantization is not None:
        raise_if_quantized_apart(quantization, device)
    _raise_if_absent(device)
    dtype = dtype or default_dtype(device)
    if quantization is not None:
        options["quantization_config"] = _quantization_config(quantization, dtype)
    model = BailingMMNativeForConditionalGeneration.from_pretrained(
        source,
        dtype=dtype,
        device_map={"": device},
        compile=compile,
        trust_remote_code=trust_remote_code,
        **part_options,
        **options,
    )
    return model.eval()


def _device(device: torch.device | str) -> torch.device:
    """A device by name."""
    wrong = f"device={shown(device)} names no device; give 'cpu', 'cuda' or 'cuda:1'"
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(wrong) from error
    # PyTorch takes cuda:4096 for cuda:0, and any number behind cpu, of which there is one.
    if (isinstance(device, str) and str(named) != device) or (named.type == "cpu" and named.index):
        raise ValueError(wrong)
    return named


def _raise_if_absent(device: torch.device) -> None:
    """Refuse a GPU that this machine does not have."""
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"device={shown(str(device))}: this machine has {count} CUDA GPU(s); give another, or 'cpu'")


def _part_options(parts: Iterable[str] | None) -> dict[str, bool]:
    if parts is None:
        return {}
    raise_if_no("parts", parts, PART_NAMES)
    wanted = list(parts)
    if unknown := sorted(str(part) for part in wanted if part not in PARTS):
        raise ValueError(f"unknown parts {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return {f"load_{part}": part in wanted for part in PARTS}


def _quantization_config(quantization: Any, dtype: torch.dtype) -> Any:
    if not isinstance(quantization, str):
        raise_if_no("quantization", quantization, QUANTIZATION)
        return quantization
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"unknown quantization {quantization!r}; give one of {', '.join(QUANTIZATIONS)}")
    return four_bit(dtype) if quantization == "4bit" else BitsAndBytesConfig(load_in_8bit=True)


__all__ = ["DTYPES", "LoadOptions", "PARTS", "QUANTIZATIONS", "default_device", "default_dtype", "load_model"]
