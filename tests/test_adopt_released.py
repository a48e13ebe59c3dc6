"""Adopting a release: a small one with every kind of file, sharded; what is missing or does not fit is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_audio_detokenizer import GOLDENS as SPEECH_GOLDENS
from test_audio_detokenizer import TINY_YAML
from test_image_gen_goldens import GOLDENS as IMAGE_GOLDENS
from test_voices import released_dict
from transformers import AutoModelForMultimodalLM, AutoProcessor

import ming.cli.adopt
from image_gen.modeling_image_gen import ImageGen
from ming.cli.adopt import adopt
from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.processing_bailingmm import BailingMMProcessor
from ming.release import read_released_image_gen
from ming.talker_processor import BailingMMTalkerProcessor
from ming.voices import load_voices
from training.tiny.stage_speaking import tiny_talker_config

ROOT = Path(__file__).resolve().parents[1]
CHAT = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")},
            {"type": "audio", "audio": str(ROOT / "demo" / "question.wav")},
            {"type": "text", "text": "Describe the picture."},
        ],
    }
]


@pytest.fixture(scope="module")
def source_model():
    config = BailingMMConfig.from_pretrained(ROOT)
    config.talker_config = tiny_talker_config(config.llm_config.hidden_size)
    torch.manual_seed(0)
    model = BailingMMNativeForConditionalGeneration(config)
    weights = BailingMMNativeForConditionalGeneration.from_pretrained(ROOT, dtype=torch.float32, load_talker=False)
    model.load_state_dict(weights.state_dict(), strict=False)
    return model.eval()


@pytest.fixture(scope="module")
def release(source_model, tmp_path_factory) -> Path:
    """A directory as released: shards, old configs, `.pt` files, a yaml, folders of the image head."""
    root = tmp_path_factory.mktemp("release")
    source_model.save_pretrained(root, max_shard_size="8MB")
    for path in (*root.glob("*.py"), *root.glob("*/*.py")):
        path.unlink()
    values = json.loads((root / "config.json").read_text())
    talker = values["talker_config"].pop("llm_config")
    values["auto_map"] = {"AutoConfig": "old_code.OldConfig"}
    (root / "config.json").write_text(json.dumps(values))
    processor = BailingMMProcessor.from_pretrained(ROOT)
    processor.tokenizer.save_pretrained(root)
    settings = json.loads((ROOT / "tests/goldens/reference/preprocessor_config.json").read_text())
    (root / "preprocessor_config.json").write_text(json.dumps(settings))
    shutil.copy(ROOT / "tests/goldens/processor/am.mvn", root)
    shutil.rmtree(root / "talker", ignore_errors=True)
    shutil.copytree(ROOT / "talker", root / "talker")
    (root / "talker" / "config.json").write_text(json.dumps(talker))
    shutil.copytree(ROOT / "codec_bpe", root / "talker" / "s3_bpe")
    text = (SPEECH_GOLDENS / "audio_detokenizer.yaml").read_text()
    for found, tiny in TINY_YAML.items():
        text = text.replace(found, tiny)
    (root / "talker" / "audio_detokenizer.yaml").write_text(text)
    for part in ("flow", "hift"):
        torch.save(load_file(SPEECH_GOLDENS / f"{part}.safetensors"), root / "talker" / f"{part}.pt")
    torch.save(released_dict(load_voices(ROOT / "voices")["iris"]), root / "talker" / "luna.pt")
    for folder in ("mlp", "connector", "transformer", "vae", "scheduler"):
        shutil.copytree(IMAGE_GOLDENS / folder, root / folder)
    for folder in ("codec_bpe", "voices", "audio_detokenizer", "image_gen"):
        shutil.rmtree(root / folder, ignore_errors=True)
    return root


@pytest.fixture(scope="module")
def adopted(release, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("adopted") / "Ming"
    command = [sys.executable, "-m", "ming", "adopt", str(release), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "from_pretrained" in done.stdout
    return target


def test_the_model_answers_as_the_source(adopted, source_model):
    model = AutoModelForMultimodalLM.from_pretrained(adopted, trust_remote_code=True, dtype=torch.float32).eval()
    assert model.state_dict().keys() == source_model.state_dict().keys()
    ids = torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, source_model(input_ids=ids).logits)
    assert model.config.talker_config.llm_config.num_hidden_layers == 6
    detokenizer = model.audio_detokenizer.state_dict()
    golden = load_file(SPEECH_GOLDENS / "flow.safetensors")
    assert all(torch.equal(detokenizer[f"flow.{name}"], tensor) for name, tensor in golden.items())


def test_the_processor_keeps_tokens_and_settings(adopted, release):
    processor = AutoProcessor.from_pretrained(adopted, trust_remote_code=True)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(CHAT, **options)
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.startswith("<role>HUMAN</role><image>") and text.endswith("<role>ASSISTANT</role>")
    assert processor.tokenizer.padding_side == "left"
    size = processor.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (78400, 802816)
    assert len(processor.feature_extractor.cmvn_shift) == 560
    assert processor.gen_terminator == BailingMMProcessor.from_pretrained(ROOT).gen_terminator


def test_voices_and_codec_are_adopted(adopted):
    parts = BailingMMTalkerProcessor.from_pretrained(adopted)
    own = BailingMMTalkerProcessor.from_pretrained(ROOT)
    assert list(parts.voices) == ["luna"]
    assert torch.equal(parts.voices["luna"].prompt_codes, own.voices["iris"].prompt_codes)
    assert parts.codec_bpe.vocab_size == own.codec_bpe.vocab_size
    assert parts.tokenizer("red circle")["input_ids"] == own.tokenizer("red circle")["input_ids"]
    assert parts.load_voice_encoder() is not None


def test_the_image_head_has_this_packages_names(adopted):
    ours = ImageGen.from_pretrained(adopted / "image_gen", dtype=torch.float32).state_dict()
    released = read_released_image_gen(IMAGE_GOLDENS).state_dict()
    assert ours.keys() == released.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in released.items())


def test_large_files_are_linked_and_no_pickle_is_left(adopted, release):
    shards = sorted(release.glob("model-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        assert (adopted / shard.name).samefile(shard)
    assert not list(adopted.rglob("*.pt")) and not list(adopted.rglob("*.yaml"))
    assert (adopted / "modeling_bailingmm.py").is_file() and (
        adopted / "image_gen" / "modeling_image_gen.py"
    ).is_file()


LOAD = """
import sys
from transformers import AutoModelForMultimodalLM, AutoProcessor
options = {"trust_remote_code": True}
model = AutoModelForMultimodalLM.from_pretrained(sys.argv[1], **options)
processor = AutoProcessor.from_pretrained(sys.argv[1], **options)
assert "transformers_modules" in type(model).__module__ and "transformers_modules" in type(processor).__module__
assert processor.chat_template
assert "transformers_modules" in type(model.audio_detokenizer).__module__
assert "transformers_modules" in type(model.image_gen).__module__
"""


def test_an_installed_package_adopts_too(release, tmp_path, monkeypatch):
    """A wheel has no entry points, and the files of other packages lie beside it."""
    for pattern in ("ming/*.py", "ming/cli/*.py", "audio_detokenizer/*.py", "image_gen/*.py"):
        for path in ROOT.glob(pattern):
            copied = tmp_path / "site-packages" / path.relative_to(ROOT)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copied)
    (tmp_path / "site-packages" / "stranger.py").write_text("")
    shutil.copy(ROOT / "chat_template.jinja", tmp_path / "site-packages" / "ming")
    monkeypatch.setattr(ming.cli.adopt, "ROOT", tmp_path / "site-packages")
    adopt(release, tmp_path / "new", mode="copy")
    for shard in release.glob("model-*.safetensors"):
        copied = tmp_path / "new" / shard.name
        assert not copied.samefile(shard) and copied.read_bytes() == shard.read_bytes()
    assert not list((tmp_path / "new").glob("*.py")) and not (tmp_path / "new" / "ming" / "cli").exists()
    assert (tmp_path / "new" / "ming" / "modeling_bailingmm.py").is_file()
    assert not (tmp_path / "new" / "ming" / "__init__.py").exists()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", LOAD, str(tmp_path / "new")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def broken(release: Path, target: Path) -> Path:
    shutil.copytree(release, target)
    return target


def test_missing_files_are_all_named_before_anything_is_written(release, tmp_path):
    source = broken(release, tmp_path / "release")
    (source / "am.mvn").unlink()
    (source / "talker" / "hift.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks am.mvn, talker/hift.pt"):
        adopt(source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]
    (source / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks am.mvn, talker/hift.pt, scheduler/scheduler_config.json"):
        adopt(source, tmp_path / "new")


def test_weights_that_do_not_fit_are_named(release, tmp_path):
    source = broken(release, tmp_path / "release")
    shard = sorted(source.glob("model-*.safetensors"))[0]
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    tensors["stranger"] = tensors.pop(name)
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing keys: {name}"):
        adopt(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_words_that_vllm_would_take_for_images_are_refused(release, tmp_path):
    changed = tmp_path / "release"
    shutil.copytree(release, changed)
    for path in changed.glob("*.safetensors"):
        tensors = load_file(path)
        if (words := tensors.get("model.model.word_embeddings.weight")) is not None:
            words[7] = 16.0
            save_file(tensors, path)
    with pytest.raises(ValueError, match="word embedding is .* long; vLLM would take"):
        adopt(changed, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_failure_midway_leaves_nothing_behind(release, tmp_path):
    source = broken(release, tmp_path / "release")
    path = next((source / "mlp").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["proj_in.bias"] = torch.zeros(3)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"proj_in.bias"):
        adopt(source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]


def test_a_full_target_is_left_alone(release, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="is not empty"):
        adopt(release, tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"
