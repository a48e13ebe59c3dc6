"""Make a released checkpoint directory one of this package.

The new directory gets the code of this package, its configurations, the tokenizers, the processor's settings, the
large shards of the release as links (or copies), the audio detokenizer and the voices as safetensors, and the image
head, if the release has one, under the names of this package. Files, and every key and shape of the main weights, are
checked before anything is written. Nothing in the release is executed: `.pt` files are read as plain tensors, the yaml
as data.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm import tqdm

from audio_detokenizer.configuration_audio_detokenizer import FOLDER as DETOKENIZER_FOLDER
from image_gen.configuration_image_gen import FOLDER as IMAGE_GEN_FOLDER
from ming.cli.usage import Parser, user_input
from ming.release import (
    INDEX,
    TALKER_FOLDER,
    Release,
    convert_image_gen,
    find_release,
    find_released_voices,
    raise_if_weights_differ,
    raise_if_words_are_long,
    read_released_codec_bpe,
    read_released_config,
    read_released_detokenizer,
    read_released_processor,
    read_released_voice,
)
from ming.source import CODE
from ming.talker_processor import CODEC_FOLDERS, TOKENIZER_FOLDER, VOICES_FOLDER
from ming.voices import SPEAKER_FILE, TOKENIZER_FILE

logger = logging.getLogger(__name__)

# The checkout, or the folder that an installed package lies in beside all others.
ROOT = Path(__file__).resolve().parents[2]
# At the root of a checkout; an installed package does without them.
ENTRY_POINTS = ("configuration_bailingmm.py", "modeling_bailingmm.py", "processing_bailingmm.py", "handler.py")
CHAT_TEMPLATE = "chat_template.jinja"
TEXT_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
VOICE_NETWORKS = (SPEAKER_FILE, TOKENIZER_FILE)


def place(path: Path, target: Path, mode: str, may_point: bool = True) -> None:
    """Put a file at another place: by a hard link, by a symbolic link where that is impossible, or by a copy.

    Args:
        mode: "link" or "copy".
        may_point: whether it may be a symbolic link; saving a model copies none that leads out of its directory.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == "copy":
        shutil.copyfile(path, target)
        return
    try:
        os.link(path.resolve(), target)
    except OSError:  # another file system
        if may_point:
            target.symlink_to(path.resolve())
        else:
            shutil.copyfile(path, target)


def code_files() -> list[Path]:
    """The code that a checkpoint needs to load with `trust_remote_code=True`."""
    # Other packages may have files beside this one, so the root is not searched.
    patterns = [pattern for pattern in CODE if "/" in pattern]
    files = [ROOT / name for name in ENTRY_POINTS] + [path for pattern in patterns for path in ROOT.glob(pattern)]
    return [path for path in files if path.is_file()]


def copy_code(target: Path) -> None:
    """Copy the code, but not the weights of the checkpoint that lies beside it in a checkout."""
    for path in code_files():
        place(path, target / path.relative_to(ROOT), "copy")


def read_chat_template() -> str:
    """The chat template of this package, which lies in `ming/` if installed and at the root of a checkout."""
    paths = [ROOT / "ming" / CHAT_TEMPLATE, ROOT / CHAT_TEMPLATE]
    return next((path for path in paths if path.is_file()), paths[-1]).read_text(encoding="utf-8")


def adopt_speech(release: Release, target: Path, mode: str) -> None:
    """The talker's tokenizer, the codec vocabulary, voices, the detokenizer, and the networks that clone voices."""
    talker = release.root / TALKER_FOLDER
    for name in TEXT_TOKENIZER_FILES:
        if (talker / name).is_file():
            place(talker / name, target / TOKENIZER_FOLDER / name, "copy")
    for name in VOICE_NETWORKS:
        if (talker / name).is_file():
            place(talker / name, target / TOKENIZER_FOLDER / name, mode, may_point=False)
        else:
            logger.warning("%s does not exist: the new checkpoint cannot clone voices", talker / name)
    read_released_codec_bpe(talker).save_pretrained(target / CODEC_FOLDERS[0])
    read_released_detokenizer(talker).save_pretrained(target / DETOKENIZER_FOLDER)
    for path in find_released_voices(release):
        read_released_voice(path, path.stem).save(target / VOICES_FOLDER)


def adoption_steps(release: Release, target: Path, mode: str) -> list[tuple[str, Callable[[], object]]]:
    """Names and functions of the steps that write a release into `target`; all checks that need no writing run now.

    Raises:
        ValueError: weights that do not fit.
    """
    root, config = release.root, read_released_config(release)
    raise_if_weights_differ(config, release.shards)
    raise_if_words_are_long(release.shards)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("code", partial(copy_code, target)),
        ("configuration", partial(config.save_pretrained, target)),
        ("processor", lambda: read_released_processor(root, read_chat_template()).save_pretrained(target)),
        *((path.name, partial(place, path, target / path.name, mode)) for path in release.shards),
    ]
    for name in (INDEX, "generation_config.json"):
        if (root / name).is_file():
            steps.append((name, partial(place, root / name, target / name, "copy")))
    if release.speaks:
        steps.append(("speech", partial(adopt_speech, release, target, mode)))
    if release.draws:
        progress = partial(tqdm, desc="image head", unit="file")
        steps.append(("image head", partial(convert_image_gen, root, target / IMAGE_GEN_FOLDER, progress)))
    return steps


def adopt(source: str | os.PathLike, target: str | os.PathLike, mode: str = "link") -> None:
    """Make `target` a directory of this package from a released one.

    Args:
        source: the released directory.
        target: the directory to make.
        mode: how the large files get there: "link" or "copy".

    Raises:
        FileNotFoundError, ValueError: `source` is incomplete or does not fit; nothing is left in `target` then.
        FileExistsError: `target` exists and is not empty.
    """
    target = Path(target)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty; name a new directory")
    unfinished = target.with_name(target.name + ".partial")
    steps = adoption_steps(find_release(source), unfinished, mode)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        with tqdm(steps, unit="step") as progress:
            for name, step in progress:
                progress.set_description(name)
                step()
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if target.exists():
        target.rmdir()
    unfinished.rename(target)


def main(arguments: list[str] | None = None) -> int:
    """Adopt a release; returns the exit code.

    Raises:
        UsageError: the release is incomplete or does not fit, or the new directory is not empty.
    """
    parser = Parser("adopt", __doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="released directory")
    parser.add_argument("target", metavar="DST", type=Path, help="directory to make")
    parser.add_argument("--mode", choices=("link", "copy"), default="link", help="how the large files get there")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with user_input():
        adopt(args.source, args.target, args.mode)
    sys.stdout.write(f"{args.target} is ready: from_pretrained({str(args.target)!r}, trust_remote_code=True)\n")
    return 0
