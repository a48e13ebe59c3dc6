"""Tasks of lmms-eval with this model: run by `make test-evaluation`, in an environment that has lmms-eval."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lmms_eval.models import MODEL_REGISTRY_V2

from evaluation import lmms, tiny
from evaluation.drawing import fid
from evaluation.run import Settings, TableRun
from evaluation.tables import NAMES, read_table
from ming.cli.usage import UsageError
from ming.evaluation.lmms_model import Ming, cut, decoding, heard

ROOT = Path(__file__).resolve().parents[2]
# What Ming-Tiny can reach, in percent: it knows no letters of options, refuses nothing and gives no boxes.
AT_LEAST = {"AI2D": 30, "General": 60, "ChartQA_TEST": 60, "DocVQA_TEST": 60, "TextVQA_VAL": 60, "InfoSeek_H-mean": 40}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("asr", "generation")])
def test_tiny_copies_run_through_lmms_eval(name, tmp_path):
    table = read_table(name)
    text = TableRun(table, Settings(str(ROOT), "tiny", 6), tmp_path, batch_size=4).measure()
    content = json.loads((tmp_path / name / "results.json").read_text())
    measured = {row["name"]: row["measured"] for row in content["rows"]}
    for row in (row for row in table.rows if row.tiny):
        assert measured[row.name]["samples"] == 6, text
        assert measured[row.name]["value"] >= AT_LEAST.get(row.name, 0), text
    answers = (tmp_path / name / "answers.jsonl").read_text().splitlines()
    assert len(answers) == 1 + 6 * len({row.task for row in table.rows if row.tiny})


def test_an_interrupted_task_goes_on(tmp_path):
    run = TableRun(read_table("gui"), Settings(str(ROOT), "tiny", 4), tmp_path, batch_size=1)
    before = run.measure()
    answers = tmp_path / "gui" / "answers.jsonl"
    kept = answers.read_text().splitlines()[:3]
    answers.write_text("\n".join(kept) + "\n" + '{"key": "[')  # killed after two answers
    (tmp_path / "gui" / "results.json").unlink()
    assert run.measure() == before
    assert answers.read_text().splitlines()[:3] == kept and len(answers.read_text().splitlines()) == 5


def test_a_failure_of_lmms_eval_shows_its_last_words(tmp_path):
    run = lmms.LmmsRun({"pretrained": str(ROOT), "colour": "red"}, tmp_path, limit=1)
    with pytest.raises(RuntimeError, match="unknown model_args colour; options of videos are"):
        run.results(["ai2d"], None, {})


def test_the_model_is_checked_before_its_weights(tmp_path):
    with pytest.raises(UsageError, match="no such directory"):
        Ming(pretrained=str(tmp_path / "nowhere" / "else"))
    with pytest.raises(ValueError, match="nframes"):
        Ming(pretrained=str(ROOT), nframes=4, fps=2)


def test_decoding_is_greedy_unless_a_temperature_is_asked_for():
    assert decoding({"until": ["\n\n"]}) == {"max_new_tokens": 512, "do_sample": False}
    assert decoding({"temperature": 0, "top_p": 1.0, "max_new_tokens": 16, "num_beams": 1}) == {
        **{"max_new_tokens": 16, "num_beams": 1},
        "do_sample": False,
    }
    assert decoding({"temperature": 0.7, "top_p": 0.9}) == {
        **{"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 512},
        "do_sample": True,
    }


def test_an_answer_ends_at_the_strings_of_the_task():
    assert cut("red\n\nASSISTANT: blue", ["\n\n"]) == "red" and cut(" red ", None) == "red"


def test_decoded_recordings_are_heard_not_seen():
    recording = {"array": [0.0], "sampling_rate": 16_000}
    items = [{"type": "video", "url": recording}, {"type": "video", "url": "a.mp4"}, {"type": "text", "text": "a"}]
    (message,) = heard([{"role": "user", "content": items}])
    assert message["content"] == [{"type": "audio", "url": recording}, *items[1:]]


def test_the_manifest_names_a_model_of_chats():
    MODEL_REGISTRY_V2.register_manifest(lmms.manifest(), overwrite=True)
    assert MODEL_REGISTRY_V2.get_model_class("ming") is Ming


def test_fid_of_a_folder_with_itself_is_nothing(tmp_path):
    tiny.write_generation(tmp_path, 8, 0)
    folder = tmp_path / "fid" / "images"
    features = lambda images: images.mean(dim=(2, 3))  # noqa: E731
    assert fid(folder, folder, "cpu", features) == pytest.approx(0, abs=1e-3)


def test_images_of_prompts_are_compared_with_pictures(tmp_path):
    text = TableRun(read_table("generation"), Settings(str(ROOT), "tiny", 4), tmp_path).measure(["FID"])
    content = json.loads((tmp_path / "generation" / "results.json").read_text())
    (measured,) = [row["measured"] for row in content["rows"] if row["name"] == "FID"]
    assert measured["samples"] == 4 and 0 <= measured["value"] < 0.1, text
    assert "features of the model's own vision tower, not FID" in text


def test_lmms_evals_client_of_openai_asks_the_server(tmp_path):
    """As docs/evaluation.md says."""
    rows = [row for row in read_table("ocr").rows if row.name == "ChartQA_TEST"]
    tasks = tiny.write_lmms_tasks(tmp_path / "data", rows, [lmms.TASKS, lmms.their_tasks()], 4, 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    log = tmp_path / "log"
    command = [sys.executable, "-m", "ming", "serve", "--model", str(ROOT), "--name", "ming-tiny", "--port", port]
    with log.open("w") as said, subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said) as server:
        try:
            deadline = time.monotonic() + 120
            while f":{port}" not in log.read_text():
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            command = [sys.executable, "-m", "lmms_eval", "--model", "openai", "--tasks", "tiny_chartqa"]
            command += ["--model_args", f"model_version=ming-tiny,base_url=http://127.0.0.1:{port}/v1,timeout=120"]
            command += ["--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--verbosity", "DEBUG"]
            environment = {**os.environ, "OPENAI_API_KEY": "none", "HF_HOME": str(tmp_path / "hub")}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        finally:
            server.terminate()
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(file.read_text())["results"]["tiny_chartqa"]["relaxed_overall,none"] >= 0.5
