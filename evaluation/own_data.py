"""Data of the tasks in `lmms_tasks/`: from the owner's layout to the file that lmms-eval reads, and task files."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from .lmms import TASKS


def write_parquet(path: Path, samples: list[dict[str, Any]]) -> None:
    """Write samples; PIL images among their values are images of the data set."""
    from datasets import Dataset
    from datasets.utils import disable_progress_bars

    disable_progress_bars()
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(samples).to_parquet(str(path))


def write_task(folder: Path, name: str, base: Path, split: str, parquet: Path, **changes: Any) -> None:
    """Write the file of a task that is the task of the file `base` on other data.

    Args:
        folder: for `--include_path`.
        name: of the new task.
        split: that `base` tests on.
        changes: further keys that take the place of those of `base`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"dataset_path": "parquet", "dataset_name": None, "test_split": split}
    data["dataset_kwargs"] = {"data_files": {split: str(parquet.resolve())}}
    content = {"include": str(base.resolve()), "task": name, **data, **changes}
    # JSON is YAML
    (folder / f"{name}.yaml").write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_infoseek(folder: Path, out: Path, limit: int | None) -> None:
    """The parquet file of InfoSeek's validation set.

    Args:
        folder: with the owner's `infoseek_val.jsonl` and `images/IMAGE_ID.jpg` (of OVEN).

    Raises:
        ValueError: a file is missing or has other fields.
    """
    samples = []
    try:
        lines = (folder / "infoseek_val.jsonl").read_text(encoding="utf-8").splitlines()[:limit]
        for entry in map(json.loads, lines):
            (picture,) = folder.glob(f"images/{entry['image_id']}.*")
            wanted = [_wanted(answer) for answer in entry["answer_eval"]]
            samples.append({"image": _opened(picture), "question": entry["question"], "answer_eval": wanted})
            samples[-1]["data_split"] = entry["data_split"]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{folder} is not laid out as InfoSeek: {error!r}; see evaluation/own_data.py") from error
    write_parquet(out, samples)


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _wanted(answer: Any) -> str:
    """An accepted answer as text; a number's range as "low..high"."""
    if isinstance(answer, dict):
        low, high = answer["range"]
        return f"{low}..{high}"
    return str(answer)


def own_task(task: str, data: Path, folder: Path, limit: int | None) -> Path | None:
    """Write the task file of one of the tasks in `lmms_tasks/`; returns its folder, or None if there are no data.

    Args:
        data: directory of data: `infoseek/`, `encyclopedia/*.parquet`.
        folder: to write into.
    """
    if task == "ming_infoseek":
        if not (data / "infoseek").is_dir():
            return None
        parquet = folder / "infoseek.parquet"
        write_infoseek(data / "infoseek", parquet, limit)
    else:
        found = sorted((data / "encyclopedia").glob("*.parquet"))
        if not found:
            return None
        parquet = found[0]
    write_task(folder, task, TASKS / f"{task}.yaml", "test", parquet)
    return folder
