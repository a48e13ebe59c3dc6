"""Make a released checkpoint directory one of this package.

    python -m ming.cli.adopt SRC DST [--mode link|copy]

DST gets our code and configs, the tokenizers, the processor's settings, the large shards of SRC as links (or copies),
the detokenizer and the voices rewritten as safetensors, and, where SRC has it, what draws under the names of this
package. Everything is checked before anything is written: files, and every key and shape of the main weights. Nothing
from SRC is executed: `.pt` files are read as plain tensors, the yaml as data.
"""

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil
from transformers.core_model_loading import revert_weight_conversion

from audio_detokenizer.modeling_audio_detokenizer import AudioDetokenizer
from image_gen.configuration_image_gen import FOLDER as IMAGE_FOLDER
from image_gen.configuration_image_gen import ImageGenConfig
from image_gen.modeling_image_gen import (
    NAMES_SHOWN,
    RELEASED_FOLDERS,
    ImageGen,
    folder_of,
    released_name,
    report,
)
from ming.audio_features import BailingMMFeatureExtractor, read_cmvn
from ming.codec_bpe import CodecBPE
from ming.configuration_bailingmm import AUTO_MAP, TRAVELS_WITH_WEIGHTS, BailingMMConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.speech import DETOKENIZER_FOLDER
from ming.talker_processor import CODEC_FOLDERS, TOKENIZER_FOLDER, VOICES_FOLDER
from ming.voices import SPEAKER_FILE, TOKENIZER_FILE, adopt_released_voice

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
INDEX = "model.safetensors.index.json"
NEEDED = ("config.json", "preprocessor_config.json", "am.mvn", "tokenizer.json", "tokenizer_config.json")
# What the talker's folder holds beside its configuration.
TALKER_CONFIG = "talker/config.json"
TALKER_FILES = ("talker/audio_detokenizer.yaml", "talker/flow.pt", "talker/hift.pt", "talker/s3_bpe/tokenizer.json")
TOKENIZER_PARTS = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json", "tokenizer_config.json")
TOKENIZER_PARTS += ("special_tokens_map.json",)
LISTENERS = (SPEAKER_FILE, TOKENIZER_FILE)
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SIZES += ("max_position_embeddings", "rms_norm_eps", "rope_theta")


def check_files(source: Path) -> tuple[bool, bool]:
    """Whether the release in a directory speaks and draws.

    Raises:
        FileNotFoundError: naming every file that is missing.
    """
    speaks, draws = (source / TOKENIZER_FOLDER).is_dir(), all((source / name).is_dir() for name in RELEASED_FOLDERS)
    needed = [*NEEDED, *((TALKER_CONFIG, *TALKER_FILES) if speaks else ())]
    missing = [name for name in needed if not (source / name).is_file()]
    if not shards_of(source):
        missing.append(f"{INDEX} or model.safetensors")
    if missing:
        raise FileNotFoundError(f"{source} is no released checkpoint: it lacks {', '.join(missing)}")
    return speaks, draws


def shards_of(source: Path) -> list[Path]:
    """Files of the main weights, those that the index names or the single one.

    Raises:
        FileNotFoundError: the index names a file that is not there.
    """
    if (source / INDEX).is_file():
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        paths = [source / name for name in sorted(set(index["weight_map"].values()))]
        if missing := [path.name for path in paths if not path.is_file()]:
            raise FileNotFoundError(f"{source}: {INDEX} names files that are not there: {', '.join(missing)}")
        return paths
    return [path for path in [source / "model.safetensors"] if path.is_file()]


def new_config(source: Path, speaks: bool) -> BailingMMConfig:
    """The configuration of the release under this package's code; the talker's sizes come from its own folder."""
    values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if speaks:
        sizes = json.loads((source / TALKER_CONFIG).read_text(encoding="utf-8"))
        llm_config = {name: sizes[name] for name in SIZES if name in sizes}
        values["talker_config"] = {**values.get("talker_config", {}), "llm_config": llm_config}
    else:
        values.pop("talker_config", None)
    config = BailingMMConfig.from_dict(values)
    config.auto_map = AUTO_MAP
    return config


def check_weights(config: BailingMMConfig, shards: list[Path]) -> None:
    """Compare names and shapes in the shards' headers with those of the model.

    Raises:
        ValueError: naming what is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        model = BailingMMNativeForConditionalGeneration(config)
    named = revert_weight_conversion(model, model.state_dict())
    wanted = {name: tuple(tensor.shape) for name, tensor in named.items()}
    found = {}
    for path in shards:
        with safe_open(path, "pt") as file:
            found.update({name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())})
    shapes = [
        f"{name} {found[name]}, not {shape}" for name, shape in wanted.items() if found.get(name, shape) != shape
    ]
    report(shards[0].parent, wanted.keys() - found.keys(), found.keys() - wanted.keys(), shapes)


def new_processor(source: Path) -> BailingMMProcessor:
    """Tokenizer, picture and sound settings of the release."""
    settings = json.loads((source / "preprocessor_config.json").read_text(encoding="utf-8"))
    tokens = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {name: token for name, token in tokens.items() if name.endswith("_token") and token is not None}
    special = {name: token["content"] if isinstance(token, dict) else token for name, token in special.items()}
    special = {name: token for name, token in special.items() if isinstance(token, str)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        padding_side="left",
        model_max_length=tokens.get("model_max_length", 32768),
        **special,
    )
    shift, scale = read_cmvn(source / "am.mvn")
    picture_names = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size")
    picture_names += ("image_mean", "image_std")
    pictures = Qwen2VLImageProcessorPil(**{name: settings[name] for name in picture_names})
    sounds = BailingMMFeatureExtractor(cmvn_shift=shift, cmvn_scale=scale)
    template = (ROOT / "chat_template.jinja").read_text(encoding="utf-8")
    return BailingMMProcessor(pictures, sounds, tokenizer, chat_template=template)


def place(path: Path, target: Path, mode: str) -> None:
    """A large file at another place: hard link, symbolic link where that is impossible, or copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == "copy":
        shutil.copyfile(path, target)
        return
    try:
        os.link(path.resolve(), target)
    except OSError:  # another file system
        target.symlink_to(path.resolve())


def adopt_image_gen(source: Path, target: Path) -> None:
    """Rewrite what draws, file by file, under the names of `ImageGen`.

    Raises:
        ValueError: names or shapes do not fit.
    """
    config = ImageGenConfig.from_released(source)
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in ImageGen(config).state_dict().items()}
    config.save_pretrained(target)
    weight_map: dict[str, str] = {}
    files = [(folder, path) for folder in RELEASED_FOLDERS for path in sorted((source / folder).glob("*.safetensors"))]
    for number, (folder, path) in enumerate(tqdm(files, desc="what draws", unit="file"), start=1):
        renamed = {own: tensor for name, tensor in load_file(path).items() if (own := released_name(folder, name))}
        wrong = [name for name, tensor in renamed.items() if wanted.get(name) != tuple(tensor.shape)]
        if wrong:
            raise ValueError(f"{path}: names or shapes that do not fit: {', '.join(wrong[:NAMES_SHOWN])}")
        file_name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        save_file(renamed, target / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(renamed, file_name))
    if missing := sorted(wanted.keys() - weight_map.keys()):
        folders = ", ".join(sorted({folder_of(name) for name in missing}))
        raise ValueError(f"{source}: {len(missing)} weights are missing in {folders}, such as {missing[0]}")
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def adopt_speech(source: Path, target: Path, mode: str) -> None:
    """The talker's tokenizer, the codec's pairs, voices, detokenizer, and what listens to recordings."""
    for name in TOKENIZER_PARTS:
        if (source / TOKENIZER_FOLDER / name).is_file():
            place(source / TOKENIZER_FOLDER / name, target / TOKENIZER_FOLDER / name, "copy")
    for name in LISTENERS:
        if (source / TOKENIZER_FOLDER / name).is_file():
            place(source / TOKENIZER_FOLDER / name, target / TOKENIZER_FOLDER / name, mode)
        else:
            logger.warning("%s has no %s/%s: no voices can be cloned with it", source, TOKENIZER_FOLDER, name)
    CodecBPE.from_pretrained(source / "talker").save_pretrained(target / CODEC_FOLDERS[0])
    AudioDetokenizer.from_released(source / TOKENIZER_FOLDER).save_pretrained(target / DETOKENIZER_FOLDER)
    for path in sorted(source.rglob("*.pt")):
        if path.stem not in ("flow", "hift"):
            adopt_released_voice(path, path.stem).save(target / VOICES_FOLDER)


def adopt(source: str | os.PathLike, target: str | os.PathLike, mode: str = "link") -> None:
    """Make `target` a directory of this package from a released one.

    Args:
        mode: what becomes of the large files: "link" or "copy".

    Raises:
        FileNotFoundError, ValueError: `source` is incomplete or does not fit; nothing is left in `target` then.
        FileExistsError: `target` is there and not empty.
    """
    source, target = Path(source), Path(target)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty; name a new directory")
    speaks, draws = check_files(source)
    config, shards = new_config(source, speaks), shards_of(source)
    check_weights(config, shards)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("code", lambda: copy_code(partial)),
        ("configuration", lambda: config.save_pretrained(partial)),
        ("processor", lambda: new_processor(source).save_pretrained(partial)),
        *((path.name, lambda path=path: place(path, partial / path.name, mode)) for path in shards),
    ]
    if (source / INDEX).is_file():
        steps.append((INDEX, lambda: place(source / INDEX, partial / INDEX, "copy")))
    if (source / "generation_config.json").is_file():
        name = "generation_config.json"
        steps.append((name, lambda: place(source / name, partial / name, "copy")))
    if speaks:
        steps.append(("speech", lambda: adopt_speech(source, partial, mode)))
    if draws:
        steps.append(("what draws", lambda: adopt_image_gen(source, partial / IMAGE_FOLDER)))
    try:
        with tqdm(steps, unit="step") as progress:
            for name, step in progress:
                progress.set_description(name)
                step()
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if target.exists():
        target.rmdir()
    partial.rename(target)


def copy_code(target: Path) -> None:
    """The code that travels with weights; not the weights of the checkpoint that lies beside it here."""
    for path in (path for pattern in TRAVELS_WITH_WEIGHTS for path in ROOT.glob(pattern)):
        if path.suffix == ".py":
            place(path, target / path.relative_to(ROOT), "copy")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m ming.cli.adopt", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path, help="released directory")
    parser.add_argument("target", type=Path, help="directory to make")
    parser.add_argument("--mode", choices=("link", "copy"), default="link", help="what becomes of the large files")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        adopt(args.source, args.target, args.mode)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{args.target} is ready: from_pretrained({str(args.target)!r}, trust_remote_code=True)\n")


if __name__ == "__main__":
    main()
