"""What the benchmark of a GPU runs: models of the released sizes with random weights, or Ming-Tiny.

One configuration is in memory at a time, so that all of them fit one GPU of 80 GB: the whole model, the same in 4 bit,
or the image head. Nothing is written to disk: weights in 4 bit are quantised from random ones on the device.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from image_gen.configuration_image_gen import ImageGenConfig
from image_gen.modeling_image_gen import ImageGen
from ming.components import AUDIO_DETOKENIZER, IMAGE_GEN
from ming.configuration_bailingmm import BailingMMConfig, BailingMMTalkerConfig
from ming.loading import load_model
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.quantization import four_bit, quantization_of_call

ROOT = Path(__file__).resolve().parents[1]
WHOLE, FOUR_BIT, HEAD = "whole", "4 bit", "image head"
STD = 0.02  # of random weights


@dataclass(frozen=True)
class Work:
    """How much is measured, and how many seconds that takes at most.

    Args:
        prompt: tokens of a prompt that is only read.
        chat, new: tokens of a prompt that is answered, and of its answer.
        batches: chats at once.
        side: pixels of a square image in a prompt. seconds: of a recording in a prompt.
        text, voice, ids: tokens that the talker says, codec ids of its voice, and codec ids of its answer.
        first_text: tokens of a reply that are there when speech begins.
        people: whom the talker speaks for at once.
        picture, steps, pictures: pixels of a square image that is drawn, steps, and images at once.
        building, compiling, running: seconds that a configuration takes to be built, a step to be compiled, and a
            measurement to run: it is left out where less time is left.
        limit: rows and columns of the matrices, and MiB of the tensor, by which the limits are measured.
    """

    prompt: int
    chat: int
    new: int
    batches: tuple[int, ...]
    side: int
    seconds: float
    text: int
    voice: int
    ids: int
    first_text: int
    people: int
    picture: int
    steps: int
    pictures: int
    building: float
    compiling: float
    running: float
    limit: tuple[int, int]


WORK = {
    "released": Work(
        prompt=2048, chat=512, new=64, batches=(1, 8, 32), side=896, seconds=30.0, text=24, voice=200, ids=150,
        first_text=12, people=8, picture=512, steps=30, pictures=4, building=40.0, compiling=75.0, running=10.0,
        limit=(8192, 1024),
    ),
    "tiny": Work(
        prompt=64, chat=24, new=4, batches=(1, 2), side=56, seconds=1.0, text=6, voice=20, ids=24, first_text=3,
        people=2, picture=64, steps=4, pictures=2, building=3.0, compiling=20.0, running=2.0, limit=(512, 32),
    ),
}  # fmt: skip


@torch.no_grad()
def filled(model: nn.Module) -> nn.Module:
    """The model with random weights, in eval mode."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=STD)
    return model.eval()


def made(build: Callable[[], nn.Module], device: str, dtype: torch.dtype) -> nn.Module:
    """What a function builds, with tensors on a device and of a dtype."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return build()
    finally:
        torch.set_default_dtype(usual)


def random_model(
    config: BailingMMConfig, device: str, dtype: torch.dtype, in_4_bit: bool = False
) -> BailingMMNativeForConditionalGeneration:
    """A main model with random weights.

    Args:
        config: is changed where the model is in 4 bit.
        dtype: of the weights that are not quantised.
    """
    model_class: Any = BailingMMNativeForConditionalGeneration
    if not in_4_bit:
        return filled(made(lambda: model_class(config), device, dtype))
    options = {"config": config, "quantization_config": four_bit(dtype)}
    config.quantization_config = quantization_of_call(model_class, None, options)  # experts are modules of their own
    empty = made(lambda: model_class(config), "meta", dtype)
    state = {
        name: torch.empty_like(weight, device=device).normal_(std=STD) for name, weight in empty.state_dict().items()
    }
    options |= {"state_dict": state, "dtype": dtype, "device_map": {"": device}}
    del config.quantization_config, empty, state
    return model_class.from_pretrained(None, **options).eval()


class Models:
    """The models of one configuration.

    Args:
        sizes: a key of `WORK`.
        config: other sizes of the main model than the released ones.

    Attributes:
        main, detokenizer, image_gen: those of the configuration that is in memory.
        compiled: names of its graphs.
    """

    def __init__(self, sizes: str, device: str, dtype: torch.dtype, config: BailingMMConfig | None = None):
        self.sizes, self.device, self.dtype, self.config = sizes, device, dtype, config
        self.kind = ""
        self.compiled: set[str] = set()
        self.main: Any = None
        self.detokenizer: Any = None
        self.image_gen: Any = None

    def use(self, kind: str) -> None:
        """Put a configuration in the place of the one in memory."""
        if kind == self.kind:
            return
        self.free()
        build = self._read if self.sizes == "tiny" else self._make
        build(kind)
        self.kind = kind

    def free(self) -> None:
        """Give the memory back, that of compiled code included."""
        self.kind, self.main, self.detokenizer, self.image_gen = "", None, None, None
        self.compiled.clear()
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def has_stacks(self) -> bool:
        """Whether all experts in 4 bit are dequantised together, so that a step is a graph."""
        layers = self.main.get_decoder().layers
        return all(layer.mlp.experts.is_graph(self.main.device) for layer in layers if layer.is_sparse)

    def weights(self) -> int:
        """Bytes of all weights in memory."""
        parts = [part for part in (self.main, self.detokenizer, self.image_gen) if part is not None]
        return sum(stored(weight) for part in parts for weight in part.parameters())

    def _read(self, kind: str) -> None:
        """Ming-Tiny, from its repository."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if kind == HEAD:
            self.image_gen = ImageGen.from_pretrained(ROOT, subfolder=IMAGE_GEN, **options).to(self.device).eval()
            return
        detokenizer: Any = AudioDetokenizer.from_pretrained(ROOT, subfolder=AUDIO_DETOKENIZER, **options)
        self.detokenizer = detokenizer.to(self.device).eval()
        self.main = load_model(
            ROOT, device=self.device, dtype=self.dtype, quantization="4bit" if kind == FOUR_BIT else None
        )

    def _make(self, kind: str) -> None:
        """The released sizes."""
        if kind == HEAD:
            # Weights as the library starts them: images of others are not finite.
            self.image_gen = made(lambda: ImageGen(ImageGenConfig()).eval(), self.device, self.dtype)
            return
        detokenizer = made(lambda: AudioDetokenizer(AudioDetokenizerConfig()).eval(), self.device, self.dtype)
        self.detokenizer = detokenizer.to(self.dtype)  # but for the vocoder, which goes back to float32
        config = self.config or BailingMMConfig(talker_config=BailingMMTalkerConfig())
        self.main = random_model(config, self.device, self.dtype, kind == FOUR_BIT)


def stored(weight: torch.Tensor) -> int:
    """Bytes of a weight, with the scales of one that bitsandbytes has quantised."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.nbytes
    return weight.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)


def numbers(weight: torch.Tensor) -> int:
    """How many numbers a weight holds: in 4 bit, two a byte."""
    state = getattr(weight, "quant_state", None)
    return weight.numel() if state is None else int(torch.Size(state.shape).numel())
