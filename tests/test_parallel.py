"""Tensor and expert parallel: two processes give what one gives, and save under the released names."""

import json
from pathlib import Path

import pytest
import torch
from parallel_helpers import run_on_two
from PIL import Image
from safetensors.torch import load_file
from thinker_helpers import Chat, batch, tiny_model

from ming.processing_bailingmm import BailingMMProcessor

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
begin()
repository, target, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
inputs = torch.load(f"{target}.inputs")
load = BailingMMNativeForConditionalGeneration.from_pretrained
with torch.no_grad():
    wanted = load(repository, dtype=torch.float32).eval()(**inputs).logits
    model = load(repository, dtype=torch.float32, distributed_config=DistributedConfig(**sizes)).eval()
    logits = model(**inputs).logits
ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
weights = {
    "experts": model.model.model.layers[0].mlp.experts.gate_up_proj,
    "embedding": model.get_input_embeddings().weight,
    "head": model.get_output_embeddings().weight,
}
model.save_pretrained(target)
difference = ((logits - wanted).abs().max() / wanted.abs().max()).item()
local = {name: list(weight.to_local().shape) for name, weight in weights.items()}
report = {"difference": difference, "local": local, "ids": ids}
with open(f"{target}.{dist.get_rank()}.json", "w") as file:
    json.dump(report, file)
"""
PLANS = {"tensor": {"tp_size": 2}, "expert": {"tp_size": 2, "ep_size": 2}}


def reports_of(repository: Path, target: Path, inputs: dict[str, torch.Tensor], plan: str) -> list[dict]:
    """What both processes found; `target` is the directory they saved."""
    torch.save(inputs, f"{target}.inputs")
    run_on_two(SCRIPT, repository, target, json.dumps(PLANS[plan]))
    reports = [json.loads(Path(f"{target}.{rank}.json").read_text()) for rank in range(2)]
    assert max(report["difference"] for report in reports) < 1e-5
    assert reports[0]["ids"] == reports[1]["ids"]
    return reports


@pytest.mark.parametrize(("plan", "local_experts"), [("tensor", [8, 96, 192]), ("expert", [4, 192, 192])])
def test_two_processes_are_one(tmp_path, plan, local_experts):
    processor = BailingMMProcessor.from_pretrained(ROOT)
    content = [{"type": "image", "image": Image.new("RGB", (96, 64), "red")}, {"type": "text", "text": "What is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    reports = reports_of(ROOT, tmp_path / "saved", dict(inputs), plan)
    shipped = load_file(ROOT / "model.safetensors")
    half = [shipped["model.lm_head.weight"].shape[0] // 2, 192]
    local = {"experts": local_experts, "embedding": half, "head": half}
    assert [report["local"] for report in reports] == [local] * 2
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == shipped.keys()
    assert all((saved[name] - tensor.float()).abs().max() == 0 for name, tensor in shipped.items())


def test_tied_embeddings_are_split_once(tmp_path):
    model = tiny_model(llm_config={"tie_word_embeddings": True})
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    inputs = batch([Chat(1).text(3).image().text(4)])
    reports = reports_of(tmp_path / "tied", tmp_path / "saved", inputs, "tensor")
    assert [(report["local"]["embedding"], report["local"]["head"]) for report in reports] == [([160, 64],) * 2] * 2
    again = type(model).from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)
