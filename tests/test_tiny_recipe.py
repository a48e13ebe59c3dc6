"""The whole recipe of Ming-Tiny, a few steps of every stage, through its command line."""

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

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
