"""Every way to load the model, each in a fresh process, offline, with an empty cache and another working directory.

Ming-Tiny answers one chat with an image and a sound, speaks and draws; the answers of all routes must be equal.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor

ROOT = Path(__file__).resolve().parents[1]
SAVED_BEFORE = Path(__file__).resolve().parent / "goldens" / "saved_before.tar.xz"
AUTO_MODELS = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
AUTO_MAP = {"AutoConfig": "ming/configuration_bailingmm.BailingMMConfig"} | dict.fromkeys(
    AUTO_MODELS, "ming/modeling_bailingmm.BailingMMNativeForConditionalGeneration"
)
PARTS = ("talker", "codec_bpe", "voices", "audio_detokenizer", "image_gen")
DATA = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "chat_template.jinja",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
CODE = ("*.py", "ming/[!_]*.py", "audio_detokenizer/*.py", "image_gen/*.py")
PACKAGES = ("ming", "audio_detokenizer", "image_gen")
PACKAGING = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")
COMMIT, NEWER_COMMIT = "0123456789abcdef0123456789abcdef01234567", "f" * 40

# The questions, as code: it runs here and in every fresh process.
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
    drawn = model.generate(**inputs, generation_mode="image", seed=0, num_inference_steps=2).images[0]
    waveform = model.speak("red", seed=0).waveforms[0]
    return text, {"logits": torch.stack(out.logits), "waveform": waveform, "image": torch.tensor(np.array(drawn))}
"""
# What a fresh process reports: the answers, and where its code came from.
REPORT = """
import inspect, json, os
text, tensors = ask(model, processor)
save_file(tensors, os.environ["ANSWER"] + ".safetensors")
part = model.audio_detokenizer.load()
report = {"text": text, "class": type(model).__name__, "file": inspect.getfile(type(model))}
report["part"] = inspect.getfile(type(part))
with open(os.environ["ANSWER"] + ".json", "w") as file:
    json.dump(report, file)
"""
BY_AUTO = """
import transformers
from transformers import AutoConfig, AutoProcessor
options = {options}
models = [
    getattr(transformers, name).from_pretrained({path!r}, dtype=torch.float32, **options) for name in {auto!r}
]
assert len({{type(model).__name__ for model in models}}) == 1, models
assert AutoConfig.from_pretrained({path!r}, **options).model_type == "bailingmm"
model, processor = models[-1].eval(), AutoProcessor.from_pretrained({path!r}, **options)
"""
BY_CLASS = """
from {prefix}modeling_bailingmm import BailingMMNativeForConditionalGeneration
from {prefix}processing_bailingmm import BailingMMProcessor
model = BailingMMNativeForConditionalGeneration.from_pretrained(
    {path!r}, low_cpu_mem_usage=True, dtype=torch.float32
).eval()
processor = BailingMMProcessor.from_pretrained({path!r})
"""
REMOTE_CODE = {"trust_remote_code": True}


def by_auto(path, **options):
    return BY_AUTO.format(path=str(path), options=options, auto=AUTO_MODELS)


def by_class(path, prefix="ming."):
    return BY_CLASS.format(path=str(path), prefix=prefix)


def save_to(directory):
    return f"model.save_pretrained({str(directory)!r}); processor.save_pretrained({str(directory)!r})\n"


def python_files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*.py")}


def copy_code(directory: Path) -> None:
    for path in (path for pattern in CODE for path in ROOT.glob(pattern)):
        target = directory / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def change_json(path: Path, change) -> None:
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("routes")


@pytest.fixture(scope="module")
def weights_only(workspace) -> Path:
    """Configurations without auto_map, weights, parts and the processor's data: no code."""
    directory = workspace / "weights_only"
    directory.mkdir()
    for name in DATA:
        shutil.copy(ROOT / name, directory / name)
    for part in PARTS:
        shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ("", "audio_detokenizer", "image_gen"):
        change_json(directory / name / "config.json", lambda fields: fields.pop("auto_map"))
    change_json(directory / "processor_config.json", lambda fields: fields.pop("auto_map"))
    assert not python_files(directory)
    return directory


@pytest.fixture(scope="module")
def repository(workspace) -> Path:
    """What is uploaded to the Hub: code, auto_map, weights and parts."""
    directory = workspace / "repository"
    directory.mkdir()
    copy_code(directory)
    for name in DATA:
        shutil.copy(ROOT / name, directory / name)
    for part in PARTS:
        shutil.copytree(
            ROOT / part, directory / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    assert json.loads((directory / "config.json").read_text(encoding="utf-8"))["auto_map"] == AUTO_MAP
    return directory


@pytest.fixture(scope="module")
def expected(repository):
    """The answers in this process."""
    scope: dict = {}
    exec(QUESTION, scope)
    model = BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32).eval()
    return scope["ask"](model, BailingMMProcessor.from_pretrained(repository))


def start(script: str, home: Path, cwd: Path | None = None, path: Path | None = None, **variables):
    """Run a script in a fresh process, offline; `home` starts empty and holds its caches."""
    home.mkdir(parents=True)
    working_directory = cwd or home / "elsewhere"
    working_directory.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"ANSWER": str(home / "answer"), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=working_directory, env=environment, capture_output=True, text=True)


def run(script: str, home: Path, expected, **options) -> dict:
    """Run a route in a fresh process; its answers must be the expected ones."""
    process = start(QUESTION + script + REPORT, home, **options)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "custom code" not in process.stdout + process.stderr  # a question that nobody is there to answer
    report = json.loads((home / "answer.json").read_text(encoding="utf-8"))
    assert report["text"] == expected[0]
    for name, found in load_file(home / "answer.safetensors").items():
        torch.testing.assert_close(found, expected[1][name], atol=1 if name == "image" else 1e-4, rtol=0)
    assert report["class"] == "BailingMMNativeForConditionalGeneration"
    return report


def make_snapshot(repository: Path, cache: Path, commit: str, ref: str) -> Path:
    """A revision of org/Ming-Toy as the Hub's cache holds it: symlinks to blobs."""
    snapshot = cache / "models--org--Ming-Toy" / "snapshots" / commit
    blobs, refs = snapshot.parents[1] / "blobs", snapshot.parents[1] / "refs"
    for folder in (snapshot, blobs, refs):
        folder.mkdir(parents=True, exist_ok=True)
    (refs / ref).write_text(commit, encoding="utf-8")
    for path in (path for path in repository.rglob("*") if path.is_file()):
        name = path.relative_to(repository)
        blob, link = blobs / "-".join((commit[:4], *name.parts)), snapshot / name
        shutil.copy(path, blob)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture(scope="module")
def hub(repository, workspace) -> Path:
    """A cache in which "v1" is the repository, and "main" a newer state whose code and parts are useless."""
    cache = workspace / "hub"
    make_snapshot(repository, cache, COMMIT, "v1")
    newer = shutil.copytree(repository, workspace / "newer")
    for path in newer.rglob("*.py"):
        path.write_text("raise RuntimeError('code of another revision')\n", encoding="utf-8")
    for part in PARTS:
        for path in (path for path in (newer / part).iterdir() if path.suffix != ".py"):
            path.write_text("{}", encoding="utf-8")
    make_snapshot(newer, cache, NEWER_COMMIT, "main")
    return cache


@pytest.fixture(scope="module")
def route_1_local(repository, workspace, expected) -> Path:
    """Route 1: Auto classes on a local directory with its own code; also writes a directory for route 4."""
    target = workspace / "saved_by_route_1"
    script = by_auto(repository, **REMOTE_CODE) + save_to(target)
    report = run(script, workspace / "route_1_local", expected)
    assert "transformers_modules" in report["file"] and "transformers_modules" in report["part"]
    return target


@pytest.fixture(scope="module")
def route_1_hub(hub, workspace, expected) -> Path:
    """Route 1 through a Hub cache at a pinned revision, offline; also writes a directory for route 4."""
    target = workspace / "saved_from_hub"
    script = by_auto("org/Ming-Toy", **REMOTE_CODE, revision="v1", cache_dir=str(hub)) + save_to(target)
    report = run(script, workspace / "route_1_hub", expected)
    assert COMMIT in report["file"] and COMMIT in report["part"]
    return target


def test_route_1_local_directory(route_1_local, repository):
    """Everything is saved once, in the layout of the repository."""
    assert python_files(route_1_local) == python_files(repository)
    for part in PARTS:
        assert {path.name for path in (route_1_local / part).iterdir()} >= {
            path.name for path in (ROOT / part).iterdir() if path.name != "__pycache__"
        }


def test_route_1_hub_cache_at_a_pinned_revision(route_1_hub, repository):
    """Code and parts that are saved are those of the revision, not of the newer main."""
    for name in ("ming/modeling_bailingmm.py", "audio_detokenizer/modeling_audio_detokenizer.py", "voices/iris.json"):
        assert (route_1_hub / name).read_bytes() == (repository / name).read_bytes()


def test_what_was_loaded_without_a_revision_stays_at_its_commit(repository, hub, site, workspace, expected):
    """The Hub's main moves on between loading and speaking, saving: all parts are those of the loaded weights."""
    cache = shutil.copytree(hub, workspace / "moving_hub", symlinks=True)
    main = cache / "models--org--Ming-Toy" / "refs" / "main"
    main.write_text(COMMIT, encoding="utf-8")
    target = workspace / "saved_from_moving_hub"
    move = f"import pathlib; pathlib.Path({str(main)!r}).write_text({NEWER_COMMIT!r})\n"
    options = f"'org/Ming-Toy', cache_dir={str(cache)!r}"
    script = (
        "from ming import BailingMMNativeForConditionalGeneration as Model, BailingMMProcessor as Processor\n"
        f"model = Model.from_pretrained({options}, dtype=torch.float32).eval()\n"
        f"processor = Processor.from_pretrained({options})\n"
    )
    script += move + save_to(target)
    run(script, workspace / "route_moving_hub", expected, path=site)
    for name in ("image_gen/model.safetensors", "voices/iris.json"):
        assert (target / name).read_bytes() == (repository / name).read_bytes()


def test_route_2_checkout_as_working_directory(repository, workspace, expected):
    report = run(by_class("."), workspace / "route_2_cwd", expected, cwd=repository)
    assert Path(report["file"]) == repository / "ming" / "modeling_bailingmm.py"


def test_route_2_entry_points_of_the_root(weights_only, workspace, expected):
    """`from modeling_bailingmm import …` as in the released README: the checkout's code, weights from elsewhere."""
    report = run(by_class(weights_only, prefix=""), workspace / "route_2_path", expected, path=ROOT)
    assert Path(report["file"]) == ROOT / "ming" / "modeling_bailingmm.py"


@pytest.fixture(scope="module")
def site(workspace) -> Path:
    """The package installed from its wheel."""
    source, wheels, target = workspace / "source", workspace / "wheels", workspace / "site"
    source.mkdir()
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in PACKAGING)):
        shutil.copy(path, source / path.name)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for arguments in (
        [
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--wheel-dir",
            str(wheels),
            str(source),
        ],
        [
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--find-links",
            str(wheels),
            "--target",
            str(target),
            "ming-lite-omni",
        ],
    ):
        process = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
        assert process.returncode == 0, process.stderr[-3000:]
    shutil.rmtree(source)
    return target


def test_the_wheel_owns_three_names(site, workspace):
    (wheel,) = (workspace / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert {"ming/py.typed", "ming/cli/main.py", "ming/serving/server.py", "ming/training/finetune.py"} <= set(names)
    assert not [name for name in names if name.endswith((".safetensors", ".onnx"))]


def test_route_3_installed_package(weights_only, site, workspace, expected):
    """`pip install`, `import ming`: a directory of weights loads by the Auto classes without trusting any code."""
    report = run("import ming\n" + by_auto(weights_only), workspace / "route_3", expected, path=site)
    assert Path(report["file"]) == site / "ming" / "modeling_bailingmm.py"
    assert Path(report["part"]) == site / "audio_detokenizer" / "modeling_audio_detokenizer.py"


def test_route_4_saved_directory_by_auto_classes(route_1_local, workspace, expected):
    """Saved by route 1 and moved: code, auto_map, processor and equal answers without the original."""
    moved = workspace / "moved_route_1"
    shutil.copytree(route_1_local, moved)
    assert json.loads((moved / "config.json").read_text(encoding="utf-8"))["auto_map"] == AUTO_MAP
    run(by_auto(moved, **REMOTE_CODE), workspace / "route_4_auto", expected)


def test_route_4_saved_directory_by_class(route_1_local, workspace, expected):
    report = run(by_class("."), workspace / "route_4_class", expected, cwd=route_1_local)
    assert Path(report["file"]) == route_1_local / "ming" / "modeling_bailingmm.py"


def test_route_4_directory_saved_from_the_hub(route_1_hub, workspace, expected):
    """Its auto_map must name its own files and not the Hub repository, which is not reachable here."""
    assert json.loads((route_1_hub / "config.json").read_text(encoding="utf-8"))["auto_map"] == AUTO_MAP
    run(by_auto(route_1_hub, **REMOTE_CODE), workspace / "route_4_hub", expected)


def test_a_processor_saved_alone_keeps_the_layout(repository, workspace):
    """Saved from remote code it must not be flattened, and loads from its new directory alone."""
    target = workspace / "processor_alone"
    script = (
        f"from transformers import AutoProcessor\n"
        f"processor = AutoProcessor.from_pretrained({str(repository)!r}, trust_remote_code=True)\n"
        f"processor.save_pretrained({str(target)!r})\n"
        f"print(type(AutoProcessor.from_pretrained({str(target)!r}, trust_remote_code=True)).__module__)\n"
    )
    process = start(script, workspace / "processor")
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.strip().endswith("ming.processing_bailingmm")
    assert {path.name for path in target.glob("*.py")} == {path.name for path in repository.glob("*.py")}
    saved = json.loads((target / "processor_config.json").read_text(encoding="utf-8"))
    assert saved["auto_map"] == {"AutoProcessor": "ming/processing_bailingmm.BailingMMProcessor"}


def test_directories_saved_by_the_version_before_still_load(repository, workspace, expected):
    """They hold flat code with a flat auto_map, which runs as remote code."""
    directory = workspace / "saved_before"
    directory.mkdir()
    for path in repository.iterdir():
        if path.is_dir() and path.name in PARTS:
            shutil.copytree(path, directory / path.name, ignore=shutil.ignore_patterns("*.py"))
        elif path.suffix != ".py" and path.is_file():
            shutil.copy(path, directory / path.name)
    with tarfile.open(fileobj=io.BytesIO(SAVED_BEFORE.read_bytes())) as archive:
        archive.extractall(directory, filter="data")
    assert "modeling_bailingmm.py" in {path.name for path in directory.iterdir()} and not (directory / "ming").exists()
    # The layout of that version: its model has properties where handles are now.
    report = REPORT.replace("model.audio_detokenizer.load()", "model.audio_detokenizer")
    script = QUESTION + by_auto(directory, **REMOTE_CODE) + report
    home = workspace / "route_before"
    process = start(script, home)
    assert process.returncode == 0, process.stderr[-3000:]
    assert json.loads((home / "answer.json").read_text(encoding="utf-8"))["text"] == expected[0]
    found = load_file(home / "answer.safetensors")
    torch.testing.assert_close(found["logits"], expected[1]["logits"], atol=1e-4, rtol=0)
    # That version drew other codes from a seed.
    assert len(found["waveform"]) > 0.2 * 22050 and found["waveform"].isfinite().all()


# Consent

TELL = "\nimport os\nopen(os.environ['ANSWER'] + '.ran', 'a').write(__name__ + ' ')\n"


@pytest.fixture
def telling(repository, tmp_path) -> Path:
    """The repository, every code file of which leaves a trace when it is run."""
    directory = shutil.copytree(repository, tmp_path / "telling")
    for path in directory.rglob("*.py"):
        path.write_text(path.read_text(encoding="utf-8") + TELL, encoding="utf-8")
    return directory


USE_EVERYTHING = """
import torch
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained({path!r}, {options}).eval()
processor = AutoProcessor.from_pretrained({path!r}, {options})
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": "red"}}], tokenize=True, return_dict=True, return_tensors="pt"
)
model.speak("red", seed=0)
model.generate(**inputs, generation_mode=["audio", "image"], num_inference_steps=1, max_new_tokens=2)
list(model.stream(**inputs, generation_mode=["audio", "image"], num_inference_steps=1, max_new_tokens=2))
model.save_pretrained({saved!r})
"""


@pytest.mark.parametrize("consent", ["", "trust_remote_code=False"])
def test_without_consent_no_code_of_the_checkpoint_ever_runs(telling, site, tmp_path, consent):
    script = "import ming\n" + USE_EVERYTHING.format(path=str(telling), options=consent, saved=str(tmp_path / "saved"))
    process = start(script, tmp_path / "home", path=site)
    assert process.returncode == 0, process.stderr[-3000:]
    assert not (tmp_path / "home" / "answer.ran").exists()


def test_with_consent_the_checkpoints_own_code_runs(telling, tmp_path):
    """That the trace works: the same calls with consent leave it."""
    options, saved = "trust_remote_code=True", str(tmp_path / "saved")
    process = start(USE_EVERYTHING.format(path=str(telling), options=options, saved=saved), tmp_path / "home")
    assert process.returncode == 0, process.stderr[-3000:]
    ran = (tmp_path / "home" / "answer.ran").read_text(encoding="utf-8")
    assert "modeling_audio_detokenizer" in ran and "modeling_image_gen" in ran and "ming.modeling_bailingmm" in ran


def test_a_component_that_names_other_code_is_not_run_without_consent(telling, site, tmp_path):
    """A config.json with another model_type and an auto_map, as an attacker would write it."""

    def point_elsewhere(fields):
        fields["model_type"] = "somebody_elses"
        fields["auto_map"] = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModel")}

    for name in ("audio_detokenizer", "image_gen"):
        change_json(telling / name / "config.json", point_elsewhere)
    (telling / "evil.py").write_text(TELL, encoding="utf-8")
    script = "import ming\n" + USE_EVERYTHING.format(path=str(telling), options="", saved=str(tmp_path / "saved"))
    process = start(script, tmp_path / "home", path=site)
    assert not (tmp_path / "home" / "answer.ran").exists(), process.stderr[-2000:]


def test_a_configuration_cannot_trust_for_the_user(telling, site, tmp_path):
    """`components_from` is the one setting of a checkpoint that leads to another one."""

    def grant(fields):
        fields["components_from"] = {"name": str(telling), "trust_remote_code": True}

    change_json(telling / "config.json", grant)
    script = "import ming\n" + USE_EVERYTHING.format(path=str(telling), options="", saved=str(tmp_path / "saved"))
    process = start(script, tmp_path / "home", path=site)
    assert process.returncode and "components_from" in process.stderr
    assert not (tmp_path / "home" / "answer.ran").exists()


def test_trust_in_a_checkpoint_runs_no_code_of_another_one(telling, repository, tmp_path):
    """Its parts lie elsewhere, as those of a Trainer's checkpoint do; they are read by its own code."""
    checkpoint = shutil.copytree(repository, tmp_path / "checkpoint")
    for name in PARTS:
        for path in (path for path in (checkpoint / name).iterdir() if path.suffix != ".py"):
            path.unlink()
    change_json(checkpoint / "config.json", lambda fields: fields.update(components_from={"name": str(telling)}))
    options, saved = "trust_remote_code=True", str(tmp_path / "saved")
    process = start(USE_EVERYTHING.format(path=str(checkpoint), options=options, saved=saved), tmp_path / "home")
    assert process.returncode == 0, process.stderr[-3000:]
    assert not (tmp_path / "home" / "answer.ran").exists()


# What saving writes


def test_a_configuration_is_saved_with_code_and_without_weights(repository, tmp_path):
    from transformers import AutoConfig

    AutoConfig.from_pretrained(repository).save_pretrained(tmp_path)
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert python_files(tmp_path) == python_files(repository)
    assert {path.suffix for path in files} == {".py", ".json"}
    assert {path.name for path in files if path.suffix == ".json"} == {"config.json"}
    assert sum(path.stat().st_size for path in files) < 2**20


def test_a_token_is_never_saved(repository, tmp_path):
    config = BailingMMNativeForConditionalGeneration.config_class.from_pretrained(repository, token="hf_secret")
    assert config.source.token == "hf_secret"
    config.save_pretrained(tmp_path)
    assert "hf_secret" not in (tmp_path / "config.json").read_text(encoding="utf-8") + repr(config) + str(config)


def test_checkpoints_of_a_trainer_hold_no_copies_and_find_the_parts(repository, tmp_path):
    model = BailingMMNativeForConditionalGeneration.from_pretrained(repository, dtype=torch.float32)
    ids = torch.arange(5, 13)
    options = {"max_steps": 2, "save_steps": 1, "learning_rate": 0.0, "report_to": [], "use_cpu": True}
    arguments = TrainingArguments(tmp_path / "runs", per_device_train_batch_size=1, **options)
    Trainer(model, arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 2).train()
    checkpoint = tmp_path / "runs" / "checkpoint-1"
    assert {path.name for path in checkpoint.rglob("*.safetensors")} == {"model.safetensors"}
    assert not (checkpoint / "voices").exists() and python_files(checkpoint) == python_files(repository)
    assert model.config.components_from is None
    again = BailingMMNativeForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    spoken = [each.eval().speak("red", seed=0).waveforms[0] for each in (model, again)]
    assert torch.equal(*spoken)
    again.save_pretrained(tmp_path / "final")
    assert (tmp_path / "final" / "image_gen" / "model.safetensors").is_file()
    assert "components_from" not in json.loads((tmp_path / "final" / "config.json").read_text(encoding="utf-8"))
