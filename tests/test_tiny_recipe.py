"""The whole recipe of Ming-Tiny, a few steps of every stage, through its command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

from training.tiny import __main__ as recipe
from training.tiny import evaluate, evaluate_drawing, evaluate_speech

ROOT = Path(__file__).resolve().parents[1]


def test_quick_recipe_writes_a_loadable_checkpoint(tmp_path):
    command = [sys.executable, "-m", "training.tiny", "all", "--quick", "--threads", "1"]
    command += ["--runs", str(tmp_path / "runs"), "--speech", str(tmp_path / "speech")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    trained = tmp_path / "runs" / "model"
    model = AutoModelForMultimodalLM.from_pretrained(trained, trust_remote_code=True, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(trained, trust_remote_code=True)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "What comes after three?"}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.isfinite(model(**inputs).logits).all()
    assert model.generate(**inputs, generation_mode="image", num_inference_steps=1, seed=0).images[0].size == (96, 96)
    assert str(ROOT) not in (trained / "config.json").read_text()


@pytest.mark.parametrize("command", [evaluate, evaluate_speech, evaluate_drawing])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--samples", "0"), "argument --samples: 0 is not accepted; give a whole number of"),
        (("--batch-size", "-1"), "argument --batch-size: -1 is not accepted; give a whole number of"),
        (("--seed", "nan"), "argument --seed: nan is not accepted; give a whole number of"),
        (("--dtype", "float7"), "argument --dtype: invalid choice: 'float7'"),
        (("--json", "nowhere/results.json"), "--json nowhere/results.json: the directory nowhere does not exist"),
    ],
)
def test_measurements_refuse_what_they_cannot_do_before_they_begin(command, options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["measure", *options, "--model", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [("--steps", "0"), ("--learning-rate", "nan"), ("--scale", "0"), ("--threads", "-1"), ("--seed", "x")]
)
def test_the_recipe_refuses_numbers_that_train_nothing(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training.tiny", "all", *options])
    with pytest.raises(SystemExit) as ended:
        recipe.main()
    assert ended.value.code == 2 and f"argument {options[0]}: {options[1]} is not accepted" in capsys.readouterr().err
