"""Configurations of Ming-Lite-Omni: one class per component, released values as defaults.

The JSON layout is the released one (`llm_config`, `vision_config`, `audio_config`, `whisper_config`,
`talker_config`), so that released and newly saved `config.json` files are interchangeable.
"""

import os
import re
from typing import Any

from transformers import PreTrainedConfig, Qwen2Config
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from .compat import ignores_experts_implementation, keeps_auto_map, register_for_serving
from .files import finish_saving, saving
from .source import CODE, CheckpointSource, pushed_to_hub

# The code that a repository's config.json names for remote loading.
AUTO_MAP = {
    "AutoConfig": "ming/configuration_bailingmm.BailingMMConfig",
    **dict.fromkeys(
        ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
        "ming/modeling_bailingmm.BailingMMNativeForConditionalGeneration",
    ),
}
# `transformers.Trainer` collects everything of an output but these as predictions: logits alone are wanted.
BESIDE_LOGITS = ("past_key_values", "last_hidden_state", "router_logits", "load_balancing_loss", "router_z_loss")
register_for_serving("bailingmm", "BailingMMNativeForConditionalGeneration")


class BailingMoeConfig(PreTrainedConfig):
    """The Ling mixture-of-experts decoder.

    `multi_gate` adds an image and an audio router beside the text router of every layer. The released file carries
    `sliding_window` and `intermediate_size`, which the model never used: the first is cleared unless
    `use_sliding_window`, the second only sizes the leading `first_k_dense_replace` dense layers (0 as released).
    `rope_theta` of released files becomes `rope_parameters`.
    """

    model_type = "bailing_moe"
    base_config_key = "llm_config"
    keys_to_ignore_at_inference = [*BESIDE_LOGITS]
    base_model_tp_plan = {
        "word_embeddings": "embedding_rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.shared_experts.gate_proj": "colwise",
        "layers.*.mlp.shared_experts.up_proj": "colwise",
        "layers.*.mlp.shared_experts.down_proj": "rowwise",
    }
    base_model_ep_plan = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_pp_plan = {
        "word_embeddings": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 126464
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: Any = None  # None: hidden_size over num_attention_heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.006
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = None
    attention_dropout: float | int = 0.0
    moe_intermediate_size: int = 1408
    num_experts: int = 64
    num_experts_per_tok: int = 6
    num_shared_experts: int = 2
    norm_topk_prob: bool = True
    multi_gate: bool = True
    first_k_dense_replace: int = 0
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    router_z_loss_coef: float = 0.001
    image_patch_token: int = 126346
    pad_token_id: int | None = 126081
    bos_token_id: int | None = 126080
    eos_token_id: int | list[int] | None = 126081

    def __post_init__(self, **kwargs):
        if kwargs.pop("use_bias", False) or kwargs.pop("use_qkv_bias", False):
            raise ValueError("use_bias / use_qkv_bias: released Ling decoders have no biases; set both to false")
        for unused in ("norm_head", "norm_softmax"):
            if kwargs.pop(unused, False):
                raise ValueError(f"{unused}=true is not part of Ming-Lite-Omni; set it to false")
        self.sliding_window = self.sliding_window if self.use_sliding_window else None
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if not kwargs.get("rope_theta") and self.rope_parameters is None:
            kwargs["rope_theta"] = 600000.0
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if not 0 < self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must lie between 1 and num_experts "
                f"({self.num_experts})"
            )
        super().__post_init__(**kwargs)


class BailingMMVisionConfig(Qwen2_5_VLVisionConfig):
    """The Qwen2.5-VL vision tower at Ming's sizes."""

    model_type = "qwen2_5_vit"
    base_config_key = "vision_config"

    hidden_size: int = 1280
    intermediate_size: int = 3456
    out_hidden_size: int = 8192


class BailingMMAudioConfig(PreTrainedConfig):
    """The SANM encoder (SenseVoice) behind `audio=`, and its projector.

    `audio_encoder_config_sanm` keeps the released dictionary as the only home of the encoder's sizes; the properties
    below are what the layers read from a config. `norm_query_embeds` governs both audio encoders.
    """

    model_type = "bailingmm_sanm"
    base_config_key = "audio_config"

    audio_encoder_config_sanm: Any = None
    ds_kernel_size: int = 1
    ds_stride: int = 1
    norm_query_embeds: bool = True
    initializer_range: float = 0.02

    layer_norm_eps = 1e-12
    max_source_positions = 500  # frames of 60 ms: vLLM sizes its buffers for a recording of 30 s

    def __post_init__(self, **kwargs):
        sanm = {
            "input_size": 560,
            "output_size": 512,
            "attention_heads": 4,
            "linear_units": 2048,
            "num_blocks": 50,
            "kernel_size": 11,
            "sanm_shfit": 0,
            "dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
        }
        sanm.update(self.audio_encoder_config_sanm or {})
        if sanm["sanm_shfit"] != 0:
            raise ValueError(
                f"sanm_shfit={sanm['sanm_shfit']}: only centred FSMN kernels (0, as released) are supported"
            )
        self.audio_encoder_config_sanm = sanm
        super().__post_init__(**kwargs)

    @property
    def input_size(self) -> int:
        return self.audio_encoder_config_sanm["input_size"]

    @property
    def hidden_size(self) -> int:
        return self.audio_encoder_config_sanm["output_size"]

    @property
    def intermediate_size(self) -> int:
        return self.audio_encoder_config_sanm["linear_units"]

    @property
    def num_hidden_layers(self) -> int:
        return self.audio_encoder_config_sanm["num_blocks"]

    @property
    def num_attention_heads(self) -> int:
        return self.audio_encoder_config_sanm["attention_heads"]

    @property
    def fsmn_kernel_size(self) -> int:
        return self.audio_encoder_config_sanm["kernel_size"]

    @property
    def hidden_dropout(self) -> float:
        return self.audio_encoder_config_sanm["dropout_rate"]

    @property
    def attention_dropout(self) -> float:
        return self.audio_encoder_config_sanm["attention_dropout_rate"]


class BailingMMWhisperConfig(PreTrainedConfig):
    """The Whisper large-v3 encoder with a 300 s position table, and its down-sampling projector.

    `mask_padding` keeps segments of a batch apart. The released code lets every frame attend to the zero padding of
    its batch; `mask_padding=False` reproduces that.
    """

    model_type = "bailingmm_whisper"
    base_config_key = "whisper_config"

    whisper_encoder_config: Any = None
    ds_kernel_size: int = 3
    ds_stride: int = 2
    mask_padding: bool = True
    initializer_range: float = 0.02

    attention_dropout = 0.0
    dropout = 0.0
    activation_dropout = 0.0
    activation_function = "gelu"

    def __post_init__(self, **kwargs):
        whisper = {"n_ctx": 15000, "n_head": 20, "n_layer": 32, "n_mels": 128, "n_state": 1280}
        whisper.update(self.whisper_encoder_config or {})
        self.whisper_encoder_config = whisper
        super().__post_init__(**kwargs)

    @property
    def num_mel_bins(self) -> int:
        return self.whisper_encoder_config["n_mels"]

    @property
    def max_source_positions(self) -> int:
        return self.whisper_encoder_config["n_ctx"]

    @property
    def d_model(self) -> int:
        return self.whisper_encoder_config["n_state"]

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def encoder_layers(self) -> int:
        return self.whisper_encoder_config["n_layer"]

    @property
    def num_hidden_layers(self) -> int:
        return self.encoder_layers

    @property
    def encoder_attention_heads(self) -> int:
        return self.whisper_encoder_config["n_head"]

    @property
    def num_attention_heads(self) -> int:
        return self.encoder_attention_heads

    @property
    def encoder_ffn_dim(self) -> int:
        return 4 * self.d_model


# The talker's own tokens, the last ones of its text vocabulary in this order.
TALKER_TOKENS = (
    "<audio_bos>",
    "<audio_eos>",
    "<audio_pad>",
    "<text_bos>",
    "<text_eos>",
    "<text_pad>",
    "<prompt>",
    "</prompt>",
    "<thinker_prefix>",
    "</thinker_prefix>",
    "<vp>",
    "</vp>",
)


# Sizes of the talker's language model where a file does not give them, as released.
TALKER_SIZES: dict[str, Any] = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}


@ignores_experts_implementation
class BailingMMTalkerConfig(PreTrainedConfig):
    """The talker: a Qwen2 language model over one vocabulary of text tokens, then codec BPE ids.

    `llm_config` holds the sizes that the release keeps in `talker/config.json`; its vocabulary is set from
    `text_vocab_size` + `audio_vocab_size`. `special_token_ids` names the ids of `TALKER_TOKENS`; None takes the last
    ones of the text vocabulary, as released. `qa_model_hidden_size` is the thinker's width, `vp_feature_size` that of
    speaker embeddings ("voice print"), whose head is a convolution over time of `vp_kernel_size` and `vp_stride`.
    `sampling_top_k` and `sampling_temperature` are how ids are drawn where a call does not say (released: 20 and 1).
    `one_sentence_pieces`: text is spoken sentence by sentence, for a talker that stops behind the first one.
    `clause_units`: a piece ends at the first clause end that has so many units (`speech_units`), for a talker that
    says only the first clauses of a sentence; None: pieces grow to half of the longest.
    `max_prompt_seconds`: the longest recording of a voice that the talker follows (released: 30).
    """

    model_type = "bailingmm_talker"
    base_config_key = "talker_config"
    sub_configs = {"llm_config": Qwen2Config}
    llm_config: Any = None
    text_vocab_size: int = 151677
    audio_vocab_size: int = 32768
    qa_model_hidden_size: int = 2048
    vp_feature_size: int = 192
    vp_kernel_size: int = 1
    vp_stride: int = 1
    special_token_ids: Any = None
    sampling_top_k: int = 20
    sampling_temperature: float = 1.0
    one_sentence_pieces: bool = False
    clause_units: int | None = None
    max_prompt_seconds: float = 30.0

    def __post_init__(self, **kwargs):
        # Released files carry every default that configs had in 2024; sampling settings among them were never used.
        known = ("architectures", "dtype", "torch_dtype", "transformers_version")
        vocab_size = kwargs.get("vocab_size", self.vocab_size)
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"talker_config: vocab_size is {vocab_size}; it must be text_vocab_size + audio_vocab_size = "
                f"{self.vocab_size}"
            )
        if not isinstance(self.llm_config, PreTrainedConfig):
            self.llm_config = Qwen2Config(**{**TALKER_SIZES, **(self.llm_config or {})})
        super().__post_init__(**{name: kwargs[name] for name in known if name in kwargs})
        self.llm_config.vocab_size = self.vocab_size
        if self.vp_stride != 1:
            raise ValueError(f"vp_stride={self.vp_stride}: a speaker embedding is one vector; set vp_stride to 1")
        units = self.clause_units
        if units is not None and (isinstance(units, bool) or not isinstance(units, int) or units < 1):
            raise ValueError(f"talker_config: clause_units is {units!r}; give a whole number of at least 1, or null")
        if self.special_token_ids is None:
            first = self.text_vocab_size - len(TALKER_TOKENS)
            self.special_token_ids = {token: first + place for place, token in enumerate(TALKER_TOKENS)}
        if missing := set(TALKER_TOKENS) - set(self.special_token_ids):
            raise ValueError(f"talker_config: special_token_ids lack {sorted(missing)}")

    @property
    def vocab_size(self) -> int:
        """Size of the one vocabulary of both streams."""
        return self.text_vocab_size + self.audio_vocab_size


# Names of linear layers of SANM within a layer: those of earlier versions of this code -> those of the files.
SANM_NAMES = {
    **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.linear_q_k_v"),
    "self_attn.o_proj": "self_attn.linear_out",
    "mlp.fc1": "feed_forward.w_1",
    "mlp.fc2": "feed_forward.w_2",
}


def with_released_names(quantization: dict[str, Any]) -> dict[str, Any]:
    """A saved `quantization_config` whose skip list knows the layers of SANM by the names of the files.

    Earlier versions had other names, and queries, keys and values in three layers, which were never quantised.
    """
    names = quantization.get("llm_int8_skip_modules")
    if names is None:
        return quantization

    def released(name: str) -> str:
        layer = re.fullmatch(r"(audio\.encoders0?\.\d+)\.(.+)", name)
        return f"{layer[1]}.{SANM_NAMES.get(layer[2], layer[2])}" if layer else name

    return {**quantization, "llm_int8_skip_modules": sorted({released(name) for name in names})}


@keeps_auto_map
class BailingMMConfig(PreTrainedConfig):
    """Ming-Lite-Omni: the thinker with its vision tower and two audio encoders, and the talker.

    `load_vision`, `load_audio` (SANM), `load_whisper`, `load_talker` and `load_image_gen` leave a part out: pass them
    to `from_pretrained` to save its memory. `mlp_depth` counts the linear layers of each projector (released: 2).
    Without a `talker_config` there is no talker. `components_from` tells where the parts beside the main weights are,
    if not here: name, revision and subfolder of a checkpoint.

    Attributes:
        source: where the configuration was read from; not saved.
    """

    model_type = "bailingmm"
    sub_configs = {
        "llm_config": BailingMoeConfig,
        "vision_config": BailingMMVisionConfig,
        "audio_config": BailingMMAudioConfig,
        "whisper_config": BailingMMWhisperConfig,
        "talker_config": BailingMMTalkerConfig,
    }
    keys_to_ignore_at_inference = [*BESIDE_LOGITS]
    attribute_map = {"text_config": "llm_config"}

    llm_config: Any = None
    vision_config: Any = None
    audio_config: Any = None
    whisper_config: Any = None
    talker_config: Any = None
    mlp_depth: int = 2
    load_vision: bool = True
    load_audio: bool = True
    load_whisper: bool = True
    load_talker: bool = True
    load_image_gen: bool = True
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    components_from: dict | None = None

    def __post_init__(self, **kwargs):
        for name, config_class in self.sub_configs.items():
            given = getattr(self, name)
            is_absent = given is None and name == "talker_config"
            if not is_absent and not isinstance(given, PreTrainedConfig):
                setattr(self, name, config_class(**(given or {})))
        if isinstance(quantization := kwargs.get("quantization_config"), dict):
            kwargs["quantization_config"] = with_released_names(quantization)
        super().__post_init__(**kwargs)
        self.source: CheckpointSource | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """Library `from_pretrained`; the source is kept, since saving copies code from it."""
        source = CheckpointSource.of_call(pretrained_model_name_or_path, kwargs)
        if source is not None:
            finish_saving(source.name, source.subfolder)
        result = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        config.source = source
        return result

    def to_dict(self) -> dict[str, Any]:
        """Library `to_dict`, without the source: it is of this process and may hold a token."""
        fields = super().to_dict()
        fields.pop("source", None)
        if fields.get("components_from") is None:
            fields.pop("components_from", None)
        return fields

    def get_text_config(self, *args, **kwargs) -> PreTrainedConfig:
        """The decoder's configuration: what generation, caches and quantisers ask for."""
        return self.llm_config

    @property
    def image_token_id(self) -> int:
        return self.llm_config.image_patch_token

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Save `config.json` and the code it names, so that the directory loads with `trust_remote_code=True`."""
        source = self.source or (CheckpointSource(self.name_or_path) if self.name_or_path else None)
        with pushed_to_hub(save_directory, push_to_hub, kwargs), saving(save_directory) as folder:
            super().save_pretrained(folder, **kwargs)
            if source is not None:
                source.copy(CODE, folder, "code")


__all__ = [
    "BailingMMAudioConfig",
    "BailingMMConfig",
    "BailingMMTalkerConfig",
    "BailingMMVisionConfig",
    "BailingMMWhisperConfig",
    "BailingMoeConfig",
]
