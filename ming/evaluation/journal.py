"""Answers as they come, so that an interrupted run goes on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Journal:
    """Records by key in a file of JSON lines, each on the disk before the next is made.

    A line that a kill left unfinished is dropped when the file is read.

    Args:
        path: of the file; it is made where it does not exist.
        settings: what the records depend on, such as the model and the seed; JSON values.

    Raises:
        ValueError: the file was written with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.records: dict[str, dict] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            os.truncate(path, sum(map(len, lines[:-1])))
            lines.pop()
        if not lines:
            self._write([{"settings": settings}])
            return
        header, *records = map(json.loads, lines)
        raise_if_changed(path, header["settings"], settings)
        self.records = {record["key"]: record for record in records}

    def add(self, records: Iterable[dict]) -> None:
        """Append records; each has a "key"."""
        records = list(records)
        self._write(records)
        self.records |= {record["key"]: record for record in records}

    def _write(self, records: list[dict]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())


def raise_if_changed(path: Path, found: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse to go on with what was made with other settings.

    Raises:
        ValueError: the settings differ.
    """
    if changed := sorted(name for name in found.keys() | settings.keys() if found.get(name) != settings.get(name)):
        raise ValueError(f"{path} was made with another {', '.join(changed)}; give another --output, or delete it")
