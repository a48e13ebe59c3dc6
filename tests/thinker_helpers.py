"""What the thinker's tests share: goldens, a tiny random model, and chats built by hand as tensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = Path(__file__).resolve().parent / "goldens" / "thinker"

# Ids of the tiny vocabulary (320 tokens), as in the goldens.
PATCH, IMAGE, IMAGE_END, VIDEO, VIDEO_END, AUDIO_PATCH, AUDIO, AUDIO_END, PAD = (
    290, 291, 292, 293, 294, 301, 302, 303, 25,
)  # fmt: skip
TEXT_TYPE, IMAGE_TYPE, VIDEO_TYPE, AUDIO_TYPE = 0, 1, 2, 3
PATCH_VALUES = 3 * 2 * 14 * 14
AUDIO_WIDTH = {"sanm": 560, "whisper": 128}


def read_goldens() -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDENS / "goldens.safetensors")
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}


def load_golden_model(attention: str, mask_padding: bool) -> BailingMMNativeForConditionalGeneration:
    model = BailingMMNativeForConditionalGeneration.from_pretrained(
        GOLDENS, dtype=torch.float32, attn_implementation=attention
    )
    model.config.whisper_config.mask_padding = mask_padding
    return model.eval()


def golden_case(meta: dict, goldens: dict, case: str) -> dict:
    """Keyword arguments of a g./h. case; the meta data names its tensors, some with a row slice as in `x[:60]`."""
    inputs = {}
    for argument, source in meta["case_inputs"][case].items():
        if isinstance(source, str):
            name, _, rows = source.partition("[:")
            source = goldens[name][: int(rows.rstrip("]"))] if rows else goldens[name]
        inputs[argument] = source
    return inputs


def tiny_config(**sections: dict) -> BailingMMConfig:
    """The goldens' config made smaller; `llm_config={...}` and the like override single fields."""
    config = json.loads((GOLDENS / "config.json").read_text(encoding="utf-8"))
    config["llm_config"].update(num_hidden_layers=2, moe_intermediate_size=16)
    config["vision_config"].update(depth=2, fullatt_block_indexes=[1])
    config["audio_config"]["audio_encoder_config_sanm"].update(num_blocks=2, dropout_rate=0.0)
    config["audio_config"]["audio_encoder_config_sanm"]["attention_dropout_rate"] = 0.0
    config["whisper_config"]["whisper_encoder_config"].update(n_ctx=64)
    config["talker_config"] = {
        "llm_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
        "text_vocab_size": 60,
        "audio_vocab_size": 40,
        "qa_model_hidden_size": config["llm_config"]["hidden_size"],
    }
    for name, fields in sections.items():
        if isinstance(fields, dict):
            config[name].update(fields)
        else:
            config[name] = fields
    config.pop("auto_map")
    return BailingMMConfig(**config)


def tiny_model(seed: int = 0, attention: str = "sdpa", **sections: dict) -> BailingMMNativeForConditionalGeneration:
    """A model of about 0.4 M parameters whose every weight matters: matrices keep the scale of their input."""
    model = BailingMMNativeForConditionalGeneration(tiny_config(**sections))
    model.set_attn_implementation(attention)
    randomize(model, seed)
    return model.eval()


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("word_embeddings.weight"):
            parameter.copy_(noise)
        elif parameter.ndim > 1:
            fan_in = parameter[0].numel() if "experts." not in name else parameter.shape[-1]
            parameter.copy_(noise * 1.5 * fan_in**-0.5)
        else:
            parameter.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))


class Chat:
    """One row built by hand: `Chat(seed).text(5).image(1, 4, 4).text(3)`, then `batch([...])`."""

    def __init__(self, seed: int, encoder: str = "sanm"):
        self.generator = torch.Generator().manual_seed(seed)
        self.encoder = encoder
        self.ids: list[int] = []
        self.types: list[int] = []
        self.media: dict[str, list] = {"image": [], "video": [], "audio": []}
        self.grids: dict[str, list] = {"image": [], "video": []}

    def text(self, count: int) -> "Chat":
        return self.add(torch.randint(30, 280, (count,), generator=self.generator).tolist(), TEXT_TYPE)

    def image(self, frames: int = 1, height: int = 4, width: int = 4) -> "Chat":
        return self.visual("image", (frames, height, width))

    def video(self, frames: int = 2, height: int = 4, width: int = 4) -> "Chat":
        return self.visual("video", (frames, height, width))

    def audio(self, frames: int) -> "Chat":
        """SANM keeps every frame; the Whisper encoder and its projector each keep every second one, rounded up."""
        self.media["audio"].append(torch.randn(frames, AUDIO_WIDTH[self.encoder], generator=self.generator))
        tokens = frames if self.encoder == "sanm" else ((frames + 1) // 2 + 1) // 2
        return self.add([AUDIO], 0).add([AUDIO_PATCH] * tokens, AUDIO_TYPE).add([AUDIO_END], 0)

    def visual(self, kind: str, grid: tuple[int, int, int]) -> "Chat":
        patches = grid[0] * grid[1] * grid[2]
        self.media[kind].append(torch.randn(patches, PATCH_VALUES, generator=self.generator))
        self.grids[kind].append(grid)
        start, end, token_type = (IMAGE, IMAGE_END, IMAGE_TYPE) if kind == "image" else (VIDEO, VIDEO_END, VIDEO_TYPE)
        return self.add([start], 0).add([PATCH] * (patches // 4), token_type).add([end], 0)

    def add(self, ids: list[int], token_type: int) -> "Chat":
        self.ids += ids
        self.types += [token_type] * len(ids)
        return self


def batch(chats: list[Chat]) -> dict[str, torch.Tensor]:
    """Left-padded model inputs of some chats; media in row order, as the processor gives them."""
    length = max(len(chat.ids) for chat in chats)
    pads = [length - len(chat.ids) for chat in chats]
    inputs = {
        "input_ids": torch.tensor([[PAD] * pad + chat.ids for pad, chat in zip(pads, chats, strict=True)]),
        "attention_mask": torch.tensor([[0] * pad + [1] * (length - pad) for pad in pads]),
        "mm_token_type_ids": torch.tensor([[0] * pad + chat.types for pad, chat in zip(pads, chats, strict=True)]),
    }
    for kind, pixels, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        if any(chat.media[kind] for chat in chats):
            inputs[pixels] = torch.cat([patches for chat in chats for patches in chat.media[kind]])
            inputs[grids] = torch.tensor([grid for chat in chats for grid in chat.grids[kind]])
    if any(chat.media["audio"] for chat in chats):
        width = AUDIO_WIDTH[chats[0].encoder]
        rows = [torch.cat([torch.zeros(0, width), *chat.media["audio"]]) for chat in chats]
        lengths = [torch.tensor([len(segment) for segment in chat.media["audio"]], dtype=torch.long) for chat in chats]
        inputs["audio_feats"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        inputs["audio_feats_lengths"] = torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True)
    return inputs


def mixed_chats(encoder: str = "sanm") -> list[Chat]:
    """Eight chats of every kind and of different lengths; each call builds the same ones."""
    return [
        Chat(1, encoder).text(7),
        Chat(2, encoder).text(3).image(1, 4, 6).text(4),
        Chat(3, encoder).video(2, 4, 4).text(5),
        Chat(4, encoder).text(2).audio(13).text(3),
        Chat(5, encoder).text(2).image(1, 6, 4).text(1).image(1, 10, 4).text(3),
        Chat(6, encoder).image(1, 4, 4).text(2).video(3, 4, 6).text(1).audio(9).text(4),
        Chat(7, encoder).audio(5).text(2).audio(11).text(6),
        Chat(8, encoder).text(3).audio(8).image(1, 4, 4).text(19),
    ]


def valid_tokens(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """[B, L] bool: positions that are not padding."""
    return inputs["attention_mask"].bool()
