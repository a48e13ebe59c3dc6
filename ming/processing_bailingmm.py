"""Processor: conversations, images, videos and audio -> the tensors that the model takes.

Letters: B prompts, L tokens (padded), N recordings of a prompt, P patches of 14 x 14 pixels, T frames.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import SizeDict
from transformers.processing_utils import MultiModalData, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from .argument_checks import InputError, raise_if_no_number, raise_if_no_settings, raise_if_no_token_ids, shown
from .audio_features import BailingMMFeatureExtractor, is_recording
from .compat import keeps_auto_map, resolve_chat_template
from .files import finish_saving, saving
from .media import (
    has_audio_track,
    load_image,
    load_video_audio,
    pixel_limits,
    raise_if_limits_cross,
    resize_image,
    smart_resize,
)
from .messages import (
    IMAGE_ITEM_KEYS,
    ROLES,
    MediaItem,
    Message,
    add_audio_tracks,
    literal_pattern,
    parse_conversation,
    split_batch,
    template_messages,
    unmark_literals,
)
from .source import CODE, CheckpointSource, pushed_to_hub
from .token_types import AUDIO_TYPE, IMAGE_TYPE, TEXT_TYPE, VIDEO_TYPE
from .video import (
    VIDEO_MAX_PIXELS,
    VIDEO_MIN_PIXELS,
    VIDEO_TOTAL_PIXELS,
    VideoOptions,
    frame_size,
    is_video,
    load_video,
)

IMAGE_PATCH, AUDIO_PATCH = "<imagePatch>", "<audioPatch>"
# Placeholder of a medium in a prompt -> (patch token, end token, text behind it, token type).
PLACEHOLDERS = {
    "<image>": (IMAGE_PATCH, "</image>", "\n", IMAGE_TYPE),
    "<video>": (IMAGE_PATCH, "</video>", "\n", VIDEO_TYPE),
    "<audio>": (AUDIO_PATCH, "</audio>", "", AUDIO_TYPE),
}
MODEL_INPUT_NAMES = (
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "pixel_values",
    "image_grid_thw",
    "image_sizes",
    "pixel_values_videos",
    "video_grid_thw",
    "audio_feats",
    "audio_feats_lengths",
    "audio_placeholder_loc_lens",
)
OUTPUT_FIELDS = {"text": "sequences", "audio": "waveforms", "image": "images"}


# Options of the image processor that a call may set; the first five hold for the frames of videos, too.
PIXEL_OPTIONS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
IMAGE_OPTIONS = (*PIXEL_OPTIONS, "do_resize", "size", "resample", "do_convert_rgb")
# Options of the library's processors that change nothing here, with the values for which that is true.
NEUTRAL_OPTIONS: dict[str, tuple] = {
    "add_special_tokens": (None, True, False),  # prompts hold all of them
    "sanitize_control_tokens": (None, True, False),  # messages cannot write any
    "verbose": (None, True, False),
    "return_token_type_ids": (None, False),
    "return_special_tokens_mask": (None, False),
    "return_overflowing_tokens": (None, False),
    "return_offsets_mapping": (None, False),
    "return_length": (None, False),
    "is_split_into_words": (None, False),
    "stride": (None, 0),
    "return_metadata": (None, False),
    "video_metadata": (None,),
    "device": (None, "cpu"),
}
# Variables of chat templates of other models, with the values for which it does not matter that ours has none.
NEUTRAL_VARIABLES: dict[str, tuple] = {"enable_thinking": (None, False), "documents": (None, [])}
OPTION_GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")
REPLY_HEADER = "<role>ASSISTANT</role>"
TOKENIZER_OPTIONS = ("padding", "max_length", "truncation", "pad_to_multiple_of")  # of its own loading, kept by it
PADDING = {"longest": True, "do_not_pad": False}
TRUNCATION = {"longest_first": True, "only_first": True, "do_not_truncate": False}
PADDED_VOCABULARY = 1024  # vocabularies of models are rounded up to a multiple of this, or of a divisor of it
MAX_PADDED_POSITIONS = 1 << 24  # rows times positions of a batch


@dataclass(frozen=True)
class CallOptions:
    """Options of `BailingMMProcessor.__call__`; unknown ones are errors.

    Not transformers' `ProcessingKwargs`, which lets unknown options pass with a warning, so that a misspelt option
    would go unnoticed.

    Attributes:
        return_tensors: `"pt"`, `"np"`, None for lists (media as arrays), or `"auto"`, the default of the library:
            token ids as lists, media as tensors.
        padding: True or `"longest"`, `"max_length"`, or False or `"do_not_pad"`. Default: what the tokenizer was
            loaded with, or else True where tensors are returned, and False where lists are.
        padding_side: `"left"` (what generation needs) or `"right"`.
        pad_to_multiple_of: round the padded length up.
        max_length: longest prompt in tokens; the default is the tokenizer's `model_max_length`. A longer prompt is an
            error without `truncation`.
        truncation: cut longer prompts, on the tokenizer's `truncation_side`; an error where that would cut media.
        use_whisper_encoder: audio features for the Whisper encoder instead of the SANM one.
        sampling_rate: Hz, of audio arrays that come without a rate.
        min_pixels, max_pixels: limits of an image instead of the image processor's.
        return_assistant_tokens_mask: adds `assistant_masks` [B, L], 1 on the tokens of replies.
        return_mm_token_type_ids, return_attention_mask: False leaves out `mm_token_type_ids`, `attention_mask`.
        return_text_replacement_offsets: for vLLM: adds `text_replacement_offsets`, what the placeholders of each
            prompt become, and gives recordings one a row, as `input_features`.
        videos_kwargs: default `VideoOptions` of videos.
        fps, num_frames: the library's names of `videos_kwargs["fps"]` and `["max_frames"]`, which take precedence.
        do_sample_frames: False takes every frame of a video.
        images_kwargs: options of the image processor (`IMAGE_OPTIONS`).
        pixels_kwargs: those of them that hold for videos, too (`PIXEL_OPTIONS`).
    """

    return_tensors: str | None = "auto"
    padding: bool | str | None = None
    padding_side: str = "left"
    pad_to_multiple_of: int | None = None
    max_length: int | None = None
    truncation: bool | str | None = None
    use_whisper_encoder: bool = False
    sampling_rate: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    return_assistant_tokens_mask: bool = False
    return_mm_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_text_replacement_offsets: bool = False
    videos_kwargs: dict = field(default_factory=dict)
    fps: float | None = None
    num_frames: int | None = None
    do_sample_frames: bool | None = None
    images_kwargs: dict = field(default_factory=dict)
    pixels_kwargs: dict = field(default_factory=dict)

    @classmethod
    def merge(cls, kwargs: Mapping, defaults: Mapping | None = None) -> "CallOptions":
        """Options from flat keywords and the nested `text_kwargs`, `images_kwargs`, `audio_kwargs`, `common_kwargs`.

        Args:
            kwargs: of the call.
            defaults: `TOKENIZER_OPTIONS` that the tokenizer was loaded with; options of the call go before them.

        Raises:
            TypeError: an unknown option.
            ValueError: a value that is not accepted, or an option that is given twice.
        """
        merged = dict(kwargs)
        raise_if_no_settings({name: merged.get(name) for name in OPTION_GROUPS})
        _raise_if_given_twice(merged)
        of_images = dict(merged.pop("images_kwargs", None) or {})
        for group in ("common_kwargs", "text_kwargs", "audio_kwargs"):
            merged.update(merged.pop(group, None) or {})
        pixels = {name: merged[name] for name in PIXEL_OPTIONS if name in merged}
        flat = {name: merged.pop(name) for name in IMAGE_OPTIONS if name in merged}
        images = {**flat, **{name: of_images.pop(name) for name in IMAGE_OPTIONS if name in of_images}}
        raise_if_no_settings(images)
        merged = {**merged, **of_images}
        for name in NEUTRAL_OPTIONS.keys() & merged.keys():
            _raise_if_not_one_of(name, merged.pop(name), NEUTRAL_OPTIONS[name])
        unknown = sorted(set(merged) - set(cls.__dataclass_fields__))
        if unknown:
            raise TypeError(
                f"unknown processor option {', '.join(unknown)}; accepted are {', '.join(cls.__dataclass_fields__)}"
            )
        given = {name: value for name, value in merged.items() if value is not None or name == "return_tensors"}
        return cls(**{**(defaults or {}), **given, "images_kwargs": images, "pixels_kwargs": pixels})

    def __post_init__(self):
        choices = {
            "return_tensors": ("pt", "np", None, "auto"),
            "padding": (None, True, False, "max_length", *PADDING),
            "padding_side": ("left", "right"),
            "truncation": (None, True, False, *TRUNCATION),
            "use_whisper_encoder": (True, False),
            "return_assistant_tokens_mask": (True, False),
            "return_mm_token_type_ids": (None, True, False),
            "return_attention_mask": (None, True, False),
            "return_text_replacement_offsets": (True, False),
            "do_sample_frames": (None, True, False),
        }
        for name, accepted in choices.items():
            _raise_if_not_one_of(name, getattr(self, name), accepted)
        for name, least in (("max_length", 0), ("pad_to_multiple_of", 0), ("num_frames", 1)):
            if getattr(self, name) is not None:
                raise_if_no_number(name, getattr(self, name), whole=True, at_least=least)
        for name in ("min_pixels", "max_pixels"):
            if getattr(self, name) is not None:
                raise_if_no_number(name, getattr(self, name))
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}; lower it")
        if self.padding == "max_length" and self.max_length is None:
            raise ValueError("padding='max_length' needs max_length=<tokens>")

    @property
    def pads(self) -> bool:
        """Whether rows are padded, to the longest of them at least."""
        if self.padding is None:
            return self.return_tensors in ("pt", "np")
        return PADDING.get(self.padding, True) if isinstance(self.padding, str) else bool(self.padding)

    @property
    def truncates(self) -> bool:
        """Whether rows beyond the limit are cut."""
        return TRUNCATION[self.truncation] if isinstance(self.truncation, str) else bool(self.truncation)

    def image_limits(self) -> dict[str, int]:
        """`min_pixels` and `max_pixels`, where they are given."""
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return {name: value for name, value in limits.items() if value is not None}

    def video_options(self) -> dict[str, Any]:
        """Options of `VideoOptions` that hold for all videos of the call."""
        own = {
            "max_frames": self.num_frames,
            "fps": self.fps,
            "sample": "all" if self.do_sample_frames is False else None,
        }
        nested = dict(self.videos_kwargs)
        for name in NEUTRAL_OPTIONS.keys() & nested.keys():
            _raise_if_not_one_of(name, nested.pop(name), NEUTRAL_OPTIONS[name])
        if (count := nested.pop("num_frames", None)) is not None:
            nested.setdefault("max_frames", count)
        if (samples := nested.pop("do_sample_frames", None)) is not None:
            _raise_if_not_one_of("do_sample_frames", samples, (True, False))
            nested.setdefault("sample", "sequence" if samples else "all")
        if unknown := sorted(nested.keys() - VideoOptions.names()):
            raise TypeError(
                f"unknown video option {', '.join(unknown)}; accepted are {', '.join(sorted(VideoOptions.names()))}"
            )
        return {name: value for name, value in {**own, **nested}.items() if value is not None}


def _raise_if_no_size(size: Mapping) -> None:
    """Refuse limits of an image under names that nothing reads, such as height and width."""
    known = ("shortest_edge", "longest_edge")
    if unknown := sorted(str(key) for key, value in size.items() if key not in known and value is not None):
        raise ValueError(
            f"size has no {', '.join(unknown)} here; it takes shortest_edge and longest_edge, the least and "
            "the most pixels of an image, like min_pixels and max_pixels"
        )


def _raise_if_not_one_of(name: str, value: Any, accepted: tuple) -> None:
    """Refuse a value that is not one of those; arrays and the like have no truth value to compare by."""
    plain = value is None or isinstance(value, (bool, int, str, list, np.bool_))
    if not plain or value not in accepted:
        raise ValueError(f"{name}={shown(value)} is not accepted; use one of {accepted}")


def _raise_if_given_twice(kwargs: Mapping) -> None:
    """Refuse an option that stands in the call and in one of its groups; `common_kwargs` may repeat a value."""
    for group in OPTION_GROUPS:
        nested = kwargs.get(group) or {}
        for name in sorted(nested.keys() & kwargs.keys()):
            if group != "common_kwargs" or nested[name] != kwargs[name]:
                raise ValueError(
                    f"{name} is given twice, as {kwargs[name]!r} and in {group} as {nested[name]!r}; give it once"
                )


def _parse(conversation: Any, load_audio_from_video: bool) -> list[Message]:
    raise_if_no_settings({"load_audio_from_video": load_audio_from_video})
    chat = parse_conversation(conversation)
    return add_audio_tracks(chat, has_audio_track) if load_audio_from_video else chat


def _raise_if_without_replies(options: CallOptions, prompts: list[str], chats: list[list[Message]]) -> None:
    """Refuse prompts in which the replies of their chats cannot be found, if a mask of them is wanted."""
    for prompt, chat in zip(prompts, chats, strict=True) if options.return_assistant_tokens_mask else ():
        if any(message.role == "ASSISTANT" for message in chat) and REPLY_HEADER not in prompt:
            raise ValueError(
                f"return_assistant_tokens_mask=True finds replies by their header {REPLY_HEADER}, which this "
                "chat_template does not write; use the processor's own template"
            )


@dataclass
class PromptRow:
    """Tokens of one expanded prompt; `audio_spans` are (start, length) of its runs of audio patches."""

    ids: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    audio_spans: list[tuple[int, int]] = field(default_factory=list)
    reply_mask: list[int] = field(default_factory=list)

    def add(self, ids: list[int], token_type: int, reply: bool) -> None:
        self.ids += ids
        self.types += [token_type] * len(ids)
        self.reply_mask += [int(reply)] * len(ids)


class BailingMMImageProcessor(Qwen2VLImageProcessorPil):
    """The library's image processor, which takes limits in the wrong order for one of them; saved under its name.

    Raises:
        ValueError: `min_pixels` is above `max_pixels` (`shortest_edge` above `longest_edge` of `size`), in the
            configuration or in a call.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.raise_if_unfit(self.size)

    @staticmethod
    def raise_if_unfit(size: Mapping[str, int] | SizeDict) -> None:
        """Refuse limits in the wrong order; a size that lacks one is refused by the library."""
        low, high = size["shortest_edge"], size["longest_edge"]
        if low is not None and high is not None:
            raise_if_limits_cross(low, high)

    def to_dict(self) -> dict[str, Any]:
        name = Qwen2VLImageProcessorPil().to_dict()["image_processor_type"]
        return {**super().to_dict(), "image_processor_type": name}

    def resize(self, image: np.ndarray, size: SizeDict, *args, **kwargs) -> np.ndarray:
        """Library method, with limits that were checked."""
        self.raise_if_unfit(size)
        return super().resize(image, size, *args, **kwargs)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict | None = None) -> int:
        """Library method, with limits that were checked."""
        given = images_kwargs or {}
        low, high = given.get("min_pixels", self.size["shortest_edge"]), self.size["longest_edge"]
        raise_if_limits_cross(low, given.get("max_pixels", high))
        return super().get_number_of_image_patches(height, width, images_kwargs)


@keeps_auto_map
class BailingMMProcessor(ProcessorMixin):
    """Chat template, media loading, placeholders, batching and decoding.

    A prompt carries one `<image>`, `<video>` or `<audio>` for each medium. Calling the processor expands them:
    `<image>` + n `<imagePatch>` + `</image>` + newline (videos alike, with the same patch token), `<audio>` +
    n `<audioPatch>` + `</audio>`. `image_token` and its like are the placeholders of a prompt, `image_token_id` and
    its like the ids of the patch tokens they expand to.

    Args:
        image_processor: a `Qwen2VLImageProcessorPil`; `from_pretrained` makes a `BailingMMImageProcessor`.
        feature_extractor: a `BailingMMFeatureExtractor`.
        tokenizer: a tokenizer with the released special tokens.
        chat_template: jinja source, normally from `chat_template.jinja`.
        resize_on_fetch: True resizes images and frames of messages before the image processor does it again, as the
            released code does; False leaves the one resize of the image processor.
        video_min_pixels, video_max_pixels: limits of a video frame.
        video_total_pixels: limit of all frame pairs of a video together.
    """

    def __init__(
        self,
        image_processor=None,
        feature_extractor=None,
        tokenizer=None,
        chat_template: str | None = None,
        resize_on_fetch: bool = True,
        video_min_pixels: int = VIDEO_MIN_PIXELS,
        video_max_pixels: int = VIDEO_MAX_PIXELS,
        video_total_pixels: int = VIDEO_TOTAL_PIXELS,
    ):
        super().__init__(image_processor, feature_extractor, tokenizer, chat_template=chat_template)
        raise_if_limits_cross(video_min_pixels, video_max_pixels, "video_")
        self.source: CheckpointSource | None = None
        self.resize_on_fetch = resize_on_fetch
        self.video_min_pixels = video_min_pixels
        self.video_max_pixels = video_max_pixels
        self.video_total_pixels = video_total_pixels
        self.image_token, self.video_token, self.audio_token = PLACEHOLDERS
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (IMAGE_PATCH, AUDIO_PATCH, *PLACEHOLDERS)}
        missing = [token for token, index in ids.items() if index is None or index == tokenizer.unk_token_id]
        if missing:
            raise ValueError(f"the tokenizer lacks the special tokens {', '.join(missing)}; use the released one's")
        self.image_token_id = self.video_token_id = ids[IMAGE_PATCH]
        self.audio_token_id = ids[AUDIO_PATCH]
        self.gen_terminator = [tokenizer.eos_token_id]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "BailingMMProcessor":
        """Library `from_pretrained`; the source is kept, since saving copies code from it."""
        source = CheckpointSource.of_call(pretrained_model_name_or_path, kwargs)
        if source is not None:
            finish_saving(source.name, source.subfolder)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor.source = source
        return processor

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict[str, Any], **kwargs):
        """Library method; `auto_map` of the file is kept, since saving writes it again."""
        result = super().from_args_and_dict(args, processor_dict, **kwargs)
        processor = result[0] if isinstance(result, tuple) else result
        if "auto_map" in processor_dict:
            processor.auto_map = processor_dict["auto_map"]
        return result

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> list[str]:
        """Library `save_pretrained` with the code that `auto_map` names; all files, or none, take their places."""
        with pushed_to_hub(save_directory, push_to_hub, kwargs), saving(save_directory) as folder:
            files = super().save_pretrained(folder, **kwargs)
            if self.source is not None:
                self.source.copy(CODE, folder, "code")
        return [os.path.join(save_directory, os.path.relpath(file, folder)) for file in files]

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        # The library would load the feature extractor as remote code: a second copy of the class imported here.
        parts = (BailingMMImageProcessor, BailingMMFeatureExtractor, PreTrainedTokenizerFast)
        return [part.from_pretrained(pretrained_model_name_or_path, **kwargs) for part in parts]

    @property
    def model_input_names(self) -> list[str]:
        """Keys that a call may return."""
        return list(MODEL_INPUT_NAMES)

    @functools.cached_property
    def _literals(self) -> re.Pattern:
        return literal_pattern(str(token) for token in self.tokenizer.added_tokens_decoder.values())

    @functools.cached_property
    def _controls(self) -> re.Pattern:
        tokens = sorted(map(str, self.tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, tokens)) + ")")

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "auto",
        system_template: str | None = None,
        load_audio_from_video: bool = False,
        processor_kwargs: Mapping | None = None,
        tools: list | None = None,
        **kwargs,
    ) -> str | list[str] | BatchFeature | torch.Tensor | list[list[int]]:
        """Render a conversation, or a batch of them, as prompts; with `tokenize=True` load its media and encode it.

        Control tokens written in a message stay text: in the returned prompt a private-use character separates the
        first character of such a token from the rest, and calling the processor removes it again.

        Args:
            conversation: list of messages (or a list of such lists). Roles: HUMAN or user, ASSISTANT or assistant,
                SYSTEM or system. Content: a string, or a list of items of type text, image, image_url, video,
                video_url, audio, audio_url, input_audio with their medium under the type's name, `url`, `path` or
                `base64`; image and audio items may hold a list.
            chat_template: jinja source instead of the processor's own; it gets the roles as they are written.
            add_generation_prompt: end with the assistant's header. Default: unless the assistant spoke last.
            continue_final_message: leave the last assistant message open; there is no generation prompt then.
            tokenize: return ids (or everything, with `return_dict`) instead of prompts.
            return_tensors: see `CallOptions`; the default gives lists of ids without padding, as the library does.
            system_template: text instead of the first human header.
            load_audio_from_video: put the audio track of each video behind it, where the video has one.
            processor_kwargs, **kwargs: options of `__call__`, for `tokenize`; others are variables of the template.
            tools: must be empty: the library passes the argument, but the model calls no tools.

        Raises:
            ValueError: unknown role or content type, an item without its medium, unreadable media, an option given
                twice, or a mask of replies asked of a template that does not write their headers.
            TypeError: a keyword that is neither an option nor a variable of the template.
        """
        ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        output = {"tokenize": tokenize, "return_dict": return_dict, "load_audio_from_video": load_audio_from_video}
        texts = {"chat_template": chat_template, "system_template": system_template}
        _raise_if_unusable({**ends, **output, **texts, "tools": tools, "processor_kwargs": processor_kwargs})
        conversations, batched = split_batch(conversation)
        template = resolve_chat_template(self, chat_template)
        variables = {name: kwargs.pop(name) for name in list(kwargs) if _is_variable(name, kwargs[name], template)}
        tensors = {} if return_tensors == "auto" else {"return_tensors": return_tensors}
        call_kwargs = {**(processor_kwargs or {}), **kwargs, **tensors}
        options = self._call_options(call_kwargs)
        chats = [_parse(chat, load_audio_from_video) for chat in conversations]
        variables |= {"system_template": system_template, "prefill": continue_final_message}
        rendered = [template_messages(chat, self._literals, chat_template is not None) for chat in chats]
        prompts = [self._render(chat, template, add_generation_prompt, variables) for chat in rendered]
        _raise_if_without_replies(options, prompts, chats)
        if not tokenize:
            return prompts if batched else prompts[0]
        inputs = self(prompts, *self._load_media(chats, options), **call_kwargs)
        return inputs if return_dict else inputs["input_ids"]

    def _render(self, chat: list[dict], template: str, add_generation_prompt: bool | None, variables: dict) -> str:
        """Messages in the form of `template_messages` -> prompt."""
        if variables["prefill"]:
            if add_generation_prompt:
                raise ValueError(
                    "add_generation_prompt=True and continue_final_message=True exclude each other: a reply is begun, "
                    "or the last one goes on. Leave one of them out"
                )
            add_generation_prompt = False
        if add_generation_prompt is None:
            add_generation_prompt = not chat or ROLES[chat[-1]["role"]] != "ASSISTANT"
        try:
            rendered, _ = render_jinja_template(
                conversations=[chat], chat_template=template, add_generation_prompt=add_generation_prompt, **variables
            )
        except TemplateError as error:
            raise ValueError(f"the chat template cannot be rendered: {error}; correct chat_template") from error
        return rendered[0]

    def _call_options(self, kwargs: Mapping) -> CallOptions:
        """Options of a call, with those that the tokenizer was loaded with as defaults."""
        loaded = self.tokenizer.init_kwargs
        return CallOptions.merge(
            kwargs, {name: loaded[name] for name in TOKENIZER_OPTIONS if loaded.get(name) is not None}
        )

    def process_vision_info(
        self, messages: Any, load_audio_from_video: bool = False, **kwargs
    ) -> tuple[list | None, list | None, list | None]:
        """Load all media of a conversation, or of a batch of them, in their order.

        Args:
            messages: as `apply_chat_template` takes them.
            load_audio_from_video: load the audio track of each video, too, where it has one.
            **kwargs: see `CallOptions`.

        Returns:
            images: RGB PIL images; videos: uint8 tensors [T, 3, H, W]; audios: pairs (float32 [1, samples], rate in
            Hz). Each is None where there are none.

        Raises:
            ValueError: unknown role or content type, an item without its medium, unreadable media.
        """
        chats = [_parse(chat, load_audio_from_video) for chat in split_batch(messages)[0]]
        return self._load_media(chats, self._call_options(kwargs))

    def _load_media(
        self, chats: list[list[Message]], options: CallOptions
    ) -> tuple[list | None, list | None, list | None]:
        images: list = []
        videos: list = []
        audios: list = []
        video: MediaItem | None = None
        items = [item for chat in chats for message in chat for item in message.content if isinstance(item, MediaItem)]
        for item in items:
            if item.modality == "image":
                images += [self._fetch_image(source, item.item, options) for source in item.sources]
            elif item.modality == "video":
                video = item
                videos += [load_video(item.sources[0], self._video_options(item.item, options, self.resize_on_fetch))]
            else:
                audios += self._load_audio_item(item, video, options)
        return images or None, videos or None, audios or None

    def _load_audio_item(
        self, item: MediaItem, video: MediaItem | None, options: CallOptions
    ) -> list[tuple[torch.Tensor, int]]:
        """The recordings of an audio item; one without sources stands for the audio track of the last `video`."""
        extractor = self.feature_extractor
        if item.sources:
            return [extractor.read(source, options.sampling_rate) for source in item.sources]
        assert video is not None, "an audio item without sources follows a video, or parsing refuses it"
        part = self._video_options(video.item, options, self.resize_on_fetch)
        limit = extractor.longest_seconds + 1.0
        return [load_video_audio(video.sources[0], part.video_start, part.video_end, extractor.mono, limit)]

    def _fetch_image(self, source: Any, item: Mapping, options: CallOptions):
        image = load_image(source)
        limits = vars(options) if self.resize_on_fetch else {}
        found = {key: limits.get(key) if item.get(key) is None else item[key] for key in IMAGE_ITEM_KEYS}
        wanted: dict[str, int] = {key: value for key, value in found.items() if value is not None}
        return resize_image(image, **wanted) if wanted or self.resize_on_fetch else image

    def _video_options(self, item: Mapping, options: CallOptions, resize: bool) -> VideoOptions:
        defaults: dict[str, float] = {
            "min_pixels": self.video_min_pixels,
            "frame_max_pixels": self.video_max_pixels,
            "total_pixels": self.video_total_pixels,
        }
        chosen = {key: item[key] for key in VideoOptions.names() if item.get(key) is not None}
        chosen = {**options.video_options(), **chosen}
        sized = any(key in chosen for key in (*IMAGE_ITEM_KEYS, "total_pixels"))
        if "max_pixels" in chosen and "min_pixels" not in chosen:
            # A default gives way to the limit that was asked for.
            defaults["min_pixels"], _ = pixel_limits(None, chosen["max_pixels"], self.video_min_pixels, math.inf)
        return VideoOptions(**{**defaults, "resize": resize or sized, **chosen})

    def __call__(
        self,
        text: str | list[str] | None = None,
        images: Any = None,
        videos: Any = None,
        audios: Any = None,
        audio: Any = None,
        **kwargs,
    ) -> BatchFeature:
        """Encode prompts and their media.

        Args:
            text: one prompt or a list of B prompts, as `apply_chat_template` returns them. Control tokens in a prompt
                written by hand count as such.
            images: images in the order of their `<image>` placeholders, or a list of them for each prompt.
            videos: videos in the order of their placeholders; each a file, an array, a tensor or a list of frames.
            audios, audio: recordings in the order of their placeholders, or a list of them for each prompt.
            **kwargs: see `CallOptions`.

        Returns:
            `input_ids`, `attention_mask`, `mm_token_type_ids` (0 text, 1 image, 2 video, 3 audio patches) int64
            [B, L], or lists of lists without `return_tensors`; for images `pixel_values` float32 [P, 1176] and
            `image_grid_thw` int64 [images, 3] and `image_sizes` int64 [images, 2], height and width in pixels before
            resizing; for videos `pixel_values_videos` and `video_grid_thw` alike; for audio `audio_feats` float32
            [B, frames, D], `audio_feats_lengths` int64 [B, N] and `audio_placeholder_loc_lens` int64 [B, N, 2],
            (start, length) of each run of patches in the padded row (length 0 ends a row).

        Raises:
            ValueError: placeholders and media do not match in number, a prompt is too long, media cannot be read.
            TypeError: an unknown option.
        """
        options = self._call_options(kwargs)
        if audio is not None and audios is not None:
            raise ValueError("audios and audio are two names of one argument; give one of them")
        audios = audio if audios is None else audios
        parts = [self._controls.split(prompt) for prompt in _as_prompts(text)]
        images = _media_of_prompts("image", images, parts, lambda value: not isinstance(value, (list, tuple)))
        videos = _media_of_prompts("video", videos, parts, is_video)
        audios = _media_of_prompts("audio", audios, parts, is_recording)
        data: dict[str, Any] = {}
        counts: dict[str, list[int]] = {}
        if any(images):
            inputs, counts["<image>"] = self._encode_images([image for row in images for image in row], options)
            data.update(inputs)
        if any(videos):
            inputs, counts["<video>"] = self._encode_videos([video for row in videos for video in row], options)
            data.update(inputs)
        if any(audios):
            features = self.feature_extractor(audios, options.sampling_rate, options.use_whisper_encoder)
            lengths = features.pop("encoder_feats_lengths")
            counts["<audio>"] = lengths[lengths > 0].tolist()
            data.update(features)
        rows = self._expand(parts, {tag: iter(values) for tag, values in counts.items()})
        if not options.return_text_replacement_offsets:
            return self._collate(rows, data, options)
        batch = self._collate(rows, _single_media(data), options)
        batch["text_replacement_offsets"] = _replacements(parts, counts)
        return batch

    @property
    def video_processor(self) -> SimpleNamespace:
        """What vLLM asks of a video processor; frames are chosen and cut into patches here."""
        return SimpleNamespace(
            temporal_patch_size=self.image_processor.temporal_patch_size,
            size={"longest_edge": self.video_max_pixels},
            model_input_names=["pixel_values_videos", "video_grid_thw"],
        )

    def _encode_images(self, sources: list, options: CallOptions) -> tuple[dict, list[int]]:
        """-> (pixel_values, image_grid_thw, image_sizes), and the number of patch tokens of each image."""
        images = [load_image(source) for source in sources]
        settings = dict(options.images_kwargs)
        asked = settings.pop("size", None) or {}
        _raise_if_no_size(asked)
        size = {**dict(self.image_processor.size), **asked}
        limits = options.image_limits()
        low, high = pixel_limits(
            limits.get("min_pixels"), limits.get("max_pixels"), size["shortest_edge"], size["longest_edge"]
        )
        for image in images:
            smart_resize(image.height, image.width, min_pixels=low, max_pixels=high)  # refuses what cannot be encoded
        resizes = settings.get("do_resize")
        if not (self.image_processor.do_resize if resizes is None else resizes):
            self._raise_if_in_pieces(images)
        size = {**size, "shortest_edge": low, "longest_edge": high}
        inputs = dict(self.image_processor(images, size=size, return_tensors="pt", **settings))
        inputs["image_sizes"] = torch.tensor([[image.height, image.width] for image in images])
        return inputs, (inputs["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist()

    def _raise_if_in_pieces(self, images: list[Image.Image]) -> None:
        """Refuse images that are no whole number of patches, where nothing resizes them."""
        side = self.image_processor.patch_size * self.image_processor.merge_size
        for image in images:
            if image.height % side or image.width % side:
                raise ValueError(
                    f"do_resize=False: an image of {image.height} x {image.width} pixels (height x width) is no whole "
                    f"number of patches; make both sides multiples of {side}, or leave do_resize out"
                )

    def _encode_videos(self, sources: list, options: CallOptions) -> tuple[dict, list[int]]:
        """-> (pixel_values_videos, video_grid_thw), and the number of patch tokens of each video."""
        patches, grids = [], []
        for source in sources:
            frames = load_video(source, self._video_options({}, options, False))
            rows, grid = self._patch_video(frames, options.pixels_kwargs)
            patches.append(rows)
            grids.append(grid)
        grid_thw = torch.tensor(grids)
        inputs = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": grid_thw}
        return inputs, (grid_thw.prod(-1) // self.image_processor.merge_size**2).tolist()

    def _video_size(self, count: int, height: int, width: int) -> tuple[int, int]:
        """Size in pixels at which the model sees the frames of a video."""
        options = VideoOptions(
            min_pixels=self.video_min_pixels,
            frame_max_pixels=self.video_max_pixels,
            # Fetching has kept a video within its total already.
            total_pixels=math.inf if self.resize_on_fetch else self.video_total_pixels,
        )
        return frame_size(height, width, count, options)

    def _patch_video(self, frames: torch.Tensor, settings: Mapping) -> tuple[torch.Tensor, list[int]]:
        """uint8 frames [T, 3, H, W] -> (patches [P, 1176], grid (T/2, H/14, W/14)).

        Not transformers' `Qwen2VLVideoProcessor`, which resizes frames as tensors: a frame gives the same values here
        as an image of the same pixels, bit by bit, as released.
        """
        processor = self.image_processor
        patch, merge, depth = processor.patch_size, processor.merge_size, processor.temporal_patch_size
        height, width = self._video_size(len(frames), frames.shape[-2], frames.shape[-1])
        options = {name: getattr(processor, name) for name in PIXEL_OPTIONS}
        options.update({name: value for name, value in settings.items() if value is not None})
        values = []
        for frame in frames.permute(0, 2, 3, 1).numpy():
            image = Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), Image.Resampling.BICUBIC)
            pixel = np.asarray(image).transpose(2, 0, 1)
            if options["do_rescale"]:
                pixel = processor.rescale(pixel, options["rescale_factor"])
            if options["do_normalize"]:
                pixel = processor.normalize(pixel, options["image_mean"], options["image_std"])
            values.append(pixel)
        pixels = torch.from_numpy(np.stack(values).astype(np.float32, copy=False))
        grid = [len(frames) // depth, height // patch, width // patch]
        pixels = pixels.view(
            grid[0], depth, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
        ).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)  # t, h, w, merge, merge, c, depth, patch, patch
        return pixels.reshape(grid[0] * grid[1] * grid[2], -1), grid

    def _expand(self, parts: list[list[str]], counts: dict[str, Iterator[int]]) -> list[PromptRow]:
        """Encode split prompts (text and control tokens in turn); `counts` are the patches of each medium in order."""
        pieces = [self._expand_row(row, counts) for row in parts]
        texts = [piece for row in pieces for piece, _, _ in row if isinstance(piece, str)]
        encoded = iter(self._encode_text(texts))
        rows = []
        for row_pieces in pieces:
            row = PromptRow()
            for piece, token_type, reply in row_pieces:
                ids = next(encoded) if isinstance(piece, str) else piece
                if token_type == AUDIO_TYPE:
                    row.audio_spans.append((len(row.ids), len(ids)))
                row.add(ids, token_type, reply)
            rows.append(row)
        return rows

    def _expand_row(
        self, parts: list[str], counts: dict[str, Iterator[int]]
    ) -> list[tuple[str | list[int], int, bool]]:
        """Split prompt -> (text or ids, token type, whether it belongs to a reply)."""
        token_id = self.tokenizer.convert_tokens_to_ids
        pieces: list[tuple[str | list[int], int, bool]] = []
        behind, reply = "", False
        for index, part in enumerate(parts):
            if index % 2 == 0:
                text = behind + unmark_literals(part, self._literals)
                behind = ""
                if text:
                    pieces.append((text, TEXT_TYPE, reply))
                continue
            if part == "<role>":
                reply = False
            pieces.append(([token_id(part)], TEXT_TYPE, reply))
            if part == "</role>" and parts[index - 2 : index] == ["<role>", "ASSISTANT"]:
                reply = True
            if part in PLACEHOLDERS:
                patch, end, behind, token_type = PLACEHOLDERS[part]
                pieces.append(([token_id(patch)] * next(counts[part]), token_type, reply))
                pieces.append(([token_id(end)], TEXT_TYPE, reply))
        return pieces

    def _encode_text(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False}
        return self.tokenizer(texts, **options)["input_ids"]

    def _limit(self, options: CallOptions) -> int:
        """Longest prompt in tokens."""
        return self.tokenizer.model_max_length if options.max_length is None else options.max_length

    def _cut(self, rows: list[PromptRow], options: CallOptions) -> None:
        """Cut rows beyond the limit.

        Raises:
            ValueError: a row is too long and may not be cut, or holds media.
        """
        limit = self._limit(options)
        for row in rows:
            if len(row.ids) <= limit:
                continue
            if not options.truncates:
                what = f"a prompt of {len(row.ids)} tokens is longer than the limit of {limit}; shorten it"
                more = ", lower max_pixels or max_frames, raise max_length, or cut text by truncation=True"
                raise InputError(what + more, f"{what}, or send fewer media")
            if any(row.types):
                raise ValueError(
                    f"truncation to {limit} tokens would cut a prompt of {len(row.ids)} tokens that holds media; "
                    "lower max_pixels or max_frames, or raise max_length"
                )
            kept = slice(limit) if self.tokenizer.truncation_side == "right" else slice(len(row.ids) - limit, None)
            row.ids, row.types, row.reply_mask = row.ids[kept], row.types[kept], row.reply_mask[kept]

    def _row_lengths(self, rows: list[PromptRow], options: CallOptions) -> list[int]:
        """Padded length of each row."""
        width = self._limit(options) if options.padding == "max_length" else max(len(row.ids) for row in rows)
        if options.pad_to_multiple_of:
            width = -(-width // options.pad_to_multiple_of) * options.pad_to_multiple_of
        lengths = [width if options.pads else len(row.ids) for row in rows]
        if sum(lengths) > MAX_PADDED_POSITIONS:
            raise ValueError(
                f"{len(rows)} rows padded to {width:,} tokens are more than {MAX_PADDED_POSITIONS:,}; lower "
                f"max_length={options.max_length} or pad_to_multiple_of={options.pad_to_multiple_of}"
            )
        if options.return_tensors in ("pt", "np") and len(set(lengths)) > 1:
            raise ValueError(f"prompts of {sorted(set(lengths))} tokens make no tensor; use padding=True")
        return lengths

    def _collate(self, rows: list[PromptRow], data: dict, options: CallOptions) -> BatchFeature:
        """Pad the rows, place the audio spans in them, and add the media tensors in `data`."""
        self._cut(rows, options)
        gaps = [length - len(row.ids) for length, row in zip(self._row_lengths(rows, options), rows, strict=True)]
        left = options.padding_side == "left"
        columns: dict[str, Any]

        def pad(values: list[list[int]], filler: int) -> list[list[int]]:
            fillers = [[filler] * gap for gap in gaps]
            return [fill + row if left else row + fill for fill, row in zip(fillers, values, strict=True)]

        columns = {"input_ids": pad([row.ids for row in rows], self.tokenizer.pad_token_id)}
        if options.return_attention_mask is not False:
            columns["attention_mask"] = pad([[1] * len(row.ids) for row in rows], 0)
        if options.return_mm_token_type_ids is not False:
            columns["mm_token_type_ids"] = pad([row.types for row in rows], TEXT_TYPE)
        if options.return_assistant_tokens_mask:
            columns["assistant_masks"] = pad([row.reply_mask for row in rows], 0)
        if "audio_feats" in data:
            shifts = gaps if left else [0] * len(rows)
            columns["audio_placeholder_loc_lens"] = _audio_locations(rows, shifts)
        if options.return_tensors in ("pt", "np"):
            columns = {name: torch.tensor(values, dtype=torch.int64) for name, values in columns.items()}
        batch = {**columns, **data}
        if options.return_tensors in ("np", None):
            batch = {
                name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in batch.items()
            }
        return BatchFeature(batch)

    def decode(self, token_ids: Any, *args, **kwargs) -> str | list[str]:
        """Token ids -> text, or rows of them -> texts; options as the tokenizer's `decode`.

        Raises:
            TypeError, ValueError: what is given holds something else than token ids.
        """
        return self.tokenizer.decode(_token_ids("token_ids", token_ids, self._last_id), *args, **kwargs)

    def batch_decode(self, sequences: Any, *args, **kwargs) -> list[str]:
        """Rows of token ids -> texts; options as the tokenizer's `batch_decode`. Raises as `decode`."""
        return self.tokenizer.batch_decode(_token_ids("sequences", sequences, self._last_id), *args, **kwargs)

    @property
    def _last_id(self) -> int:
        """The highest id that a model of this tokenizer may write: its vocabulary may be padded."""
        return -(-len(self.tokenizer) // PADDED_VOCABULARY) * PADDED_VOCABULARY - 1

    def post_process_multimodal_output(
        self, generated_outputs: Any, skip_special_tokens: bool = True, generation_mode: str | None = None, **kwargs
    ) -> list:
        """What `generate` returned -> one item for each sample: str, 1-D float waveform (numpy), or PIL image.

        Args:
            generated_outputs: ids, a pair (ids, media), an output with `sequences`, `waveforms` or `images`, or media.
            skip_special_tokens, **kwargs: options of `batch_decode`, for text.
            generation_mode: None or `"text"`, `"audio"`, `"image"`.

        Raises:
            ValueError: an unknown mode, or nothing of that mode in the outputs.
        """
        mode = generation_mode or "text"
        if mode not in OUTPUT_FIELDS:
            raise ValueError(
                f"generation_mode={generation_mode!r} is unknown; accepted are {', '.join(OUTPUT_FIELDS)}"
            )
        outputs = generated_outputs
        if any(hasattr(outputs, name) for name in ("sequences", "images")):
            outputs = getattr(outputs, OUTPUT_FIELDS[mode], None)
        elif isinstance(outputs, tuple):
            outputs = outputs[0 if mode == "text" else 1]
        if outputs is None:
            raise ValueError(f"the outputs hold no {OUTPUT_FIELDS[mode]}; call generate with generation_mode={mode!r}")
        if mode == "text":
            return self.batch_decode(outputs, skip_special_tokens=skip_special_tokens, **kwargs)
        samples = list(outputs) if isinstance(outputs, (list, tuple)) or getattr(outputs, "ndim", 1) > 1 else [outputs]
        if mode == "image":
            return samples
        return [
            wave.detach().float().cpu().numpy().reshape(-1) if isinstance(wave, torch.Tensor) else np.ravel(wave)
            for wave in samples
        ]

    def _get_num_multimodal_tokens(
        self, image_sizes=None, video_sizes=None, audio_lengths=None, use_whisper_encoder: bool = False, **kwargs
    ) -> MultiModalData:
        """Patch tokens of media by their size alone: (height, width), (frames, height, width), samples at 16 kHz."""
        data: dict[str, Any] = {}
        merge = self.image_processor.merge_size**2
        if image_sizes is not None:
            count = self.image_processor.get_number_of_image_patches
            patches = [count(height, width, kwargs) for height, width in image_sizes]
            data.update(num_image_patches=patches, num_image_tokens=[patch // merge for patch in patches])
        if video_sizes is not None:
            pixels = self.image_processor.patch_size**2 * self.image_processor.temporal_patch_size * merge
            sizes = [(frames + frames % 2, self._video_size(frames, *size)) for frames, *size in video_sizes]
            data["num_video_tokens"] = [frames * height * width // pixels for frames, (height, width) in sizes]
        if audio_lengths is not None:
            count = self.feature_extractor.num_tokens
            data["num_audio_tokens"] = [count(samples, use_whisper_encoder) for samples in audio_lengths]
        return MultiModalData(**data)


def _is_variable(name: str, value: Any, template: str) -> bool:
    """Whether a keyword is a variable of a chat template rather than an option of the processor.

    Raises:
        ValueError: a variable of other models' templates with a value that would matter.
    """
    if name in CallOptions.__dataclass_fields__ or name in NEUTRAL_OPTIONS:
        return False
    if re.search(rf"\b{re.escape(name)}\b", template):
        return True
    if name in NEUTRAL_VARIABLES:
        _raise_if_not_one_of(name, value, NEUTRAL_VARIABLES[name])
    return name in NEUTRAL_VARIABLES


def _raise_if_unusable(options: Mapping[str, Any]) -> None:
    """Refuse options of a chat that are not what their name says, and tools."""
    raise_if_no_settings(options)
    if options["tools"]:
        raise ValueError(f"tools: this model calls none, got {len(options['tools'])}; leave them out")


def _token_ids(name: str, value: Any, most: int) -> Any:
    """Ids to decode, checked; of an output of the processor its `input_ids`."""
    if isinstance(value, Mapping) and "input_ids" in value:
        value = value["input_ids"]
    raise_if_no_token_ids(name, value, most=most)
    return value


def _as_prompts(text: Any) -> list[str]:
    prompts = [text] if isinstance(text, str) else text
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"text must be a prompt or a non-empty list of prompts (strings), got {type(text).__name__}")
    return list(prompts)


def _media_of_prompts(name: str, media: Any, parts: list[list[str]], is_single: Callable[[Any], bool]) -> list[list]:
    """Give each split prompt the media of its placeholders -> one list for each prompt.

    Args:
        name: `"image"`, `"video"` or `"audio"`.
        media: None, one medium, media in the order of all placeholders, or a list of them for each prompt.
        parts: split prompts, text and control tokens in turn.
        is_single: whether a value is one medium rather than a list of them.

    Raises:
        ValueError: the numbers do not match.
    """
    tag = f"<{name}>"
    wanted = [row[1::2].count(tag) for row in parts]
    media = [] if media is None else [media] if is_single(media) else list(media)
    if len(media) == len(wanted) and media and not any(is_single(row) for row in media):
        found, flat = [len(row) for row in media], [item for row in media for item in row]
    else:
        flat = [item for row in media for item in ([row] if is_single(row) else row)]
        found = wanted if len(flat) == sum(wanted) else [len(flat)]
    if found != wanted:
        numbers = [str(values[0] if len(values) == 1 else values) for values in (found, wanted)]
        raise ValueError(
            f"{numbers[0]} {name}(s) do not match {numbers[1]} {tag} placeholder(s) in the prompt(s); "
            f"give one {name} for each placeholder"
        )
    source = iter(flat)
    return [[next(source) for _ in range(count)] for count in wanted]


def _replacements(parts: list[list[str]], counts: Mapping[str, list[int]]) -> list[list[dict[str, str]]]:
    """What the placeholders of split prompts become, in their order, with the numbers of patches of each medium."""
    left = {tag: iter(values) for tag, values in counts.items()}
    found: list[list[dict[str, str]]] = []
    for row in parts:
        found.append([])
        for part in (part for part in row[1::2] if part in PLACEHOLDERS):
            patch, end, behind, _ = PLACEHOLDERS[part]
            whole = part + patch * next(left[part]) + end + behind
            found[-1].append({"type": part[1:-1], "text": part, "replacement": whole})
    return found


def _single_media(data: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What an engine can cut into single media: one recording a row, as `input_features`; no sizes in pixels."""
    found = {name: value for name, value in data.items() if name not in ("image_sizes", "audio_feats")}
    if "audio_feats" in data:
        rows = zip(data["audio_feats"], data["audio_feats_lengths"].tolist(), strict=True)
        recordings = [
            part for row, sizes in rows for part in row[: sum(sizes)].split([size for size in sizes if size])
        ]
        found["input_features"] = torch.nn.utils.rnn.pad_sequence(recordings, batch_first=True)
        found["audio_feats_lengths"] = torch.tensor([[len(part)] for part in recordings])
    return found


def _audio_locations(rows: list[PromptRow], shifts: list[int]) -> list[list[tuple[int, int]]]:
    """(start, length) of the audio spans of each row, moved by its shift; (0, 0) fills rows with fewer spans."""
    most = max(len(row.audio_spans) for row in rows)
    return [
        [(start + shift, length) for start, length in row.audio_spans] + [(0, 0)] * (most - len(row.audio_spans))
        for shift, row in zip(shifts, rows, strict=True)
    ]


__all__ = ["BailingMMImageProcessor", "BailingMMProcessor"]
