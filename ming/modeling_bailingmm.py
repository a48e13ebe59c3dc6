"""Ming-Lite-Omni (Ming-Omni, arXiv 2506.09344): text, images, video and audio in; text, speech and images out.

    pixels -> vision tower -> projector ---+
    audio  -> SANM | Whisper -> projector --+-> scattered into the word embeddings by token type -> Ling decoder

The decoder is told each token's modality by `mm_token_type_ids` [B, L] (0 text, 1 image, 2 video, 3 audio); generated
tokens are text.

Shape letters: B batch, L tokens, N images, videos or audio segments, P patches, T frames, H decoder hidden size.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CompileConfig, StoppingCriteriaList, TextIteratorStreamer
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .argument_checks import (
    TEXT,
    continues,
    raise_if_no,
    raise_if_no_settings,
    raise_if_no_tensors,
    raise_if_no_texts,
    raise_if_no_token_ids,
    raise_if_other_rows,
    raise_if_rows_hidden,
    raise_if_unfit,
    raise_if_values_outside,
    shown,
)
from .background import BackgroundWork, StopWhenSet
from .chat import Chat
from .compat import (
    checks_requests,
    compiles_where_asked,
    execution_device,
    is_remote_code,
    is_split_over_processes,
    keeps_auto_map,
    prompt_span,
    sequential_loading,
    takes_experts_implementation,
)
from .compiled import CompiledDecoding, generate_compiled, raise_if_not_compilable, settings_of, step_config
from .components import Components, is_trainer_checkpoint
from .configuration_bailingmm import BailingMMConfig
from .drawing import Painter
from .events import Done, StreamEvent, TextDelta
from .files import prepare_reading, saving
from .finite import LogitsCheck, naming_layers
from .generation_arguments import (
    GenerationArguments,
    by_name,
    only_tokens,
    raise_if_custom,
    raise_if_media_missing,
    raise_if_outputs_lost,
    raise_if_several,
    raise_if_states_hidden,
    raise_if_too_long,
    raise_if_unanswerable,
    raise_if_unknown,
    sort_arguments,
)
from .idle_parts import add_nothing_of, must_be_called, must_have_gradients
from .modeling_bailing_moe import BailingMoeForCausalLM, BailingMoeMarkedModel, BailingMoeOutputWithPast
from .modeling_encoders import (
    BailingMMSanmEncoder,
    BailingMMVisionTransformer,
    BailingMMWhisperEncoder,
    audio_projector,
    projected_lengths,
    raise_if_no_audio_batch,
    split_audio_segments,
    vision_projector,
)
from .modeling_talker import BailingMMTalker
from .quantization import is_quantized, quantization_of_call
from .source import CheckpointSource, pushed_to_hub
from .speech import PromptStates, Speaker, SpeechOutput, SpeechSettings
from .token_types import AUDIO_MARK, AUDIO_TYPE, IMAGE_MARK, IMAGE_TYPE, VIDEO_TYPE
from .weights import raise_if_incomplete

# What the processor hands over beside token ids; consumed once, before the first decoding step.
MEDIA_INPUTS = (
    "pixel_values",
    "image_grid_thw",
    "image_sizes",
    "pixel_values_videos",
    "video_grid_thw",
    "audio_feats",
    "audio_feats_lengths",
    "audio_placeholder_loc_lens",
    "use_whisper_encoder",
)
# Encoder and projector of recordings, by `use_whisper_encoder`.
AUDIO_PARTS = {False: ("audio", "linear_proj_audio"), True: ("whisper_encoder", "linear_proj_whisper")}


# What to do with media that continuous batching does not take.
ENGINE_REMEDY = "the library's continuous batching takes text alone; use generate on a batch, or `ming serve`"


@dataclass
class OmniOutput(SpeechOutput):
    """A reply of several kinds: of speech what `SpeechOutput` holds, and images.

    Args:
        images: RGB, all images of the first chat first.
        native_size: (height, width) in pixels they were made at; None if not all at the same.
    """

    images: list | None = None
    native_size: tuple[int, int] | None = None


@takes_experts_implementation
class BailingMMPreTrainedModel(PreTrainedModel):
    config: BailingMMConfig
    config_class = BailingMMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("text", "image", "video", "audio")
    output_modalities: tuple[str, ...] = ("text", "audio", "image")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "BailingMoeDecoderLayer",
        "Qwen2_5_VLVisionBlock",
        "BailingMMSanmLayer",
        "WhisperEncoderLayer",
        "Qwen2DecoderLayer",
    ]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @property
    def device(self) -> torch.device:
        """Where inputs belong, also when the weights are offloaded."""
        return execution_device(self, super().device)


@compiles_where_asked
@keeps_auto_map
class BailingMMNativeForConditionalGeneration(BailingMMPreTrainedModel, GenerationMixin):
    """The whole model under the released weight names.

    Attributes:
        components: what lives beside the main weights, and how the model was loaded.
        audio_detokenizer, image_gen: handles of two of them, which are read when they are first used.
        speech, drawing: the `Speaker` and the `Painter` of this model.
        compile_decoding: whether calls compile the step from token to token that do not say so, see `generate`.
        decoding: what is kept for compiled steps.
    """

    media_inputs = MEDIA_INPUTS

    def __init__(self, config: BailingMMConfig, **unknown: Any):
        if unknown:  # `from_pretrained` hands on what neither it nor the configuration takes
            named = ", ".join(f"{name}={shown(value)}" for name, value in unknown.items())
            raise TypeError(f"{named}: no option of from_pretrained, and no setting of the model; check the spelling")
        super().__init__(config)
        hidden_size, depth = config.llm_config.hidden_size, config.mlp_depth
        if config.tie_word_embeddings:  # the embeddings are the decoder's
            config.llm_config.tie_word_embeddings = True
        audio, whisper = config.audio_config, config.whisper_config
        self.model = BailingMoeForCausalLM(config.llm_config, separate_experts=is_quantized(config))
        absent = []
        if config.load_vision:
            self.vision = BailingMMVisionTransformer(config.vision_config)
            self.linear_proj = vision_projector(config.vision_config.out_hidden_size, hidden_size, depth)
        else:
            absent += ["vision", "linear_proj"]
        if config.load_audio:
            self.audio = BailingMMSanmEncoder(audio)
            self.linear_proj_audio = audio_projector(
                audio.hidden_size, hidden_size, depth, audio.ds_kernel_size, audio.ds_stride
            )
        else:
            absent += ["audio", "linear_proj_audio"]
        if config.load_whisper:
            self.whisper_encoder = BailingMMWhisperEncoder(whisper)
            self.linear_proj_whisper = audio_projector(
                whisper.d_model, hidden_size, depth, whisper.ds_kernel_size, whisper.ds_stride
            )
        else:
            absent += ["whisper_encoder", "linear_proj_whisper"]
        if config.load_talker and config.talker_config is not None:
            self.talker = BailingMMTalker(config.talker_config)
        else:
            absent += ["talker"]
        self._keys_to_ignore_on_load_unexpected = [rf"^{name}\." for name in absent]
        self.components = Components(self)
        self.audio_detokenizer, self.image_gen = self.components.audio_detokenizer, self.components.image_gen
        self.speech, self.drawing = Speaker(self), Painter(self)
        self.compile_decoding: bool | CompileConfig = False
        self.decoding = CompiledDecoding(config.llm_config)
        if config.talker_config is None:  # a part that was left out on request is named by the error of its use
            self.output_modalities = tuple(mode for mode in type(self).output_modalities if mode != "audio")
        self.post_init()

    @classmethod
    def _from_config(cls, config: BailingMMConfig, **kwargs):
        """Library method; vLLM, which chooses its attention first, gets the model without its head."""
        is_for_vllm = config.llm_config._attn_implementation == "vllm"
        if cls is BailingMMNativeForConditionalGeneration and is_for_vllm:
            return BailingMMModel._from_config(config, **kwargs)
        return super()._from_config(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        compile: bool | CompileConfig = False,
        **kwargs,
    ):
        """Library `from_pretrained` that refuses incomplete checkpoints instead of leaving layers random.

        `load_vision=False`, `load_audio=False` (SANM), `load_whisper=False`, `load_talker=False` or
        `load_image_gen=False` leave a part out. `compile` becomes the model's `compile_decoding`.

        Raises:
            TypeError: `compile` is neither a flag nor a `CompileConfig`.
            ValueError: a weight of the model is missing from the checkpoint or has another shape there (unless
                `ignore_mismatched_sizes`), or the checkpoint holds weights that the model does not know; or
                `quantization_config` lists layers to skip and misses one that cannot be quantised; or `compile` is
                asked for, and the model does not compile.
        """
        raise_if_no_settings({"compile": compile})
        source = CheckpointSource.of_call(pretrained_model_name_or_path, kwargs)
        if source is not None:
            source = source.pinned()
            kwargs["revision"] = source.revision or "main"
            prepare_reading(source.name, source.subfolder, kwargs.get("config"))
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = quantization_of_call(cls, pretrained_model_name_or_path, kwargs)
        with sequential_loading():
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        raise_if_incomplete(pretrained_model_name_or_path or "state_dict", info, ignore_mismatched_sizes)
        if source is not None:
            model.config.source = source
            model.components.source = source.of_components(model.config.components_from).pinned()
            if source.trust_remote_code and is_remote_code(cls):
                model.components.code = source
        generation_config, text_config = model.generation_config, model.config.llm_config
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(generation_config, name) is None:
                setattr(generation_config, name, getattr(text_config, name))
        if compile:
            raise_if_not_compilable(model)
            model.compile_decoding = compile
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """Library `save_pretrained` of a whole repository: code and the parts beside the main weights are copied.

        All files take their places together, or none does (see `ming/files.py`). Only a model whose weights are split
        over several processes is written in place, as the library does.

        Parts that were changed since they were read are written as they are now, in the precision that they have,
        also beside an adapter, which is saved alone; to find out, those that are loaded are compared with their files.

        A checkpoint that `transformers.Trainer` writes during training (`checkpoint-500`) holds no copies of the
        parts unless one was changed: its config.json tells where they are (`components_from`).
        """
        changed = self.components.changed() if is_main_process else []
        copies = bool(changed) or not is_trainer_checkpoint(save_directory)
        source = self.components.source
        self.config.components_from = None if copies or source is None else source.reference()
        try:
            in_place = not is_main_process or is_split_over_processes(self)
            with (
                pushed_to_hub(save_directory, push_to_hub and is_main_process, kwargs),
                nullcontext(Path(save_directory)) if in_place else saving(save_directory) as folder,
            ):
                super().save_pretrained(folder, is_main_process=is_main_process, **kwargs)
                if copies and is_main_process and not getattr(self, "peft_config", None):
                    self.components.copy(folder, save_directory)
                for component in changed:
                    component.save(folder)
        finally:
            self.config.components_from = None

    @property
    def _on_meta(self) -> bool:
        """Whether tensors without data are what this model computes with."""
        return next(self.parameters()).is_meta

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.model.lm_head

    def set_output_embeddings(self, value: nn.Linear):
        self.model.lm_head = value

    def get_decoder(self, *args, **kwargs):
        return self.model.model

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode all images of a batch, with the names of the library's models.

        Args:
            pixel_values: [P, 1176]. image_grid_thw: [N, 3] in patches.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict` as in the library.
        Returns:
            `pooler_output`: a tensor [tokens, H] per image, every row of unit length, which the decoder reads;
            `last_hidden_state`: what the encoder made of the patches, [P, D] in its own width and order.
        """
        outputs = self._visual_features(pixel_values, image_grid_thw, **kwargs)
        tokens = image_grid_thw.prod(dim=-1) // self.config.vision_config.spatial_merge_size**2
        outputs.pooler_output = outputs.pooler_output.split(tokens.tolist())
        return outputs

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """As `get_image_features`; the pairs of frames of a video do not see each other here."""
        return self.get_image_features(pixel_values_videos, video_grid_thw, **kwargs)

    def _visual_features(
        self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs
    ) -> BaseModelOutputWithPooling:
        """pixel_values [P, 1176], image_grid_thw [N, 3] in patches -> `pooler_output` [P / 4, H] of unit length."""
        given = {"pixel_values": pixel_values, "image_grid_thw": image_grid_thw}
        raise_if_no_tensors(given, self._on_meta)
        if not self.config.load_vision:
            raise ValueError("this model was loaded with load_vision=False; load it with load_vision=True for images")
        self._raise_if_no_patches(pixel_values, image_grid_thw)
        outputs = self.vision(
            pixel_values.to(self.vision.dtype), grid_thw=image_grid_thw, **{**kwargs, "return_dict": True}
        )
        outputs.pooler_output = F.normalize(self.linear_proj(outputs.pooler_output), dim=-1)
        return outputs

    def _raise_if_no_patches(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> None:
        """Refuse grids that are not [N, 3] in whole tokens, and patches [P, 1176] that do not fill them."""
        vision, size = self.config.vision_config, self.config.vision_config.spatial_merge_size
        is_grid = image_grid_thw is not None and image_grid_thw.ndim == 2 and image_grid_thw.shape[1] == 3
        if not is_grid or (image_grid_thw < 1).any() or (image_grid_thw[:, 1:] % size).any():
            raise ValueError(
                f"image_grid_thw (video_grid_thw) must be [N, 3] with heights and widths in multiples of {size} "
                f"patches, got {None if image_grid_thw is None else image_grid_thw.tolist()}"
            )
        expected = (
            int(image_grid_thw.prod(dim=-1).sum()),
            vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        )
        if pixel_values is None:
            raise ValueError(f"pixel_values are missing; image_grid_thw says that they have the shape {expected}")
        if pixel_values.shape != expected or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values must be floats of shape {expected} for image_grid_thw {image_grid_thw.tolist()}, "
                f"got {pixel_values.dtype} {tuple(pixel_values.shape)}"
            )

    @can_return_tuple
    def get_audio_features(
        self,
        audio_feats: torch.Tensor,
        audio_feats_lengths: torch.Tensor,
        use_whisper_encoder: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode all audio segments of a batch.

        Args:
            see `_audio_features`; kwargs as in `get_image_features`.
        Returns:
            `pooler_output`: a tensor [tokens, H] per segment, in row and segment order, which the decoder reads;
            `last_hidden_state`: what the encoder made of the segments, [segments, frames, D], padded at their ends.
        """
        outputs, lengths = self._audio_features(audio_feats, audio_feats_lengths, use_whisper_encoder, **kwargs)
        outputs.pooler_output = outputs.pooler_output.split(lengths.tolist())
        return outputs

    def _audio_features(
        self,
        audio_feats: torch.Tensor,
        audio_feats_lengths: torch.Tensor,
        use_whisper_encoder: bool | None = None,
        **kwargs,
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """Features of all audio segments, and how many each has.

        Args:
            audio_feats: [B, L1 + ... + LN, 560 (SANM) or 128 (Whisper)], the segments of a row one after another.
            audio_feats_lengths: [B, N] frames of each segment; 0 ends a row, a row without audio is all 0.
            use_whisper_encoder: may be left out, the width of the features tells the encoder.
        Returns:
            `pooler_output` [sum of lengths, H] in row and segment order, and their lengths [segments].
        """
        given = {"audio_feats": audio_feats, "audio_feats_lengths": audio_feats_lengths}
        raise_if_no_tensors(given, self._on_meta)
        raise_if_no_audio_batch(audio_feats, audio_feats_lengths)
        use_whisper = self._choose_audio_encoder(audio_feats.shape[-1], use_whisper_encoder)
        segments, lengths = split_audio_segments(audio_feats, audio_feats_lengths)
        if use_whisper:
            config, encoder, projector = self.config.whisper_config, self.whisper_encoder, self.linear_proj_whisper
        else:
            config, encoder, projector = self.config.audio_config, self.audio, self.linear_proj_audio
        encoded = encoder(segments.to(encoder.dtype), lengths, **{**kwargs, "return_dict": True})
        projected = projector(encoded.last_hidden_state.transpose(1, 2))
        encoded_lengths = encoder.output_lengths(lengths) if use_whisper else lengths
        output_lengths = projected_lengths(encoded_lengths, config.ds_kernel_size, config.ds_stride)
        features = torch.cat([row[:length] for row, length in zip(projected, output_lengths.tolist(), strict=True)])
        if self.config.audio_config.norm_query_embeds:  # one setting for both encoders, as released
            features = F.normalize(features, dim=-1)
        return BaseModelOutputWithPooling(**encoded, pooler_output=features), output_lengths

    def _choose_audio_encoder(self, width: int, use_whisper_encoder: bool | None) -> bool:
        widths = {False: self.config.audio_config.input_size, True: self.config.whisper_config.num_mel_bins}
        raise_if_no_settings({"use_whisper_encoder": use_whisper_encoder})
        if use_whisper_encoder is None:
            use_whisper_encoder = width == widths[True]
        if width != widths[use_whisper_encoder]:
            name = "Whisper" if use_whisper_encoder else "SANM"
            raise ValueError(
                f"audio_feats of width {width} do not fit the {name} encoder ({widths[use_whisper_encoder]}); "
                "pass the same use_whisper_encoder to the processor (audio_kwargs) and to the model"
            )
        flag = "load_whisper" if use_whisper_encoder else "load_audio"
        if not getattr(self.config, flag):
            raise ValueError(f"this model was loaded with {flag}=False; load it with {flag}=True for this audio")
        return use_whisper_encoder

    def get_token_types(
        self,
        input_ids: torch.Tensor | None,
        has_images: bool,
        has_videos: bool,
        audio_placeholder_loc_lens: torch.Tensor | None,
    ) -> torch.Tensor:
        """`mm_token_type_ids` [B, L] for inputs that carry none, as from the released processor.

        audio_placeholder_loc_lens: [B, N, 2] (start, length) in the padded row; length 0 ends a row.
        """
        if input_ids is None:
            raise ValueError("media beside inputs_embeds need mm_token_type_ids, which say where they belong")
        if has_images and has_videos:
            raise ValueError(
                "images and videos share one patch token: pass the processor's mm_token_type_ids to tell them apart"
            )
        is_patch = input_ids == self.config.image_token_id
        token_types = is_patch * (VIDEO_TYPE if has_videos else IMAGE_TYPE if has_images else 0)
        if audio_placeholder_loc_lens is not None:
            rows, _, size = audio_placeholder_loc_lens.shape
            if (rows, size) != (len(input_ids), 2):
                raise ValueError(
                    f"audio_placeholder_loc_lens {tuple(audio_placeholder_loc_lens.shape)} must be [B, N, 2], (start, "
                    f"length), for the {len(input_ids)} rows of input_ids"
                )
            position = torch.arange(input_ids.shape[1], device=input_ids.device)
            start, length = audio_placeholder_loc_lens.to(input_ids.device)[..., None].unbind(-2)  # [B, N, 1]
            is_audio = ((position >= start) & (position < start + length)).any(dim=1)
            token_types = token_types.masked_fill(is_audio, AUDIO_TYPE)
        return token_types

    def embed(
        self,
        input_ids: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        audio_feats: torch.Tensor | None = None,
        audio_feats_lengths: torch.Tensor | None = None,
        audio_placeholder_loc_lens: torch.Tensor | None = None,
        use_whisper_encoder: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Word embeddings with every medium's features at the tokens of its type.

        Args:
            input_ids: [B, L]; or inputs_embeds [B, L, H] with mm_token_type_ids, which say where the media belong.
            image_sizes: [N, 2] height and width in pixels before resizing; read by nothing but drawing.
        Returns:
            inputs_embeds [B, L, H] and mm_token_type_ids [B, L] (None when there is no medium).

        Raises:
            ValueError: the number of placeholder tokens of a modality differs from its number of features, or
                media under `torch.export`.
        """
        has_media = any(media is not None for media in (pixel_values, pixel_values_videos, audio_feats))
        if has_media and torch.compiler.is_exporting():
            raise ValueError(
                "the encoders cannot be exported, since sizes of images and recordings are numbers within tensors: "
                "call embed(...) first, and export with its inputs_embeds and mm_token_type_ids"
            )
        if mm_token_type_ids is None and has_media:
            mm_token_type_ids = self.get_token_types(
                input_ids, pixel_values is not None, pixel_values_videos is not None, audio_placeholder_loc_lens
            )
        if inputs_embeds is None and input_ids is None:
            raise ValueError("media need the prompt that they belong to: pass input_ids, or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if mm_token_type_ids is not None and mm_token_type_ids.shape != inputs_embeds.shape[:2]:
            raise ValueError(
                f"mm_token_type_ids {tuple(mm_token_type_ids.shape)} must have the shape of input_ids "
                f"{tuple(inputs_embeds.shape[:2])}"
            )
        features, idle = self._encode(
            {"image": (pixel_values, image_grid_thw), "video": (pixel_values_videos, video_grid_thw)},
            (audio_feats, audio_feats_lengths, use_whisper_encoder),
            inputs_embeds.device,
        )
        if mm_token_type_ids is not None:
            for name, token_type in (("image", IMAGE_TYPE), ("video", VIDEO_TYPE), ("audio", AUDIO_TYPE)):
                inputs_embeds = put_features(inputs_embeds, mm_token_type_ids == token_type, features.get(name), name)
        for rows in idle:
            inputs_embeds = add_nothing_of(rows, inputs_embeds)
        return inputs_embeds, mm_token_type_ids

    def _encode(
        self, visual: dict[str, tuple[torch.Tensor | None, ...]], audio: tuple, device: torch.device
    ) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """Features [tokens, H] of every medium that is given, and outputs of parts that are called for nothing.

        Images and videos go through the vision tower together, and the encoders are called in one order: where their
        weights are spread over processes, every call is a step that all processes take.

        Args:
            visual: by name, patches and grids as in `get_image_features`, or None.
            audio: arguments of `get_audio_features`, the first of them None if there is no audio.
            device: where the embeddings are; weights may wait elsewhere.
        """
        features, idle = {}, []
        given: dict[str, Any] = {name: pair for name, pair in visual.items() if pair[0] is not None}
        if len(given) > 1:
            for pair in given.values():
                self._raise_if_no_patches(*pair)
            joined = [torch.cat(tensors) for tensors in zip(*given.values(), strict=True)]
            rows = self._visual_features(*joined).pooler_output
            per_token = self.config.vision_config.spatial_merge_size**2
            sizes = [len(patches) // per_token for patches, _ in given.values()]
            features = dict(zip(given, rows.split(sizes), strict=True))
        elif given:
            features = {name: self._visual_features(*pair).pooler_output for name, pair in given.items()}
        elif self._is_idle("vision", "linear_proj"):
            idle.append(self._visual_features(*self._smallest_image(device)).pooler_output)
        audio_feats, _, use_whisper = audio
        if audio_feats is not None:
            use_whisper = self._choose_audio_encoder(audio_feats.shape[-1], use_whisper)
        for is_whisper, parts in AUDIO_PARTS.items():
            if audio_feats is not None and use_whisper == is_whisper:
                features["audio"] = self._audio_features(*audio)[0].pooler_output
            elif self._is_idle(*parts):
                idle.append(self._audio_features(*self._smallest_audio(is_whisper, device))[0].pooler_output)
        if hasattr(self, "talker") and must_have_gradients(self.talker, self.training):
            idle.append(self.talker(**self.talker.smallest_inputs(device)).logits)
        return features, idle

    def _is_idle(self, *parts: str) -> bool:
        """Whether one of these parts must be called though there is no input for it."""
        modules = [getattr(self, name) for name in parts if hasattr(self, name)]
        return any(must_be_called(module, self.training) for module in modules)

    def _smallest_image(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Arguments of `get_image_features` for one token."""
        vision, size = self.config.vision_config, self.config.vision_config.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, size, size]], device=device)
        return torch.zeros(size**2, width, device=device), grid

    def _smallest_audio(self, use_whisper: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Arguments of `get_audio_features` for one frame."""
        width = self.config.whisper_config.num_mel_bins if use_whisper else self.config.audio_config.input_size
        length = torch.ones(1, 1, dtype=torch.long, device=device)
        return torch.zeros(1, 1, width, device=device), length, use_whisper

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        audio_feats: torch.Tensor | None = None,
        audio_feats_lengths: torch.Tensor | None = None,
        audio_placeholder_loc_lens: torch.Tensor | None = None,
        use_whisper_encoder: bool | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        prompt_states: PromptStates | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BailingMoeOutputWithPast:
        """One pass over prompt or new tokens.

        Args:
            input_ids: [B, L]; or inputs_embeds [B, L, H], into which media are put where mm_token_type_ids say so.
            mm_token_type_ids: [B, L], see the module docstring.
            pixel_values, pixel_values_videos: [P, 1176] of all images (videos) of the batch in row order.
            image_sizes: [N, 2] height and width in pixels before resizing; read by nothing but drawing.
            image_grid_thw, video_grid_thw: [N, 3], frame pairs x height x width in patches.
            audio_feats, audio_feats_lengths: see `get_audio_features`.
            audio_placeholder_loc_lens: [B, N, 2], only read when mm_token_type_ids is missing.
            labels: [B, L] token standing at each position, -100 where not trained.
            prompt_states: gets the states that the talker is told, while the prompt is read.
        Returns:
            logits [B, L, vocab] float32, loss and router losses as in `BailingMoeForCausalLM`.
        """
        if not torch.compiler.is_compiling():
            given = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "position_ids": position_ids,
                "past_key_values": past_key_values,
                "inputs_embeds": inputs_embeds,
                "mm_token_type_ids": mm_token_type_ids,
                "pixel_values": pixel_values,
                "image_grid_thw": image_grid_thw,
                "pixel_values_videos": pixel_values_videos,
                "video_grid_thw": video_grid_thw,
                "audio_feats": audio_feats,
                "audio_feats_lengths": audio_feats_lengths,
                "audio_placeholder_loc_lens": audio_placeholder_loc_lens,
                "use_whisper_encoder": use_whisper_encoder,
                "labels": labels,
                "use_cache": use_cache,
                "output_router_logits": output_router_logits,
                "logits_to_keep": logits_to_keep,
                "prompt_states": prompt_states,
                **kwargs,
            }
            self._raise_if_unfit({name: value for name, value in given.items() if value is not None})
        if inputs_embeds is not None and mm_token_type_ids is not None:
            # Virtual tokens of prompt tuning stand in front of what the processor made; they are text.
            lacking = inputs_embeds.shape[1] - mm_token_type_ids.shape[1]
            mm_token_type_ids = F.pad(mm_token_type_ids, (max(lacking, 0), 0))
        has_media = any(media is not None for media in (pixel_values, pixel_values_videos, audio_feats))
        if inputs_embeds is None or has_media:
            inputs_embeds, mm_token_type_ids = self.embed(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                mm_token_type_ids=mm_token_type_ids,
                pixel_values=pixel_values,
                image_grid_thw=image_grid_thw,
                pixel_values_videos=pixel_values_videos,
                video_grid_thw=video_grid_thw,
                audio_feats=audio_feats,
                audio_feats_lengths=audio_feats_lengths,
                audio_placeholder_loc_lens=audio_placeholder_loc_lens,
                use_whisper_encoder=use_whisper_encoder,
            )
        outputs = self.model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            labels=labels,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )
        if prompt_states is not None:
            prompt_states.add(inputs_embeds, outputs.last_hidden_state)
        return outputs

    def _raise_if_unfit(self, inputs: dict[str, Any]) -> None:
        """Refuse arguments of `forward` that cannot be used; see `argument_checks`."""
        raise_if_no_settings(inputs)
        if "input_ids" not in inputs and "inputs_embeds" not in inputs:
            raise ValueError("the model needs input_ids or inputs_embeds, got neither")
        # The library's engine of continuous batching brings its own cache.
        step = continues(inputs.get("past_key_values")) or "cache" in inputs
        # Values are read once, with the prompt: at every step of decoding a GPU would have to be waited for.
        raise_if_unfit(inputs, self.config.llm_config, step, not step, self._on_meta)
        rows = len(inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"])
        raise_if_other_rows(inputs.get("past_key_values"), rows)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args,
        generation_mode: str | list[str] | None = None,
        talker_kwargs: dict | None = None,
        **kwargs,
    ) -> torch.Tensor | ModelOutput:
        """Answer: the library's `generate` with every option of it, over the processor's output.

        Media are encoded once, before decoding starts. Returned sequences [B, L + new] begin with the prompt.

        Args:
            inputs: [B, L] prompt ids, or pass `input_ids=`.
            generation_mode: "text" (default); "audio" returns a `SpeechOutput` with text and waveforms; "image" a
                `Drawing` of what the chat asks for; several of them in a list, an `OmniOutput`.
            speaker, prompt_audio, prompt_text, seed, generator: of the audio mode, see `speak`.
            height, width, num_inference_steps, guidance_scale, num_images_per_prompt, callback, progress, resize,
                seed, generator: of the image mode, see `ImageGen.draw`. Without a size, an image has the proportions
                of the last image of its chat. One seed draws the first image of every
                chat, the numbers after it its further ones. `image_gen=True` with `image_gen_seed` and so on, as
                released, returns the image itself, or a list of several.
            talker_kwargs: further options of `speak`; `top_k`, `temperature` and so on outside are the thinker's.
            compile: whether text and speech are decoded by compiled steps over static caches, see `compiled.py`, and
                images are drawn by compiled steps; a `CompileConfig` says how. The first call of a size waits for the
                compiler. None: `compile_decoding`.

        Raises:
            ValueError: an output mode this model does not have, or a prompt longer than its context; or `compile` with
                a model or an option that does not compile.
            FloatingPointError: NaN or infinite values; names the layer that they come from, see `finite.py`.
        """
        call = self._sort(inputs, generation_mode, talker_kwargs, by_name(args, kwargs))
        speech, drawing = self._resolve(call)
        if call.modes == ("image",):
            drawn = self.drawing.draw(call.text, drawing)
            if call.released:
                return drawn.images if len(drawn.images) > 1 else drawn.images[0]
            return drawn
        states = self._prompt_states(call) if speech is not None else None
        told = {"prompt_states": states} if speech is not None else {}
        reply = self._generate_text(compiled=call.compiled, **call.text, **told)
        if call.modes == ("text",):
            return reply
        sequences = reply if isinstance(reply, torch.Tensor) else reply.sequences
        said: dict[str, Any] = {"sequences": sequences}
        if speech is not None and states is not None:
            new_ids = sequences[:, call.text["input_ids"].shape[1] :]
            texts = self.components.tokenizer().batch_decode(new_ids, skip_special_tokens=True)
            said |= self.speech.say(texts, speech, states.of_replies(len(texts)))
            reply = SpeechOutput(**said)
        if drawing is None:
            return reply
        drawn = self.drawing.draw(call.text, drawing)
        return OmniOutput(**said, images=drawn.images, native_size=drawn.native_size)

    def chat(self, processor, system: str | None = None, **options) -> Chat:
        """A conversation that reads every turn once; see `Chat`."""
        return Chat(self, processor, system, **options)

    @torch.no_grad()
    def speak(
        self,
        text: str | list[str],
        speaker=None,
        prompt_audio=None,
        prompt_text: str | None = None,
        seed: int | list[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        thinker_states: list[torch.Tensor] | None = None,
        **talker_options,
    ) -> SpeechOutput:
        """Read text aloud.

        Args:
            text: one text or several, any length, Chinese and English.
            speaker: a preset voice by name or a `Voice`; None takes the first preset one.
            prompt_audio, prompt_text: clone the voice of a recording of at most 30 s, and what is said in it.
            seed, generator: see `row_generators`; the same seed gives the same waveform, alone or in a batch.
            thinker_states: [n, D] per text, what the thinker made of the chat that is answered.
            talker_options: `top_k`, `temperature`, `rules`, `attempts`, `cache_implementation`, `compile` of
                `BailingMMTalker.generate`.

        Raises:
            ValueError: no talker, unknown speaker, unusable recording, or an argument that does not fit the others.
            FloatingPointError: as `generate`.
        """
        raise_if_no_texts("text", text)
        texts = [text] if isinstance(text, str) else list(text)
        self.speech.raise_if_no_states(thinker_states, len(texts))
        voice = {"speaker": speaker, "prompt_audio": prompt_audio, "prompt_text": prompt_text}
        settings = self.speech.resolve(len(texts), seed, generator, **voice, **talker_options)
        return self.speech.say(texts, settings, thinker_states)

    def speak_stream(
        self, text: str, thinker_states: list[torch.Tensor] | None = None, **speech
    ) -> Iterator[StreamEvent]:
        """`speak` for one text, as `AudioChunk`s while it is being spoken, then `Done`. Arguments as in `speak`."""
        raise_if_no("text", text, TEXT)
        self.speech.raise_if_no_states(thinker_states, 1)
        return self.speech.stream(text, self.speech.resolve(1, **speech), (thinker_states or [None])[0])

    def stream(
        self,
        inputs: torch.Tensor | None = None,
        generation_mode: str | list[str] | None = None,
        talker_kwargs: dict | None = None,
        **kwargs,
    ) -> Iterator[StreamEvent]:
        """`generate` for one chat, as events, at last `Done`.

        They are `TextDelta`, in the audio mode also `AudioChunk`, in the image mode `ImageProgress` and `ImageDone`.
        Closing the iterator cancels the work. Arguments as in `generate`.

        Raises:
            ValueError: as in `generate`, or a batch of several chats.
        """
        call = self._sort(inputs, generation_mode, talker_kwargs, kwargs)
        if call.text.get("input_ids") is None:
            raise ValueError("stream needs input_ids (the processor's output)")
        if (rows := len(call.text["input_ids"])) != 1:
            raise ValueError(f"stream answers one chat at a time, got a batch of {rows}; use generate for batches")
        raise_if_outputs_lost(call.text)
        if call.modes != ("image",):
            raise_if_several(settings_of(self, call.text), "stream gives one reply as it grows; use generate")
            raise_if_custom(call.text, "stream gives a reply as it grows; use generate")
        speech, drawing = self._resolve(call)
        tokenizer = None if call.modes == ("image",) else self.components.tokenizer()

        def events() -> Iterator[StreamEvent]:
            done = Done("")
            if tokenizer is not None:
                done = yield from self._stream_reply(call, tokenizer, speech)
            if drawing is not None:
                yield from self.drawing.stream(call.text, drawing)
            yield done

        return events()

    def _stream_reply(self, call: GenerationArguments, tokenizer, speech: SpeechSettings | None):
        """The text and audio modes of `stream`: a thread decodes the text; returns the last event."""
        states = self._prompt_states(call) if speech is not None else None

        def work(own: BackgroundWork) -> None:
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            streamer.text_queue, streamer.stop_signal = own.items, ""  # `BackgroundWork` tells the end itself
            criteria = [*(call.text.get("stopping_criteria") or []), StopWhenSet(own.cancelled)]
            kwargs = {**call.text, "streamer": streamer, "stopping_criteria": StoppingCriteriaList(criteria)}
            told = {"prompt_states": states} if speech is not None else {}
            self._generate_text(compiled=call.compiled, **kwargs, **told)

        background = BackgroundWork(work)
        try:
            if speech is not None and states is not None:
                return (yield from self.speech.stream_reply(background, speech, states))
            text = ""
            for delta in background:
                text += delta
                if delta:
                    yield TextDelta(delta)
            return Done(text)
        finally:
            background.close()

    def _prompt_states(self, call: GenerationArguments) -> PromptStates:
        return PromptStates(call.text["input_ids"].shape[1], call.text.get("attention_mask"))

    def _resolve(self, call: GenerationArguments) -> tuple[SpeechSettings | None, dict[str, Any] | None]:
        """How a call speaks and draws; None where it does not. Generators are drawn from after all checks."""
        if call.modes != ("text",):
            raise_if_custom(call.text, "speech and images need the library's own generate; answer in text first")
            raise_if_unknown(self, call.text)
        if "image" in call.modes:
            self.drawing.raise_if_unfit(call.text, **call.image)
        speech = self.speech.resolve(call.num_rows(self), **call.speech) if "audio" in call.modes else None
        drawing = self.drawing.resolve(call.text, **call.image) if "image" in call.modes else None
        return speech, drawing

    def _sort(self, inputs, generation_mode, talker_kwargs, kwargs: dict[str, Any]) -> GenerationArguments:
        """The sorted arguments of a call whose prompt fits and comes with its media.

        Raises:
            ValueError: see `generate`.
        """
        modes, compiled = type(self).output_modalities, self.compile_decoding
        call = sort_arguments(modes, inputs, generation_mode, talker_kwargs, kwargs, compiled)
        if call.compiled and call.modes != ("image",):
            raise_if_not_compilable(self)
        if call.modes != ("text",):
            raise_if_outputs_lost(call.text)
        input_ids = call.text.get("input_ids")
        step = continues(call.text.get("past_key_values"))
        if "audio" in call.modes:
            raise_if_states_hidden(call.text.get("past_key_values"))
        text_config = self.config.llm_config
        raise_if_unfit(call.text, text_config, step, on_meta=self._on_meta)
        raise_if_rows_hidden(call.text.get("attention_mask"))
        raise_if_unanswerable(self, call.text, MEDIA_INPUTS, text_config.vocab_size)
        if (allowed := call.text.get("prefix_allowed_tokens_fn")) is not None:
            call.text["prefix_allowed_tokens_fn"] = only_tokens(allowed, text_config.vocab_size)
        if input_ids is not None:
            raise_if_too_long(input_ids.shape[1], self.config.llm_config.max_position_embeddings)
        read_before = ("mm_token_type_ids", "inputs_embeds", "past_key_values", *MEDIA_INPUTS)
        only_guesses = getattr(call.text.get("generation_config"), "is_assistant", False)
        if not only_guesses and all(call.text.get(name) is None for name in read_before):
            raise_if_media_missing(input_ids, self.config.image_token_id)
        return call

    def generate_batch(self, inputs: list[list[int]], *args, **kwargs):
        """The library's continuous batching: prompts as lists of ids, in text alone.

        Raises:
            ValueError: a prompt has places for media, which the library's engine does not take, or ids that are none.
        """
        for ids in inputs:  # before the engine, which only logs what goes wrong in it
            self._raise_if_no_text(ids)
        return super().generate_batch(inputs, *args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """The library's engine of continuous batching, for text alone: its requests are checked as they come."""
        return checks_requests(super().init_continuous_batching(*args, **kwargs), self._raise_if_no_text)

    def _raise_if_no_text(self, ids: list[int]) -> None:
        """Refuse a prompt that is not text alone, for the library's engine of continuous batching."""
        raise_if_no_token_ids("inputs", ids)
        prompt = {"inputs": torch.as_tensor(ids)}
        if prompt["inputs"].ndim != 1 or not len(prompt["inputs"]):
            raise ValueError(f"inputs={shown(ids)} must be prompts, each a list of at least one token id")
        raise_if_values_outside(prompt, {"inputs": self.config.get_text_config().vocab_size})
        raise_if_media_missing(prompt["inputs"], self.config.image_token_id, ENGINE_REMEDY)
        if self.components.source is not None:  # a model that was built from a configuration has no tokenizer
            audio_token_id = self.components.tokenizer().convert_tokens_to_ids("<audioPatch>")
            raise_if_media_missing(prompt["inputs"], audio_token_id, ENGINE_REMEDY, "audio")

    @torch.no_grad()
    def _generate_text(self, input_ids: torch.Tensor | None = None, compiled: bool | CompileConfig = False, **kwargs):
        """The library's `generate` with the media put into the prompt's embeddings."""
        if input_ids is not None:
            kwargs["input_ids"] = input_ids
        media = {name: kwargs.pop(name) for name in MEDIA_INPUTS if name in kwargs}
        given, token_types = kwargs.get("inputs_embeds"), kwargs.get("mm_token_type_ids")
        has_media = any(value is not None for value in media.values())
        if has_media or (given is None and input_ids is not None and token_types is not None):
            embeds, token_types = self.embed(input_ids, token_types, **media, inputs_embeds=given)
            kwargs.update(inputs_embeds=embeds, mm_token_type_ids=token_types)
        check = LogitsCheck()

        def read_again() -> None:
            embeds, types = self.embed(input_ids, token_types, **media, inputs_embeds=given)
            self._read_all(embeds, types, kwargs.get("attention_mask"), check.input_ids)

        with naming_layers({"": self}, read_again):
            try:
                arguments, config = check.added_to(kwargs), step_config(self.device, compiled)
                if config is None:
                    reply = super().generate(None, **arguments)
                else:
                    reply = generate_compiled(self, super().generate, config, arguments)
            except RuntimeError:  # PyTorch's words when it shall draw from probabilities that are NaN
                check.raise_if_not_finite()
                raise
            check.raise_if_not_finite()
        return reply

    def _read_all(
        self,
        embeds: torch.Tensor,
        token_types: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        input_ids: torch.Tensor | None,
    ) -> None:
        """Read prompts [B, L, H] and, where they are known, the replies behind them, in one pass without a cache.

        Args:
            attention_mask: [B, L]. input_ids: [B * replies, L + new].
        """
        length = embeds.shape[1]
        mask = embeds.new_ones(embeds.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
        if input_ids is not None and input_ids.shape[1] > length:
            repeats, num_new = len(input_ids) // len(embeds), input_ids.shape[1] - length
            new = self.get_input_embeddings()(input_ids[:, length:])
            embeds = torch.cat([embeds.repeat_interleave(repeats, dim=0), new.to(embeds.dtype)], dim=1)
            mask = F.pad(mask.repeat_interleave(repeats, dim=0), (0, num_new), value=1)
            if token_types is not None:
                token_types = F.pad(token_types.repeat_interleave(repeats, dim=0), (0, num_new))
        self(inputs_embeds=embeds, attention_mask=mask, mm_token_type_ids=token_types, use_cache=False)

    def get_compiled_call(self, compile_config: CompileConfig | None):
        """What the library's `generate` calls for each token but the first where it compiles."""
        return self.decoding.call(self, compile_config or step_config(self.device))

    def prepare_inputs_for_generation(
        self,
        input_ids,
        next_sequence_length=None,
        past_key_values=None,
        inputs_embeds=None,
        mm_token_type_ids=None,
        is_first_iteration=False,
        **kwargs,
    ):
        if is_first_iteration and mm_token_type_ids is not None and next_sequence_length is not None:
            mm_token_type_ids = mm_token_type_ids[:, -next_sequence_length:]  # transformers 5.16 does not
        span = prompt_span(
            input_ids, next_sequence_length, past_key_values, inputs_embeds, kwargs.get("attention_mask")
        )
        if span is not None:
            start, stop = span
            # The prompt, a chunk of it, or all of it and guesses after it (assisted decoding).
            input_ids = input_ids[:, start - stop :]
            if inputs_embeds is not None and start < inputs_embeds.shape[1]:
                is_first_iteration = True
                num_guesses = max(0, stop - inputs_embeds.shape[1])
                guesses = self.get_input_embeddings()(input_ids[:, input_ids.shape[1] - num_guesses :])
                inputs_embeds = torch.cat([inputs_embeds, guesses], dim=1)[:, start:stop]
                if mm_token_type_ids is not None:
                    mm_token_type_ids = F.pad(mm_token_type_ids, (0, num_guesses))[:, start:stop]
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if not is_first_iteration:
            # New tokens are text: without types the decoder skips the image and audio routers.
            model_inputs.pop("mm_token_type_ids", None)
            model_inputs.pop("prompt_states", None)
        return model_inputs


class BailingMMModel(BailingMMNativeForConditionalGeneration):
    """The thinker up to its last hidden states, as vLLM's Transformers backend builds it.

    That backend encodes every medium on its own, puts the features among the word embeddings, and hands the decoder
    the result alone. Features therefore carry their modality: see `BailingMoeMarkedModel`.
    """

    def __init__(self, config: BailingMMConfig):
        if not config.audio_config.norm_query_embeds:
            raise ValueError(
                "norm_query_embeds=False: features of audio are no unit vectors, and vLLM cannot tell their router; "
                "use generate or `ming serve`"
            )
        config = copy.copy(config)
        config.load_talker = False
        super().__init__(config)
        self.model = BailingMoeMarkedModel(config.llm_config)

    @property
    def language_model(self) -> BailingMoeMarkedModel:
        """The decoder, under the name by which vLLM looks for it."""
        return self.model

    def get_decoder(self, *args, **kwargs) -> BailingMoeMarkedModel:
        return self.model

    def get_output_embeddings(self) -> None:
        """There is no head."""

    def get_image_features(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **kwargs):
        outputs = super().get_image_features(pixel_values, image_grid_thw, return_dict=True)
        outputs.pooler_output = tuple(features * IMAGE_MARK for features in outputs.pooler_output)
        return outputs

    def get_audio_features(self, input_features: torch.Tensor, audio_feats_lengths: torch.Tensor, **kwargs):
        """input_features [N, T, D], a recording in each row; audio_feats_lengths [N, 1]."""
        outputs = super().get_audio_features(input_features, audio_feats_lengths, return_dict=True)
        outputs.pooler_output = torch.cat(outputs.pooler_output) * AUDIO_MARK
        return outputs

    def forward(self, **kwargs):
        """The decoder alone: vLLM has put the media into inputs_embeds."""
        return self.model(**kwargs)


def put_features(
    embeds: torch.Tensor, is_placeholder: torch.Tensor, features: torch.Tensor | None, name: str
) -> torch.Tensor:
    """Put the features [tokens, H] of a modality at its placeholders [B, L] of the embeddings [B, L, H].

    Raises:
        ValueError: there are not as many features as placeholders. Tracing and compiling leave the comparison out: it
            reads numbers back from the device.
    """
    if not torch.compiler.is_compiling():
        num_placeholders, num_features = int(is_placeholder.sum()), 0 if features is None else features.shape[0]
        if num_placeholders != num_features:
            raise ValueError(
                f"the prompt has {num_placeholders} {name} tokens but {num_features} {name} features were given; "
                "build the prompt and the features in one processor call"
            )
    if features is None:
        return embeds
    return embeds.masked_scatter(is_placeholder[..., None], features.to(embeds.device, embeds.dtype))


__all__ = ["BailingMMNativeForConditionalGeneration", "BailingMMPreTrainedModel", "OmniOutput"]
