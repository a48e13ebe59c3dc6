"""What was measured: tables as JSON and Markdown."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ming.evaluation.journal import raise_if_changed
from ming.files import replacing

from .tables import Row, Table

NOT_REAL = "not run here on the real data"


@dataclass(frozen=True)
class Measured:
    """The value of a row, in the unit of the published one, or why there is none.

    Args:
        value: None where nothing was measured.
        samples: number of answers or images behind it; None where the runner does not tell.
        reason: why there is no value, or what to know about it.
    """

    value: float | None = None
    samples: int | None = None
    reason: str | None = None


def write_results(folder: Path, table: Table, measured: dict[str, Measured], settings: dict[str, Any]) -> str:
    """Write results.json and results.md into a folder; returns the Markdown.

    Args:
        measured: by the names of the rows.
        settings: of the run.
    """
    rows = [{**asdict(row), "measured": asdict(measured[row.name])} for row in table.rows]
    content = {"table": table.name, "title": table.title, "source": table.source, "settings": settings, "rows": rows}
    text = markdown(table, measured, settings)
    with replacing(folder / "results.json") as path:
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(folder / "results.md") as path:
        path.write_text(text + "\n", encoding="utf-8")
    return text


def markdown(table: Table, measured: dict[str, Measured], settings: dict[str, Any]) -> str:
    """The table, its settings and its notes."""
    tiny = settings["data"] == "tiny"
    lines = [f"## {table.title}", "", f"| task | published | {'measured, tiny' if tiny else 'measured'} | samples | |"]
    lines += ["|---|---|---|---|---|"]
    lines += [_line(row, measured[row.name], tiny) for row in table.rows]
    used = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    lines += ["", f"Published: {table.source}.", f"Measured: {used}."]
    if tiny:
        lines.append(f"Tiny: small local copies with Ming-Tiny's shapes and sentences; {NOT_REAL}.")
    return "\n".join(lines)


def _line(row: Row, measured: Measured, tiny: bool) -> str:
    value = "-" if measured.value is None else f"{measured.value:.4g}"
    published = "-" if row.published is None else f"{row.published:g}"
    notes = [measured.reason, None if tiny and measured.value is not None else row.note]
    notes.append("asks a judge by API" if row.judge else None)
    name = f"{row.name} (lower is better)" if row.better == "lower" else row.name
    samples = "" if measured.samples is None else str(measured.samples)
    return f"| {name} | {published} | {value} | {samples} | {'; '.join(note for note in notes if note)} |"


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new folder, or compare those of an earlier run, whose answers and images lie there.

    Raises:
        ValueError: the earlier run had other settings.
    """
    path = folder / "settings.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with replacing(path) as partial:
            partial.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return
    raise_if_changed(folder, json.loads(path.read_text(encoding="utf-8")), settings)


def read_measured(folder: Path) -> dict[str, Measured]:
    """The values that an earlier run wrote, by the names of the rows."""
    path = folder / "results.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    measured = {row["name"]: Measured(**row["measured"]) for row in rows}
    return {name: value for name, value in measured.items() if value.value is not None}
