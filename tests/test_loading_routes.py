"""Every way to load the model, each in a fresh process, offline, with an empty cache and another working directory.

The answers of all routes to one chat with an image and a sound must equal those of the model that was saved.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from thinker_helpers import ROOT, tiny_model

from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor

AUTO_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
AUTO_MAP = {"AutoConfig": "ming/configuration_bailingmm.BailingMMConfig"} | dict.fromkeys(
    AUTO_MODELS, "ming/modeling_bailingmm.BailingMMNativeForConditionalGeneration"
)
PROCESSOR_FILES = (
    "chat_template.jinja",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
PACKAGING = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# The question, as code: it runs here and in every fresh process.
QUESTION = """
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

torch.set_num_threads(1)

def ask(model, processor):
    pixels = (np.arange(64 * 96 * 3) * 7 % 251).astype(np.uint8).reshape(64, 96, 3)
    sound = np.sin(np.arange(8000) / 7).astype(np.float32)
    content = [
        {"type": "image", "image": Image.fromarray(pixels)},
        {"type": "audio", "audio": sound, "sample_rate": 16000},
        {"type": "text", "text": "what is it?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )
    out = model.generate(
        **inputs, max_new_tokens=8, eos_token_id=-1, return_dict_in_generate=True, output_logits=True
    )
    text = processor.batch_decode(out.sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=False)[0]
    return text, torch.stack(out.logits)
"""
# What a fresh process reports: the answer, and where its code came from.
REPORT = """
import inspect, json, os
text, logits = ask(model, processor)
save_file({"logits": logits}, os.environ["ANSWER"] + ".safetensors")
report = {"text": text, "class": type(model).__name__, "file": inspect.getfile(type(model))}
with open(os.environ["ANSWER"] + ".json", "w") as file:
    json.dump(report, file)
"""
BY_AUTO = """
import transformers
from transformers import AutoConfig, AutoProcessor
options = {options}
models = [
    getattr(transformers, name).from_pretrained({path!r}, **options) for name in {auto!r}
]
assert len({{type(model).__name__ for model in models}}) == 1, models
assert AutoConfig.from_pretrained({path!r}, **options).model_type == "bailingmm"
model, processor = models[-1], AutoProcessor.from_pretrained({path!r}, **options)
"""
BY_CLASS = """
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
model = BailingMMNativeForConditionalGeneration.from_pretrained({path!r}, low_cpu_mem_usage=True)
processor = BailingMMProcessor.from_pretrained({path!r})
"""
REMOTE_CODE = {"trust_remote_code": True}


def by_auto(path, **options):
    return BY_AUTO.format(path=str(path), options=options, auto=AUTO_MODELS)


def python_files(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*.py")}


def by_class(path):
    return BY_CLASS.format(path=str(path))


def save_to(directory):
    return f"model.save_pretrained({str(directory)!r}); processor.save_pretrained({str(directory)!r})\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("routes")


@pytest.fixture(scope="module")
def model() -> BailingMMNativeForConditionalGeneration:
    special = {"vocab_size": 1024, "image_patch_token": 1002, "pad_token_id": 737, "eos_token_id": 737}
    return tiny_model(llm_config=special)


@pytest.fixture(scope="module")
def weights_only(model, workspace) -> Path:
    """Config without auto_map, weights, and the processor's data: no code."""
    directory = workspace / "weights_only"
    model.save_pretrained(directory)
    for name in PROCESSOR_FILES:
        shutil.copy(ROOT / name, directory / name)
    assert not list(directory.glob("*.py"))
    assert "auto_map" not in json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return directory


@pytest.fixture(scope="module")
def repository(weights_only, workspace) -> Path:
    """The same with the code of this repository and its auto_map: a Hub model repository."""
    directory = workspace / "repository"
    shutil.copytree(weights_only, directory)
    (directory / "ming").mkdir()
    for path in (*ROOT.glob("*.py"), *ROOT.glob("ming/[!_]*.py")):
        shutil.copy(path, directory / path.relative_to(ROOT))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(config | {"auto_map": AUTO_MAP}), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def expected(model, repository):
    """The answer of the model that was saved, in this process."""
    scope: dict = {}
    exec(QUESTION, scope)
    return scope["ask"](model, BailingMMProcessor.from_pretrained(repository))


def run(script: str, home: Path, expected, cwd: Path | None = None, path: Path | None = None, **variables) -> dict:
    """Run a route in a fresh process; its answer must be the expected one. `home` starts empty."""
    home.mkdir(parents=True)
    working_directory = cwd or home / "elsewhere"
    working_directory.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"ANSWER": str(home / "answer"), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    process = subprocess.run(
        [sys.executable, "-c", QUESTION + script + REPORT],
        cwd=working_directory,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "custom code" not in process.stdout + process.stderr  # a question that nobody is there to answer
    report = json.loads((home / "answer.json").read_text(encoding="utf-8"))
    assert report["text"] == expected[0]
    torch.testing.assert_close(load_file(home / "answer.safetensors")["logits"], expected[1], atol=1e-5, rtol=0)
    assert report["class"] == "BailingMMNativeForConditionalGeneration"
    return report


@pytest.fixture(scope="module")
def route_1_local(repository, workspace, expected) -> Path:
    """Route 1: Auto classes on a local directory with its own code; also writes a directory for route 4."""
    target = workspace / "saved_by_route_1"
    script = by_auto(repository, **REMOTE_CODE) + save_to(target)
    report = run(script, workspace / "route_1_local", expected)
    assert "transformers_modules" in report["file"]
    return target


@pytest.fixture(scope="module")
def route_1_hub(repository, workspace, expected) -> Path:
    """Route 1 through a Hub cache (symlinks to blobs, offline); also writes a directory for route 4."""
    cache = workspace / "hub"
    snapshot = cache / "models--org--Ming-Toy" / "snapshots" / COMMIT
    blobs, refs = snapshot.parents[1] / "blobs", snapshot.parents[1] / "refs"
    for folder in (snapshot, blobs, refs):
        folder.mkdir(parents=True)
    (refs / "main").write_text(COMMIT, encoding="utf-8")
    for path in (path for path in repository.rglob("*") if path.is_file()):
        name = path.relative_to(repository)
        blob, link = blobs / "-".join(name.parts), snapshot / name
        shutil.copy(path, blob)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    target = workspace / "saved_from_hub"
    script = by_auto("org/Ming-Toy", **REMOTE_CODE) + save_to(target)
    report = run(script, workspace / "route_1_hub", expected, HF_HUB_CACHE=str(cache))
    assert COMMIT in report["file"]
    return target


def test_route_1_local_directory(route_1_local):
    assert (route_1_local / "model.safetensors").exists()


def test_route_1_hub_cache(route_1_hub):
    assert (route_1_hub / "model.safetensors").exists()


def test_route_2_checkout_as_working_directory(repository, workspace, expected):
    report = run(by_class("."), workspace / "route_2_cwd", expected, cwd=repository)
    assert Path(report["file"]) == repository / "ming" / "modeling_bailingmm.py"


def test_route_2_checkout_on_the_path(weights_only, workspace, expected):
    """The code of the checkout, weights from elsewhere, without auto_map."""
    report = run(by_class(weights_only), workspace / "route_2_path", expected, path=ROOT)
    assert Path(report["file"]) == ROOT / "ming" / "modeling_bailingmm.py"


def test_route_3_installed_package(weights_only, workspace, expected):
    """`pip install`, `import ming`: a directory of weights loads by the Auto classes without trusting any code."""
    source, target = workspace / "source", workspace / "site"
    source.mkdir()
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in PACKAGING)):
        shutil.copy(path, source / path.name)
    for package in ("ming", "audio_detokenizer", "image_gen"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    process = subprocess.run([sys.executable, "-m", *install, str(source)], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    shutil.rmtree(source)
    report = run("import ming\n" + by_auto(weights_only), workspace / "route_3", expected, path=target)
    assert Path(report["file"]) == target / "ming" / "modeling_bailingmm.py"


def test_route_4_saved_directory_by_auto_classes(route_1_local, repository, workspace, expected):
    """Saved by route 1 and moved: code, auto_map, processor and equal answers without the original."""
    moved = workspace / "moved_route_1"
    shutil.copytree(route_1_local, moved)
    config = json.loads((moved / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == AUTO_MAP
    assert python_files(moved) == python_files(repository)
    run(by_auto(moved, **REMOTE_CODE), workspace / "route_4_auto", expected)


def test_route_4_saved_directory_by_class(route_1_local, workspace, expected):
    report = run(by_class("."), workspace / "route_4_class", expected, cwd=route_1_local)
    assert Path(report["file"]) == route_1_local / "ming" / "modeling_bailingmm.py"


def test_route_4_directory_saved_from_the_hub(route_1_hub, workspace, expected):
    """Its auto_map must name its own files and not the Hub repository, which is not reachable here."""
    config = json.loads((route_1_hub / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == AUTO_MAP
    run(by_auto(route_1_hub, **REMOTE_CODE), workspace / "route_4_hub", expected)
