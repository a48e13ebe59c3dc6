"""The tables: which rows they have, what runs each row, what was published."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "tables"
NAMES = ("image", "encyclopedia", "video", "speechqa", "asr", "infoseek", "ocr", "gui", "generation")
RUNNERS = ("lmms", "asr", "geneval", "fid", "none")
DIRECTIONS = ("higher", "lower")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        name: as it was published.
        published: value of Ming-Lite-Omni, in the unit of the source; None where none is known.
        runner: one of `RUNNERS`.
        task: of the runner; several rows may share one.
        metric: of the task; the mean of several.
        scale: factor from the runner's unit to that of `published`.
        better: "higher" or "lower".
        data: where the data come from.
        judge: whether the task asks another model by an API for its verdicts.
        tiny: the kind of small local copy that `--data tiny` makes; None where there is none.
        note: what the reader must know.
    """

    name: str
    published: float | None
    runner: str
    task: str | None = None
    metric: str | list[str] | None = None
    scale: float = 1.0
    better: str = "higher"
    data: str | None = None
    judge: bool = False
    tiny: str | None = None
    note: str | None = None

    def __post_init__(self):
        if self.runner not in RUNNERS:
            raise ValueError(f"row {self.name}: runner {self.runner!r} is unknown; give one of {', '.join(RUNNERS)}")
        if self.better not in DIRECTIONS:
            raise ValueError(f"row {self.name}: better={self.better!r}; give one of {', '.join(DIRECTIONS)}")
        missing = [name for name in ("task", "metric", "data") if getattr(self, name) is None]
        if self.runner != "none" and missing:
            raise ValueError(f"row {self.name}: {', '.join(missing)} missing; only a row of runner none has none")

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics whose mean is the value of the row."""
        return [self.metric] if isinstance(self.metric, str) else list(self.metric or ())


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Args:
        name: its file without ending.
        title: above it.
        source: of the published values.
        rows: in the order of the source.
        prompt: before recordings; tasks of lmms-eval bring their own.
        decoding: options of `generate`; None leaves them to the task.
        video: options of the processor's videos, of `ming.video.VideoOptions`.
    """

    name: str
    title: str
    source: str
    rows: tuple[Row, ...]
    prompt: str | None = None
    decoding: dict[str, Any] = field(default_factory=dict)
    video: dict[str, Any] = field(default_factory=dict)

    def of_runner(self, *runners: str) -> list[Row]:
        """The rows that one of the runners measures."""
        return [row for row in self.rows if row.runner in runners]


def read_table(name: str, folder: Path = FOLDER) -> Table:
    """The table of a name.

    Raises:
        ValueError: there is none, or its file has an unknown key.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"there is no table {name!r}; there are {', '.join(NAMES)}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = content.pop("rows")
    for keys, known in ((content, Table), *((row, Row) for row in rows)):
        if unknown := sorted(set(keys) - {each.name for each in fields(known)}):
            raise ValueError(f"{path.name}: unknown {', '.join(unknown)} of a {known.__name__.lower()}")
    return Table(name, rows=tuple(Row(**row) for row in rows), **content)
