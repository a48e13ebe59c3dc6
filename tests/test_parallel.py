"""Tensor and expert parallel: two processes give what one gives, and save under the released names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from PIL import Image
from transformers.distributed import DistributedConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor

torch.set_num_threads(1)
dist.init_process_group("gloo")
repository, target, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
content = [{"type": "image", "image": Image.new("RGB", (96, 64), "red")}, {"type": "text", "text": "What is it?"}]
processor = BailingMMProcessor.from_pretrained(repository)
chat = [{"role": "user", "content": content}]
inputs = processor.apply_chat_template(
    chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
)
load = BailingMMNativeForConditionalGeneration.from_pretrained
with torch.no_grad():
    wanted = load(repository, dtype=torch.float32).eval()(**inputs).logits
    model = load(repository, dtype=torch.float32, distributed_config=DistributedConfig(**sizes)).eval()
    logits = model(**inputs).logits
ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
experts = model.model.model.layers[0].mlp.experts.gate_up_proj.to_local()
model.save_pretrained(target)
difference = ((logits - wanted).abs().max() / wanted.abs().max()).item()
report = {"difference": difference, "experts": list(experts.shape), "ids": ids}
with open(f"{target}.{dist.get_rank()}.json", "w") as file:
    json.dump(report, file)
"""


@pytest.mark.parametrize(
    ("sizes", "local_experts"),
    [({"tp_size": 2}, [8, 96, 192]), ({"tp_size": 2, "ep_size": 2}, [4, 192, 192])],
    ids=["tensor", "expert"],
)
def test_two_processes_are_one(tmp_path, sizes, local_experts):
    script, target = tmp_path / "script.py", tmp_path / "saved"
    script.write_text(SCRIPT, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, str(script), str(ROOT), str(target), json.dumps(sizes)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = [json.loads(Path(f"{target}.{rank}.json").read_text()) for rank in range(2)]
    assert [report["experts"] for report in reports] == [local_experts] * 2
    assert max(report["difference"] for report in reports) < 1e-5
    assert reports[0]["ids"] == reports[1]["ids"]
    saved, shipped = (load_file(path / "model.safetensors") for path in (target, ROOT))
    assert saved.keys() == shipped.keys()
    assert all((saved[name] - tensor.float()).abs().max() == 0 for name, tensor in shipped.items())
