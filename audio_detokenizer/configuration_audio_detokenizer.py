"""Configuration of the audio detokenizer.

`flow` and `hift` keep the argument names of the released `audio_detokenizer.yaml`, so that its settings fit.
"""

import copy
import os
import shutil
from dataclasses import field
from math import prod
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

FOLDER = "audio_detokenizer"
AUTO_MAP = {
    "AutoConfig": "configuration_audio_detokenizer.AudioDetokenizerConfig",
    "AutoModel": "modeling_audio_detokenizer.AudioDetokenizer",
}

RELEASED_FLOW: dict[str, Any] = {
    "input_size": 512,
    "output_size": 80,
    "spk_embed_dim": 192,
    "output_type": "mel",
    "vocab_size": 4096,
    "input_frame_rate": 50,
    "only_mask_loss": True,
    "encoder": {
        "output_size": 512,
        "attention_heads": 8,
        "linear_units": 2048,
        "num_blocks": 6,
        "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
        "normalize_before": True,
        "input_layer": "linear",
        "pos_enc_layer_type": "rel_pos_espnet",
        "selfattention_layer_type": "rel_selfattn",
        "input_size": 512,
        "use_cnn_module": False,
        "macaron_style": False,
    },
    "length_regulator": {"channels": 80, "sampling_ratios": [1, 1, 1, 1]},
    "decoder": {
        "in_channels": 240,
        "n_spks": 1,
        "spk_emb_dim": 80,
        "cfm_params": {
            "sigma_min": 1e-6,
            "solver": "euler",
            "t_scheduler": "cosine",
            "training_cfg_rate": 0.2,
            "inference_cfg_rate": 0.7,
            "reg_loss_type": "l1",
        },
    },
    "estimator": {
        "in_channels": 320,
        "out_channels": 80,
        "channels": [256, 256],
        "dropout": 0.0,
        "attention_head_dim": 64,
        "n_blocks": 4,
        "num_mid_blocks": 12,
        "num_heads": 8,
        "act_fn": "gelu",
    },
}
RELEASED_HIFT: dict[str, Any] = {
    "in_channels": 80,
    "base_channels": 512,
    "nb_harmonics": 8,
    "sampling_rate": 22050,
    "nsf_alpha": 0.1,
    "nsf_sigma": 0.003,
    "nsf_voiced_threshold": 10,
    "upsample_rates": [8, 8],
    "upsample_kernel_sizes": [16, 16],
    "istft_params": {"n_fft": 16, "hop_len": 4},
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "source_resblock_kernel_sizes": [7, 11],
    "source_resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "lrelu_slope": 0.1,
    "audio_limit": 0.99,
    "f0_predictor": {"num_class": 1, "in_channels": 80, "cond_channels": 512},
}
# Tokens are speech codes (20 ms), frames are mel frames (11.6 ms), samples are of the waveform.
STREAMING: dict[str, Any] = {
    "first_chunk": 12,  # tokens in the first chunk: 0.24 s
    "first_chunk_steps": 0,  # of the flow's solver there; 0: as many as everywhere
    "growth": 4.0,  # each chunk is this much longer than the one before ...
    "max_chunk": 200,  # ... up to this many tokens (4 s)
    "left_context": 30,  # tokens before a chunk that the flow sees again
    "look_ahead": 18,  # tokens after a chunk that must be there: its vocoder context, and 0.15 s more for the flow
    "vocoder_context": 18,  # frames on both sides of a chunk that the vocoder sees: all that its output depends on
    "mel_fade": 8,  # frames, after the vocoder's context, over which the mel of a chunk fades into the next one's
    "crossfade": 256,  # samples (11.6 ms) after a joint over which the waveforms of both chunks are faded
}
# Settings that have a single implementation here, with the value that it implements.
IMPLEMENTED: dict[str, dict[str, Any]] = {
    "flow": {"output_type": "mel"},
    "flow.encoder": {
        "normalize_before": True,
        "input_layer": "linear",
        "pos_enc_layer_type": "rel_pos_espnet",
        "selfattention_layer_type": "rel_selfattn",
        "use_cnn_module": False,
        "macaron_style": False,
    },
    "flow.decoder.cfm_params": {"solver": "euler", "t_scheduler": "cosine"},
    "flow.estimator": {"act_fn": "gelu"},
    "hift.f0_predictor": {"num_class": 1},
}


class AudioDetokenizerConfig(PreTrainedConfig):
    """Sizes of the flow (codes to mel) and of the HiFT vocoder (mel to waveform); defaults are the released ones.

    Args:
        flow, hift: settings under the names of the released yaml; a setting that is left out keeps its released value.
        sample_rate: rate of the waveform in Hz.
        token_rate: speech codes per second.
        num_steps: Euler steps of the flow.
        mask_padding: keep the padding of a batch out of attention and group statistics, so that each row of a batch
            equals the row alone. False reproduces the released code in padded (training) batches; see
            `modeling_estimator`.
        streaming: chunk sizes and contexts of `AudioDetokenizer.stream`, explained at `STREAMING` above.

    Raises:
        ValueError: an unknown setting, a value that this code does not implement, or sizes that do not fit each other.
    """

    model_type = "bailingmm_audio_detokenizer"

    flow: dict = field(default_factory=dict)
    hift: dict = field(default_factory=dict)
    sample_rate: int = 22050
    token_rate: int = 50
    num_steps: int = 8
    mask_padding: bool = True
    streaming: dict = field(default_factory=dict)

    def __post_init__(self, **kwargs):
        self.flow = merged(RELEASED_FLOW, self.flow, "flow")
        self.hift = merged(RELEASED_HIFT, self.hift, "hift")
        self.streaming = merged(STREAMING, self.streaming, "streaming")
        self._check()
        super().__post_init__(**kwargs)

    def _check(self):
        for path, required in IMPLEMENTED.items():
            section: dict[str, Any] = {"flow": self.flow, "hift": self.hift}
            for name in path.split("."):
                section = section[name]
            for name, value in required.items():
                if section[name] != value:
                    raise ValueError(f"{path}.{name}={section[name]!r} is not implemented; only {value!r} is")
        mel = self.flow["output_size"]
        equal = {
            "sample_rate and hift.sampling_rate": (self.sample_rate, self.hift["sampling_rate"]),
            "token_rate and flow.input_frame_rate": (self.token_rate, self.flow["input_frame_rate"]),
            "flow.output_size and hift.in_channels": (mel, self.hift["in_channels"]),
            "flow.output_size and flow.length_regulator.channels": (mel, self.flow["length_regulator"]["channels"]),
            "4 * flow.output_size and flow.estimator.in_channels": (4 * mel, self.flow["estimator"]["in_channels"]),
            "flow.output_size and flow.estimator.out_channels": (mel, self.flow["estimator"]["out_channels"]),
        }
        for names, (one, other) in equal.items():
            if one != other:
                raise ValueError(f"{names} must be equal, not {one} and {other}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, not {self.num_steps}")

    @property
    def hop_length(self) -> int:
        """Samples per mel frame (256 as released)."""
        return prod(self.hift["upsample_rates"]) * self.hift["istft_params"]["hop_len"]

    def num_frames(self, num_tokens: int) -> int:
        """Number of mel frames of `num_tokens` speech codes: the whole frames that fit in their duration."""
        return num_tokens * self.sample_rate // (self.token_rate * self.hop_length)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs):
        """Save `config.json` and the component's code, so that the directory loads with `trust_remote_code=True`.

        The model cannot copy the code itself: its `save_pretrained` saves the configuration and then uploads the files
        that are newer than its start.
        """
        super().save_pretrained(save_directory, **kwargs)
        source, destination = Path(__file__).resolve().parent, Path(save_directory)
        if source != destination.resolve():
            for path in source.glob("*.py"):
                shutil.copyfile(path, destination / path.name)

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True):
        """Write the file as the library does, with an `auto_map` that names the folder `FOLDER` if the file is in it.

        With `subfolder=` the library looks up the code of a component from the root of the repository, but it would
        write names without the folder.
        """
        prefix = f"{FOLDER}/" if Path(json_file_path).resolve().parent.name == FOLDER else ""
        self.auto_map = {auto_class: prefix + reference for auto_class, reference in AUTO_MAP.items()}
        super().to_json_file(json_file_path, use_diff=use_diff)


def merged(defaults: dict[str, Any], given: dict[str, Any], path: str) -> dict[str, Any]:
    """A copy of `defaults` with the values of `given`, section by section.

    Raises:
        ValueError: a name that `defaults` does not have; `path` says where.
    """
    result = copy.deepcopy(defaults)
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"{path}.{name} is not a setting; known are {', '.join(defaults)}")
        if isinstance(defaults[name], dict):
            value = merged(defaults[name], value, f"{path}.{name}")
        result[name] = copy.deepcopy(value)
    return result


__all__ = ["AudioDetokenizerConfig"]
