"""Measuring a table: each row by its runner, and what was measured before is kept."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ming.cli.checks import read_image_config
from ming.evaluation.answering import Answerer
from ming.evaluation.journal import Journal
from ming.loading import LoadOptions

from . import asr, drawing, lmms, own_data
from .results import NOT_REAL, Measured, claim, read_measured, write_results
from .tables import Row, Table

TINY = "tiny"


@dataclass(frozen=True)
class Settings:
    """What the values depend on.

    Args:
        model: directory or Hub id.
        data: "tiny", or the directory of data of our own tasks; None: only tasks of lmms-eval with data on the Hub.
        limit: samples per task; None is all. Of tiny copies, as many are made.
        seed: of tiny copies, images and sampled text.
        dtype: None chooses by the device.
        whisper: whether recordings go through Whisper, not SANM.
    """

    model: str
    data: str | None = None
    limit: int | None = None
    seed: int = 0
    dtype: str | None = None
    whisper: bool = False

    @property
    def tiny(self) -> bool:
        """Whether tiny copies are measured."""
        return self.data == TINY


class TableRun:
    """One table with one model.

    Args:
        output: folder of the results; each table has its own in it.
        batch_size: questions or images at once.
        device: None chooses by the machine.

    Raises:
        UsageError: there is no such model or device.
        ValueError: there is no such directory of data, or none of the rows can be measured in it.
    """

    def __init__(self, table: Table, settings: Settings, output: Path, batch_size: int = 8, device: str | None = None):
        self.table, self.settings, self.batch_size, self.device = table, settings, batch_size, device
        self.folder = output / table.name
        if settings.data is not None and not settings.tiny and not Path(settings.data).is_dir():
            raise ValueError(f"--data {settings.data}: no such directory; give one, or {TINY}")
        options = LoadOptions(device, settings.dtype)
        self.answerer = Answerer(settings.model, options, settings.seed, settings.whisper)
        self.data = self.folder / "data" if settings.tiny else Path(settings.data or "")
        self.runners: dict[str, Callable[[list[Row]], dict[str, Measured]]] = {
            "asr": self._asr,
            "geneval": self._geneval,
            "fid": self._fid,
            "lmms": self._lmms,
        }

    def measure(self, rows: list[str] | None = None) -> str:
        """Measure what has not been measured yet; returns the table as Markdown.

        Args:
            rows: names of rows; None is all.

        Raises:
            ValueError: an unknown row, or data in a wrong layout, or a library is missing.
            RuntimeError: lmms-eval failed.
        """
        names = [row.name for row in self.table.rows]
        if unknown := sorted(set(rows or ()) - set(names)):
            raise ValueError(f"table {self.table.name} has no row {', '.join(unknown)}; it has {', '.join(names)}")
        chosen = [row for row in self.table.rows if rows is None or row.name in rows]
        if self.settings.tiny:
            _tiny().raise_if_no_copy(self.table, chosen)
        claim(self.folder, vars(self.settings))
        known = read_measured(self.folder)
        found = {row.name: Measured(reason=self._excuse(row, chosen)) for row in self.table.rows} | known
        for runner, run in self.runners.items():
            waiting = [row for row in chosen if row.runner == runner and row.name not in known]
            waiting = [row for row in waiting if self._excuse(row, chosen) is None]
            if waiting:
                found |= run(waiting)
                write_results(self.folder, self.table, found, vars(self.settings))
        return write_results(self.folder, self.table, found, vars(self.settings))

    def _excuse(self, row: Row, chosen: list[Row]) -> str | None:
        """Why a row is not measured, before anything is tried."""
        if row not in chosen:
            return "not asked for"
        if row.runner == "none":
            return "nothing runs it"
        if self.settings.tiny and row.tiny is None:
            return f"no tiny copy; {NOT_REAL}"
        if self.settings.data is None and (row.runner != "lmms" or row.task in _own_tasks()):
            return f"needs --data: {row.data}"
        return None

    def _asr(self, rows: list[Row]) -> dict[str, Measured]:
        if find_spec("jiwer") is None:
            raise ValueError(f"error rates need jiwer, which is not installed: {lmms.INSTALL}")
        if self.settings.tiny:
            tasks = [str(row.task) for row in rows]
            _tiny().write_corpora(self.data, tasks, self.settings.limit or 1, self.settings.seed)
        found = {}
        corpora = [(row, asr.read_corpus(str(row.task), self.data, self.settings.limit)) for row in rows]
        for row, recordings in corpora:
            if not recordings:
                found[row.name] = self._no_data(row, asr.CORPORA[str(row.task)].folder)
                continue
            journal = Journal(self.folder / f"{row.task}.jsonl", vars(self.settings))
            options = {"batch_size": self.batch_size, "prompt": self.table.prompt, **self.table.decoding}
            found[row.name] = asr.measure(self.answerer, str(row.task), row.metrics[0], recordings, journal, **options)
        return found

    def _make_prompts(self) -> None:
        if self.settings.tiny:
            _tiny().write_generation(self.data, self.settings.limit or 1, self.settings.seed)

    def _geneval(self, rows: list[Row]) -> dict[str, Measured]:
        self._make_prompts()
        prompts = drawing.read_geneval(self.data, None if self.settings.tiny else self.settings.limit)
        if not prompts:
            return {row.name: self._no_data(row, f"geneval/{drawing.METADATA}") for row in rows}
        folder = self.folder / "geneval"
        drawing.draw_geneval(self.answerer, prompts, folder, self.batch_size)
        if self.settings.tiny:
            _tiny().judge_geneval(folder)
        scores = drawing.geneval_scores(folder)
        missing = Measured(reason=drawing.DETECTOR.format(folder=folder) if not scores else "no such prompt")
        judge = "judged by code" if self.settings.tiny else None
        judged = {name: Measured(score.value, score.samples, judge) for name, score in scores.items()}
        return {row.name: judged.get(row.metrics[0], missing) for row in rows}

    def _fid(self, rows: list[Row]) -> dict[str, Measured]:
        (row,) = rows
        drawn = self.folder / "fid"
        if find_spec("cleanfid") is None:
            return {row.name: Measured(reason=f"needs clean-fid: {lmms.INSTALL}")}
        self._make_prompts()
        if self.settings.tiny:
            self.answerer.load("image_gen", "vision")
        number = drawing.draw_fid(self.answerer, self.data, drawn, self.settings.limit, self.batch_size)
        if not number:
            return {row.name: self._no_data(row, "fid/meta_data.json")}
        features = self._vision_features if self.settings.tiny else None
        reason = "features of the model's own vision tower, not FID" if features else None
        device = str(self.answerer.session.device)
        value = drawing.fid(drawn, self.data / "fid" / "images", device, features)
        return {row.name: Measured(round(value, 4), number, reason)}

    @torch.no_grad()
    def _vision_features(self, images: torch.Tensor) -> torch.Tensor:
        """Mean of the vision tower's tokens, [B, H], of images float [B, 3, h, w] in 0..255."""
        side = read_image_config(self.answerer.session.source).native_side
        images = torch.nn.functional.interpolate(images, (side, side), mode="bicubic").clamp(0, 255)
        processor, model = self.answerer.session.processor, self.answerer.model
        inputs = processor.image_processor(list(images.round().to(torch.uint8).cpu()), return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        outputs = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        return torch.stack([tokens.float().mean(dim=0) for tokens in outputs.pooler_output])

    def _lmms(self, rows: list[Row]) -> dict[str, Measured]:
        lmms.raise_if_missing()
        include, environment, names = None, {}, {str(row.task): str(row.task) for row in rows}
        found: dict[str, Measured] = {}
        if self.settings.tiny:
            tiny = _tiny()
            include = tiny.write_lmms_tasks(
                self.data, rows, [lmms.TASKS, lmms.their_tasks()], self.settings.limit or 1, self.settings.seed
            )
            names = {str(row.task): tiny.task_name(row) for row in rows}
            environment = {"HF_HOME": str((self.data / "hub").resolve()), "HF_HUB_OFFLINE": "1"}
            # VoiceBench's module wants a key when it is imported; no task of the copies asks a judge.
            environment |= {"OPENAI_API_KEY": os.environ.get("OPENAI_API_KEY", "none")}
        else:
            for task in set(names) & _own_tasks():
                written = own_data.own_task(task, self.data, self.folder / "tasks", self.settings.limit)
                include = include or written
                missing = [] if written else [row for row in rows if row.task == task]
                found |= {row.name: self._no_data(row, str(row.data)) for row in missing}
        rows = [row for row in rows if row.name not in found]
        if not rows:
            return found
        model: dict[str, Any] = {
            "pretrained": self.settings.model,
            "dtype": self.settings.dtype,
            "device": self.device,
        }
        model |= {"use_whisper_encoder": self.settings.whisper or None, **self.table.video}
        how = lmms.LmmsRun(model, self.folder, self.batch_size, self.settings.limit, self.settings.seed, environment)
        results = how.results([names[str(row.task)] for row in _first_of_tasks(rows)], include, self.table.decoding)
        return found | {row.name: lmms.measured(row, names[str(row.task)], results) for row in rows}

    def _no_data(self, row: Row, place: str) -> Measured:
        return Measured(reason=f"no {place} in {self.data}; from {row.data}")


def _tiny() -> ModuleType:
    """What makes tiny copies.

    Raises:
        ValueError: this is no checkout, which has the recipe of Ming-Tiny.
    """
    if find_spec("training") is None:
        raise ValueError(f"--data {TINY} needs the recipe of Ming-Tiny; run it in a checkout of the repository")
    from . import tiny

    return tiny


def _own_tasks() -> set[str]:
    return {path.stem for path in lmms.TASKS.glob("*.yaml")}


def _first_of_tasks(rows: list[Row]) -> list[Row]:
    """One row for every task."""
    return list({row.task: row for row in rows}.values())
