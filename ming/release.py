"""Released checkpoints of Ming-Lite-Omni: their layout, and their conversion into the classes of this package.

    detokenizer = read_released_detokenizer("Ming-Lite-Omni/talker")
    image_gen = read_released_image_gen("Ming-Lite-Omni")

`ming adopt` converts a whole release with the functions of this module. Nothing in a release is executed: `.pt` files
are read as plain tensors, the yaml as data. The model does not import this module.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from audio_detokenizer.configuration_audio_detokenizer import AudioDetokenizerConfig
from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from image_gen.configuration_image_gen import RELEASED_CONNECTOR, ImageGenConfig
from image_gen.modeling_image_gen import ImageGen

from .audio_features import BailingMMFeatureExtractor
from .codec_bpe import CodecBPE
from .configuration_bailingmm import AUTO_MAP, BailingMMConfig
from .files import raise_if_outside, raise_if_shards_elsewhere
from .media import describe
from .modeling_bailingmm import BailingMMNativeForConditionalGeneration
from .processing_bailingmm import BailingMMProcessor
from .release_files import read_cmvn, read_released_yaml
from .source import files_root
from .token_types import MAX_UNMARKED
from .voices import Voice
from .weights import raise_if_incomplete

INDEX = "model.safetensors.index.json"
NEEDED = ("config.json", "preprocessor_config.json", "am.mvn", "tokenizer.json", "tokenizer_config.json")
WORD_EMBEDDINGS, ROWS_AT_ONCE = "model.model.word_embeddings.weight", 8192
TALKER_FOLDER = "talker"
CODEC_FOLDER = "s3_bpe"  # in the folder of the talker
DETOKENIZER_YAML = "audio_detokenizer.yaml"
DETOKENIZER_PARTS = ("flow", "hift")
SPEECH_NEEDED = ("config.json", DETOKENIZER_YAML, "flow.pt", "hift.pt", f"{CODEC_FOLDER}/tokenizer.json")
TALKER_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
)
IMAGE_GEN_FOLDERS = ("mlp", "connector", "transformer", "vae")
MLP_WEIGHTS = "mlp/model.safetensors"
SCHEDULER_FILE = "scheduler/scheduler_config.json"
SCHEDULER_CLASS = "FlowMatchEulerDiscreteScheduler"
IMAGE_GEN_NEEDED = (
    MLP_WEIGHTS,
    "connector/config.json",
    "transformer/config.json",
    "vae/config.json",
    SCHEDULER_FILE,
)
IMAGE_SETTINGS = (
    "min_pixels",
    "max_pixels",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "image_mean",
    "image_std",
)
VOICE_TENSORS = ("prompt_speech_feat", "prompt_speech_token", "vp_emb")
VOICE_KEYS = ("prompt_text", *VOICE_TENSORS)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON file with an object in it."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def shapes_in_file(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Name -> shape from the header of a safetensors file, without reading the tensors."""
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def compare_shapes(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """What `raise_if_incomplete` reads, from the names and shapes of a model and of a checkpoint."""
    return {
        "missing_keys": wanted.keys() - found.keys(),
        "unexpected_keys": found.keys() - wanted.keys(),
        "mismatched_keys": [
            (name, found[name], shape) for name, shape in wanted.items() if found.get(name, shape) != shape
        ],
    }


@dataclass(frozen=True)
class Release:
    """The files of a release.

    Attributes:
        root: its directory.
        shards: the files of the main weights.
        speaks: whether it has the talker and the audio detokenizer.
        draws: whether it has the image head.
    """

    root: Path
    shards: list[Path]
    speaks: bool
    draws: bool


def find_release(directory: str | os.PathLike) -> Release:
    """The release in a directory.

    Raises:
        FileNotFoundError: it is incomplete; the message names every file that is missing.
        ValueError: a link leads out of it.
    """
    root = Path(directory)
    raise_if_links_lead_out(root)
    speaks = (root / TALKER_FOLDER).is_dir()
    draws = all((root / name).is_dir() for name in IMAGE_GEN_FOLDERS)
    needed = list(NEEDED)
    if speaks:
        needed += [f"{TALKER_FOLDER}/{name}" for name in SPEECH_NEEDED]
    if draws:
        needed += IMAGE_GEN_NEEDED
    missing = [name for name in needed if not (root / name).is_file()]
    shards = find_shards(root)
    if not shards:
        missing.append(f"{INDEX} or model.safetensors")
    if missing:
        raise FileNotFoundError(f"{root} is no released checkpoint: it lacks {', '.join(missing)}")
    return Release(root, shards, speaks, draws)


def raise_if_links_lead_out(root: Path) -> None:
    """Refuse a release with links to files elsewhere: they would be copied, and what is adopted may be published.

    Weights are excepted, since only their tensors are read.

    Raises:
        ValueError: there is one.
    """
    for path in root.rglob("*"):
        if path.is_symlink() and path.suffix != ".safetensors":
            raise_if_outside(path, files_root(root))


def find_shards(root: Path) -> list[Path]:
    """The files of the main weights: those that the index names, or the single file, or none.

    Raises:
        FileNotFoundError: the index names a file that does not exist.
        ValueError: it names one outside the directory.
    """
    raise_if_shards_elsewhere(root)
    if (root / INDEX).is_file():
        paths = [root / name for name in sorted(set(read_json(root / INDEX)["weight_map"].values()))]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"{root}: {INDEX} names files that do not exist: {', '.join(missing)}")
        return paths
    return [path for path in [root / "model.safetensors"] if path.is_file()]


def read_released_config(release: Release) -> BailingMMConfig:
    """The configuration of a release for the code of this package; the talker's sizes come from its own folder."""
    values = read_json(release.root / "config.json")
    if release.speaks:
        sizes = read_json(release.root / TALKER_FOLDER / "config.json")
        llm_config = {name: sizes[name] for name in TALKER_SIZES if name in sizes}
        values["talker_config"] = {**values.get("talker_config", {}), "llm_config": llm_config}
    else:
        values.pop("talker_config", None)
    config = BailingMMConfig.from_dict(values)
    config.auto_map = AUTO_MAP
    return config


def raise_if_weights_differ(config: BailingMMConfig, shards: list[Path]) -> None:
    """Compare names and shapes in the headers of the shards with those of the model.

    Raises:
        ValueError: names that are missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        model = BailingMMNativeForConditionalGeneration(config)
    wanted = shapes_of(revert_weight_conversion(model, model.state_dict()))
    found: dict[str, tuple[int, ...]] = {}
    for path in shards:
        found |= shapes_in_file(path)
    raise_if_incomplete(shards[0].parent, compare_shapes(wanted, found))


def raise_if_words_are_long(shards: list[Path]) -> None:
    """Refuse word embeddings that vLLM would take for marked features of media (see `token_types.py`).

    Raises:
        ValueError: a row of the embeddings is `MAX_UNMARKED` long or longer.
    """
    for path in shards:
        longest = longest_word(path)
        if not longest < MAX_UNMARKED:
            raise ValueError(
                f"{path}: a word embedding is {longest:.1f} long; vLLM would take those of {MAX_UNMARKED:g} or more "
                "for images: raise the marks in ming/token_types.py"
            )


def longest_word(path: Path) -> float:
    """Length of the longest word embedding in a file of weights; 0 where it holds none."""
    with safe_open(path, "pt") as file:
        if WORD_EMBEDDINGS not in list(file.keys()):
            return 0.0
        rows = file.get_slice(WORD_EMBEDDINGS)
        starts = range(0, rows.get_shape()[0], ROWS_AT_ONCE)
        return max(rows[start : start + ROWS_AT_ONCE].float().norm(dim=-1).max().item() for start in starts)


def read_released_tokenizer(directory: str | os.PathLike) -> PreTrainedTokenizerFast:
    """The main tokenizer, with its special tokens and padding on the left."""
    values = read_json(Path(directory) / "tokenizer_config.json")
    special = {}
    for name, token in values.items():
        content = token["content"] if isinstance(token, dict) and "content" in token else token
        if name.endswith("_token") and isinstance(content, str):
            special[name] = content
    return PreTrainedTokenizerFast(
        tokenizer_file=str(Path(directory) / "tokenizer.json"),
        padding_side="left",
        model_max_length=values.get("model_max_length", 32768),
        **special,
    )


def read_released_processor(directory: str | os.PathLike, chat_template: str) -> BailingMMProcessor:
    """Tokenizer, image and audio settings of a release, with the chat template of this package."""
    root = Path(directory)
    settings = read_json(root / "preprocessor_config.json")
    shift, scale = read_cmvn(root / "am.mvn")
    feature_extractor = BailingMMFeatureExtractor(cmvn_shift=shift, cmvn_scale=scale)
    feature_extractor.auto_map = {"AutoFeatureExtractor": "ming/audio_features.BailingMMFeatureExtractor"}
    processor = BailingMMProcessor(
        Qwen2VLImageProcessorPil(**{name: settings[name] for name in IMAGE_SETTINGS}),
        feature_extractor,
        read_released_tokenizer(root),
        chat_template=chat_template,
    )
    processor.auto_map = {"AutoProcessor": "ming/processing_bailingmm.BailingMMProcessor"}
    return processor


def read_released_codec_bpe(directory: str | os.PathLike) -> CodecBPE:
    """The codec vocabulary in the talker's folder; errors as of `CodecBPE.from_pretrained`."""
    # The folder itself holds a tokenizer.json, too: the talker's text tokenizer.
    return CodecBPE.from_pretrained(Path(directory) / CODEC_FOLDER)


def read_released_detokenizer_config(path: str | os.PathLike) -> AudioDetokenizerConfig:
    """The configuration that a released `audio_detokenizer.yaml` describes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no such description, or has settings that this code does not know or implement.
    """
    data = read_released_yaml(path)
    if not isinstance(data.get("flow"), dict) or not isinstance(data.get("hift"), dict):
        raise ValueError(f"{path} has no sections flow and hift; expected the released {DETOKENIZER_YAML}")
    flow, hift = data["flow"], data["hift"]
    decoder = flow["decoder"]
    flow["estimator"] = decoder.pop("estimator")
    decoder["cfm_params"] = decoder["cfm_params"].get("content", decoder["cfm_params"])
    decoder.pop("tensorrt_model_path", None)  # an engine that replaces the estimator if the file exists
    return AudioDetokenizerConfig(
        flow=flow, hift=hift, sample_rate=hift["sampling_rate"], token_rate=flow["input_frame_rate"]
    )


def read_released_detokenizer(directory: str | os.PathLike, dtype: torch.dtype = torch.float32) -> AudioDetokenizer:
    """A detokenizer from released files: `audio_detokenizer.yaml` with `flow.pt` and `hift.pt` beside it, or the same
    two as `.safetensors`.

    Args:
        directory: the talker's folder.
        dtype: dtype of the flow; the vocoder is always float32.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the yaml does not describe this model, or names or shapes of the weights do not fit it.
    """
    root = Path(directory)
    with torch.device("meta"):
        model = AudioDetokenizer(read_released_detokenizer_config(root / DETOKENIZER_YAML))
    for part in DETOKENIZER_PARTS:
        path = root / f"{part}.safetensors"
        if path.exists():
            tensors = load_file(path)
        else:
            path = path.with_suffix(".pt")
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        module = model.get_submodule(part)
        raise_if_incomplete(path, compare_shapes(shapes_of(module.state_dict()), shapes_of(tensors)))
        part_dtype = dtype if part == "flow" else torch.float32
        module.load_state_dict({name: tensor.to(part_dtype) for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def read_released_voice(path: str | os.PathLike, name: str) -> Voice:
    """Read one of the released `.pt` voices.

    Args:
        path: the file; a dict of `prompt_text`, `prompt_speech_feat` [1, F, 80], `prompt_speech_token` [1, P],
            `vp_emb` [1, 192] and the lengths [1] of the second and third.
        name: name of the voice.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another format, missing keys, or wrong shapes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no released voice {path}")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, including those of the unpickler
        raise ValueError(f"cannot read the released voice {path} as plain tensors: {error}") from error
    missing = [key for key in VOICE_KEYS if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{path} is no released voice: it lacks {missing}")
    tensors = {}
    for key in VOICE_TENSORS:
        value = data[key]
        if not isinstance(value, torch.Tensor) or value.ndim < 1 or len(value) != 1:
            raise ValueError(f"{path}: {key} must be a tensor of one voice, [1, ...]; got {describe(value)}")
        length = int(data[f"{key}_len"]) if f"{key}_len" in data else None
        tensors[key] = value[0, :length] if value.ndim > 1 else value[0]
    return Voice(
        name=name,
        prompt_text=data["prompt_text"],
        prompt_codes=tensors["prompt_speech_token"],
        prompt_mel=tensors["prompt_speech_feat"].float(),
        speaker_embedding=tensors["vp_emb"].float(),
    )


def find_released_voices(release: Release) -> Iterator[Path]:
    """The `.pt` files of a release that are voices: all but the weights of the detokenizer."""
    return (path for path in sorted(release.root.rglob("*.pt")) if path.stem not in DETOKENIZER_PARTS)


def read_released_scheduler(directory: str | os.PathLike) -> dict[str, Any]:
    """The noise schedule of a release, as arguments of `FlowMatchEulerDiscreteScheduler`; {} keeps the defaults.

    A file of that class counts as it stands, including its `shift`. The file of v1.0 describes another class,
    `DPMSolverMultistepScheduler` with `flow_shift` 3. Its code reads it with `FlowMatchEulerDiscreteScheduler`, which
    ignores that name, so images are sampled without a shift; the file of any other class is treated like this one.

    Raises:
        FileNotFoundError: there is no file. Nothing in the weights says which schedule they were trained for, and
            another one silently gives worse images.
        ValueError: the file has settings that the installed class does not know.
    """
    path = Path(directory) / SCHEDULER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}, and the weights do not say how images are sampled; add the file")
    values = read_json(path)
    if values.get("_class_name") != SCHEDULER_CLASS:
        return {}
    settings = {name: value for name, value in values.items() if not name.startswith("_")}
    try:
        FlowMatchEulerDiscreteScheduler(**settings)
    except TypeError as error:
        raise ValueError(f"{path}: {error}; install a diffusers release that knows it") from error
    return settings


def read_released_image_gen_config(directory: str | os.PathLike) -> ImageGenConfig:
    """The configuration of the image head from the folders of a release and the shapes in `mlp/`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: see `read_released_scheduler`.
    """
    root = Path(directory)
    sections = {
        name: {key: value for key, value in read_json(root / name / "config.json").items() if not key.startswith("_")}
        for name in ("connector", "transformer", "vae")
    }
    sections["connector"] = {name: sections["connector"][name] for name in RELEASED_CONNECTOR}
    shapes = shapes_in_file(root / MLP_WEIGHTS)
    mlp_hidden_size, hidden_size = shapes["mlp.fc1.weight"]
    grids = [name.removeprefix("query_tokens_dict.") for name in shapes if name.startswith("query_tokens_dict.")]
    return ImageGenConfig(
        hidden_size=hidden_size,
        mlp_hidden_size=mlp_hidden_size,
        scales=sorted(int(grid.split("x")[0]) for grid in grids),
        scheduler=read_released_scheduler(root),
        **sections,
    )


def image_gen_folder(name: str) -> str:
    """The released folder that holds a weight of `ImageGen`."""
    part = name.split(".")[0]
    return part if part in IMAGE_GEN_FOLDERS else "mlp"


def image_gen_name(folder: str, name: str) -> str | None:
    """The name in `ImageGen` of a weight in a released folder; None if the weight is not used.

    Not used are the connector's vocabulary, and a projector that an earlier release has in `mlp/`.
    """
    if folder == "mlp":
        return None if name.startswith("linear_proj.") else name
    if folder == "connector":
        is_vocabulary = name.startswith(("model.embed_tokens.", "lm_head."))
        return None if is_vocabulary else "connector." + name.removeprefix("model.")
    return f"{folder}.{name}"


def rename_image_gen(folder: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by released names of a folder -> values by names in `ImageGen`, without those that are not used."""
    return {own: value for name, value in values.items() if (own := image_gen_name(folder, name)) is not None}


def image_gen_files(directory: str | os.PathLike) -> list[tuple[str, Path]]:
    """Folder and path of every file of weights of the image head."""
    return [
        (folder, path)
        for folder in IMAGE_GEN_FOLDERS
        for path in sorted((Path(directory) / folder).glob("*.safetensors"))
    ]


def empty_image_gen(directory: str | os.PathLike) -> ImageGen:
    """The image head of a release on the meta device, once the released weights were found to fit it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: names or shapes of the weights do not fit the configurations.
    """
    config = read_released_image_gen_config(directory)
    with torch.device("meta"):
        model = ImageGen(config)
    shapes = shapes_of(model.state_dict())
    found: dict[str, dict[str, tuple[int, ...]]] = {folder: {} for folder in IMAGE_GEN_FOLDERS}
    for folder, path in image_gen_files(directory):
        found[folder] |= rename_image_gen(folder, shapes_in_file(path))
    for folder in IMAGE_GEN_FOLDERS:
        wanted = {name: shape for name, shape in shapes.items() if image_gen_folder(name) == folder}
        raise_if_incomplete(Path(directory) / folder, compare_shapes(wanted, found[folder]))
    return model


def read_released_image_gen(directory: str | os.PathLike, dtype: torch.dtype = torch.float32) -> ImageGen:
    """The image head from the folders `mlp/`, `connector/`, `transformer/`, `vae/` and `scheduler/` of a release.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: names or shapes of the weights do not fit the configurations, or see `read_released_scheduler`.
    """
    model = empty_image_gen(directory)
    # The one part whose tensors are computed and not stored.
    model.connector.rotary_emb = Qwen2RotaryEmbedding(model.connector.config)
    for folder, path in image_gen_files(directory):
        tensors = {name: tensor.to(dtype) for name, tensor in rename_image_gen(folder, load_file(path)).items()}
        model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval()


def convert_image_gen(
    source: str | os.PathLike, target: str | os.PathLike, progress: Callable[[list], Iterable] = iter
) -> None:
    """Write the image head of a release as a component folder, one file at a time.

    Args:
        source: the directory of the release.
        target: the folder to write.
        progress: called with the list of files, for instance `tqdm`; returns what is iterated.

    Raises:
        FileNotFoundError, ValueError: as of `read_released_image_gen`, before anything is written.
    """
    target = Path(target)
    empty_image_gen(source).config.save_pretrained(target)
    files = image_gen_files(source)
    weight_map: dict[str, str] = {}
    for number, (folder, path) in enumerate(progress(files), start=1):
        tensors = rename_image_gen(folder, load_file(path))
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(tensors, target / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = [
    "Release",
    "convert_image_gen",
    "find_release",
    "find_released_voices",
    "raise_if_weights_differ",
    "read_released_codec_bpe",
    "read_released_config",
    "read_released_detokenizer",
    "read_released_detokenizer_config",
    "read_released_image_gen",
    "read_released_image_gen_config",
    "read_released_processor",
    "read_released_scheduler",
    "read_released_voice",
]
