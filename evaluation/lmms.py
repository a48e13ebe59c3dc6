"""lmms-eval with this model: running tasks in a process of their own.

`python -m evaluation.lmms ARGUMENTS` is `lmms-eval ARGUMENTS` that knows `--model ming` also from a checkout; after an
installation, `lmms-eval` knows it by the entry point `lmms_eval.models`.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ming.evaluation.plugin import manifest

from .results import Measured
from .tables import Row

ROOT = Path(__file__).resolve().parents[1]
TASKS = Path(__file__).parent / "lmms_tasks"
INSTALL = "pip install '.[evaluation]'"
LAST_LINES = 12  # of the log, that an error shows


def raise_if_missing() -> None:
    """Refuse tasks of lmms-eval where it is not installed.

    Raises:
        ValueError: it is not.
    """
    if find_spec("lmms_eval") is None:
        raise ValueError(f"these tasks need lmms-eval, which is not installed: {INSTALL}")


def their_tasks() -> Path:
    """The folder of lmms-eval's own tasks."""
    spec = find_spec("lmms_eval")
    assert spec is not None and spec.origin is not None, "raise_if_missing comes first"
    return Path(spec.origin).parent / "tasks"


@dataclass(frozen=True)
class LmmsRun:
    """How lmms-eval is run.

    Args:
        model_args: of the class in `ming/evaluation/lmms_model.py`.
        folder: of the log and the answers.
        batch_size, limit, seed: of lmms-eval; a limit of None is all samples.
        environment: variables beside those of this process.
    """

    model_args: dict[str, Any]
    folder: Path
    batch_size: int = 1
    limit: int | None = None
    seed: int = 0
    environment: dict[str, str] | None = None

    def results(self, tasks: list[str], include: Path | None, decoding: dict[str, Any]) -> dict[str, Any]:
        """Run tasks; returns the content of lmms-eval's file of results.

        Args:
            include: folder with further tasks.
            decoding: options that take the place of the tasks' own.

        Raises:
            RuntimeError: lmms-eval failed; its last words are in the message.
        """
        raise_if_missing()
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "lmms-eval.log"
        model_args = {**self.model_args, "seed": self.seed, "journal": self.folder / "answers.jsonl"}
        with TemporaryDirectory() as output:
            command = [sys.executable, "-m", "evaluation.lmms", "--model", "ming", "--tasks", ",".join(tasks)]
            command += ["--model_args", _joined(model_args), "--batch_size", str(self.batch_size)]
            command += ["--seed", str(self.seed), "--output_path", output, "--verbosity", "DEBUG"]
            command += ["--limit", str(self.limit)] if self.limit else []
            command += ["--include_path", str(include)] if include else []
            command += ["--gen_kwargs", _joined(decoding)] if decoding else []
            paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            environment = {**os.environ, "PYTHONPATH": paths, **(self.environment or {})}
            with log.open("w", encoding="utf-8") as said:
                done = subprocess.run(command, env=environment, stdout=said, stderr=subprocess.STDOUT)  # nosec B603
            files = sorted(Path(output).rglob("*_results.json"))
            if done.returncode or not files:
                words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
                raise RuntimeError(f"lmms-eval failed, see {log}:\n" + "\n".join(words))
            return json.loads(files[-1].read_text(encoding="utf-8"))


def _joined(options: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in options.items() if value is not None)


def measured(row: Row, task: str, results: dict[str, Any]) -> Measured:
    """The value of a row in lmms-eval's results.

    Args:
        task: its name there; of a group without a value of its own, the mean of its tasks counts.

    Raises:
        ValueError: the results have no such metric.
    """
    names = [task] if _metrics(results, task) else results.get("group_subtasks", {}).get(task, [task])
    values, samples = [], 0
    for name in names:
        metrics = _metrics(results, name)
        found = [metrics[metric] for metric in row.metrics if isinstance(metrics.get(metric), (int, float))]
        if len(found) != len(row.metrics):
            raise ValueError(f"lmms-eval's task {name} gave {', '.join(metrics) or 'nothing'}, not {row.metric}")
        values.append(sum(found) / len(found))
        samples += results.get("n-samples", {}).get(name, {}).get("effective", 0)
    return Measured(row.scale * sum(values) / len(values), samples or None)


def _metrics(results: dict[str, Any], task: str) -> dict[str, Any]:
    """Values by metric; lmms-eval writes "METRIC,FILTER"."""
    found = results.get("results", {}).get(task) or results.get("groups", {}).get(task) or {}
    return {name.split(",")[0]: value for name, value in found.items() if "_stderr" not in name and name != "alias"}


def main() -> None:
    """lmms-eval's command line."""
    raise_if_missing()
    from lmms_eval.__main__ import cli_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    cli_evaluate()


if __name__ == "__main__":
    main()
