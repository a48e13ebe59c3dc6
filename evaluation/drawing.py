"""Image generation: GenEval's folders of images, whose scores its authors' detector writes, and FID by clean-fid.

Below the directory of data lie `geneval/evaluation_metadata.jsonl` (a prompt per line), and `fid/meta_data.json` with
`fid/images/` (prompts and pictures as of MJHQ-30K). Images are written as the authors' script does:

    geneval/00000/metadata.jsonl, geneval/00000/samples/0000.png ... 0003.png
"""

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ming.evaluation.answering import Answerer
from ming.files import replacing
from ming.training.chats import prompt_batch

from .results import Measured

SAMPLES_PER_PROMPT = 4  # of GenEval
METADATA = "evaluation_metadata.jsonl"
VERDICTS = "results.jsonl"  # of GenEval's evaluate_images.py: one line per image with "tag" and "correct"
DETECTOR = (
    "images are drawn; now: python evaluation/evaluate_images.py {folder} --outfile {folder}/" + VERDICTS + " in a "
    "checkout of djghosh13/geneval with its detector, then this command again"
)


def draw_missing(answerer: Answerer, wanted: dict[Path, tuple[str, int]], batch_size: int) -> None:
    """Draw the images that are not on the disk yet.

    Args:
        wanted: prompt and seed by file.
    """
    waiting = [(path, prompt, seed) for path, (prompt, seed) in wanted.items() if not path.exists()]
    for start in tqdm(range(0, len(waiting), batch_size), desc="drawing", disable=not waiting, leave=False):
        paths, prompts, seeds = zip(*waiting[start : start + batch_size], strict=True)
        answerer.load("image_gen")
        inputs = prompt_batch(answerer.session.processor, [[{"role": "user", "content": p}] for p in prompts])
        inputs = inputs.to(answerer.model.device, answerer.model.dtype)
        images = answerer.model.generate(**inputs, generation_mode="image", seed=list(seeds)).images
        for path, image in zip(paths, images, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                image.save(partial)


def read_geneval(data: Path, limit: int | None) -> list[dict]:
    """GenEval's prompts with what must be in the image; [] if the file is not there.

    Raises:
        ValueError: a line has no "tag" and "prompt".
    """
    path = data / "geneval" / METADATA
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:limit]
    if not lines or not all({"tag", "prompt"} <= line.keys() for line in lines):
        raise ValueError(f"{path} is not GenEval's {METADATA}: every line needs tag and prompt")
    return lines


def draw_geneval(answerer: Answerer, prompts: list[dict], folder: Path, batch_size: int) -> None:
    """Draw `SAMPLES_PER_PROMPT` images of every prompt into the folders of GenEval's layout."""
    wanted = {}
    for index, metadata in enumerate(prompts):
        place = folder / f"{index:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        with replacing(place / "metadata.jsonl") as path:
            path.write_text(json.dumps(metadata), encoding="utf-8")
        for number in range(SAMPLES_PER_PROMPT):
            seed = answerer.seed + SAMPLES_PER_PROMPT * index + number
            wanted[place / "samples" / f"{number:04d}.png"] = (metadata["prompt"], seed)
    draw_missing(answerer, wanted, batch_size)


def geneval_scores(folder: Path) -> dict[str, Measured]:
    """Scores 0 to 1 by tag and their mean as "overall", from the verdicts; {} where there are none yet."""
    path = folder / VERDICTS
    if not path.is_file():
        return {}
    by_tag: dict[str, list[bool]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        verdict = json.loads(line)
        by_tag.setdefault(verdict["tag"], []).append(bool(verdict["correct"]))
    scores = {tag: Measured(sum(right) / len(right), len(right)) for tag, right in by_tag.items()}
    mean = sum(score.value or 0.0 for score in scores.values()) / len(scores)
    return {**scores, "overall": Measured(mean, sum(map(len, by_tag.values())))}


def draw_fid(answerer: Answerer, data: Path, folder: Path, limit: int | None, batch_size: int) -> int:
    """Draw one image for every prompt of `meta_data.json`; returns their number, 0 if the file is not there."""
    path = data / "fid" / "meta_data.json"
    if not path.is_file():
        return 0
    prompts = sorted(json.loads(path.read_text(encoding="utf-8")).items())[:limit]
    wanted = {
        folder / f"{key}.png": (entry["prompt"], answerer.seed + index) for index, (key, entry) in enumerate(prompts)
    }
    draw_missing(answerer, wanted, batch_size)
    return len(prompts)


def fid(drawn: Path, pictures: Path, device: str, features: Any = None) -> float:
    """Fréchet distance of two folders of images, by clean-fid.

    Args:
        features: images float [B, 3, 299, 299] of 0..255 -> features [B, D]; None is Inception, whose weights
            clean-fid downloads.

    Raises:
        ValueError: clean-fid is not installed.
    """
    try:
        from cleanfid import fid as clean
    except ImportError as error:
        raise ValueError("FID needs clean-fid: pip install '.[evaluation]'") from error
    options = {"num_workers": 0, "use_dataparallel": False, "verbose": False, "device": device}
    return float(clean.compute_fid(str(drawn), str(pictures), custom_feat_extractor=features, **options))
