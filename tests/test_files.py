"""Files are written whole or not at all, wherever the process is killed, and read from their own directory.

`ming/files.py` needs nothing of this package, so that a small process can be killed at every single operation.
"""

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from thinker_helpers import tiny_model

from ming.cli.adopt import place
from ming.encoding import save_audio
from ming.files import (
    DONE,
    OUTDATED,
    PARTIAL,
    SavingError,
    finish_saving,
    prepare_reading,
    raise_if_outside,
    replacing,
    saving,
)
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration
from ming.release import find_release, find_shards
from ming.source import CheckpointSource
from ming.training.loop import last_checkpoint

ROOT = Path(__file__).resolve().parents[1]
# What every script knows: the module alone, a checkpoint in shards, and another one that takes its place.
SCRIPT = """
import importlib.util, json, os, resource, signal, sys, shutil
from pathlib import Path
spec = importlib.util.spec_from_file_location("files", {module!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
folder = Path({folder!r})
OLD = {{"config.json": "old", "model-00001-of-00002.safetensors": "old", "model-00002-of-00002.safetensors": "old",
       "model.safetensors.index.json": "old", "voices/anna.json": "old", "notes.txt": "mine"}}
NEW = {{"config.json": "new", "model.safetensors": "new", "ming/code.py": "new", "voices/anna.json": "new",
       "notes.txt": "mine"}}

def write(root, contents):
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

def contents(root):
    return {{str(path.relative_to(root)): path.read_text() for path in root.rglob("*")
            if path.is_file() and files.PARTIAL not in path.parts}}

def save(root):
    with files.saving(root) as partial:
        write(partial, {{name: text for name, text in NEW.items() if text == "new"}})
"""


def run(script: str, folder: Path) -> str:
    text = SCRIPT.format(module=str(ROOT / "ming" / "files.py"), folder=str(folder)) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("kept", [True, False], ids=["over an old one", "a new one"])
def test_a_save_that_is_killed_at_any_operation_leaves_the_old_or_the_new(kept, tmp_path):
    script = f"""
    OLD = OLD if {kept} else {{}}
    NEW = NEW if {kept} else {{name: text for name, text in NEW.items() if text == "new"}}
    found = []
    for number in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, OLD)
        child = os.fork()
        if not child:
            count = 0
            def hook(event, args):
                global count
                if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "open", "shutil.rmtree"):
                    if count == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    count += 1
            sys.addaudithook(hook)
            save(folder)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
        waited = files.finish_saving(folder)
        left = contents(folder) if folder.exists() else {{}}
        assert left in (OLD, NEW), (number, left)
        assert not waited or left == NEW
        save(folder)
        assert contents(folder) == NEW and not (folder / files.PARTIAL).exists()
        found.append("new" if left == NEW else "old")
    assert found == sorted(found, reverse=True), found
    print(json.dumps([found.count("old"), found.count("new")]))
    """
    old, new = json.loads(run(script, tmp_path / "saved"))
    assert old > 10 and new > 10


FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
"""
READ_ONLY = """
folder.mkdir(exist_ok=True)
folder.chmod(0o555)
if os.geteuid() == 0:
    for path in (folder, *folder.parents):
        path.chmod(path.stat().st_mode | 0o555)
    os.seteuid(65534)
"""


@pytest.mark.parametrize("limit", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("kept", [True, False], ids=["over an old one", "a new one"])
def test_a_directory_that_cannot_be_written_is_as_before(limit, kept, tmp_path):
    script = f"""
    OLD = OLD if {kept} else {{}}
    write(folder, OLD)
    NEW["model.safetensors"] = "new" * 100
    NEW = {{name: text if text == "mine" else "new" * 100 for name, text in NEW.items()}}
    """
    script = textwrap.dedent(script) + limit
    script += """
def save(root):
    with files.saving(root) as partial:
        write(partial, {name: text for name, text in NEW.items() if text != "mine"})

try:
    save(folder)
except files.SavingError as error:
    print(error)
left = contents(folder) if folder.exists() else {}
assert left == OLD and not (folder / files.PARTIAL).exists(), left
assert OLD or not folder.exists() or not os.access(folder, os.W_OK, effective_ids=True)
"""
    said = run(script, tmp_path / "saved")
    assert said.count("cannot write") == 1 and str(tmp_path / "saved") in said and "save elsewhere" in said


def test_one_file_is_replaced_or_not(tmp_path):
    path, link = tmp_path / "a.json", tmp_path / "link.json"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    with pytest.raises(ZeroDivisionError), replacing(link) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path, link]
    with replacing(link) as partial:
        assert partial.suffix == ".json" and partial.parent == tmp_path
        partial.write_text("new")
    assert link.is_symlink() and path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o640
    with replacing(os.devnull) as partial:
        partial.write_text("away")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_an_audio_file_that_cannot_be_written_is_one_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it first"):
        save_audio(tmp_path / "no" / "a.wav", torch.zeros(100), 16000)
    (tmp_path / "file").write_text("")
    with pytest.raises(SavingError, match="cannot write"), saving(tmp_path / "file" / "model"):
        pass


@pytest.mark.parametrize("shards_first", [True, False])
def test_old_weights_do_not_outlive_a_save_in_another_number_of_files(shards_first, tmp_path):
    """The library reads a single file before shards, and leaves an old one beside new shards."""
    old, new = tiny_model(seed=0), tiny_model(seed=1)
    sizes = ("200KB", "1GB") if shards_first else ("1GB", "200KB")
    old.save_pretrained(tmp_path, max_shard_size=sizes[0])
    new.save_pretrained(tmp_path, max_shard_size=sizes[1])
    again = BailingMMNativeForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, new.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_saving_over_linked_weights_leaves_their_other_place_alone(tmp_path):
    """As `ming adopt` links them: a release must not change with what is made of it."""
    model, release, adopted = tiny_model(seed=0), tmp_path / "release", tmp_path / "adopted"
    model.save_pretrained(release)
    before = (release / "model.safetensors").read_bytes()
    model.save_pretrained(adopted)
    (adopted / "model.safetensors").unlink()
    place(release / "model.safetensors", adopted / "model.safetensors", "link")
    changed = tiny_model(seed=1)
    changed.save_pretrained(adopted)
    assert (release / "model.safetensors").read_bytes() == before
    assert (adopted / "model.safetensors").read_bytes() != before


def test_a_model_whose_save_was_interrupted_late_is_read_whole(tmp_path):
    old, new = tiny_model(seed=0), tiny_model(seed=1)
    old.save_pretrained(tmp_path)
    new.save_pretrained(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / DONE)
    config = type(old.config).from_pretrained(tmp_path)
    assert not (tmp_path / DONE).exists()
    again = BailingMMNativeForConditionalGeneration.from_pretrained(tmp_path, config=config)
    assert torch.equal(again.model.lm_head.weight, new.model.lm_head.weight)
    old.save_pretrained(tmp_path / "third")
    (tmp_path / "third").rename(tmp_path / DONE)
    with pytest.raises(ValueError, match="load again"):  # the configuration may be that of the save before
        BailingMMNativeForConditionalGeneration.from_pretrained(tmp_path, config=config)
    assert torch.equal(
        BailingMMNativeForConditionalGeneration.from_pretrained(tmp_path).model.lm_head.weight,
        old.model.lm_head.weight,
    )


# Nothing leaves its directory


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", 3])
def test_an_index_names_files_beside_it(name, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.lm_head.weight"] = name
    path.write_text(json.dumps(index))
    for read in (BailingMMNativeForConditionalGeneration.from_pretrained, find_shards, prepare_reading):
        with pytest.raises(ValueError, match="beside their index"):
            read(tmp_path)


def test_a_waiting_save_moves_nothing_out(tmp_path):
    """A directory from somebody else may hold one that he made up."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (root / DONE / "voices").mkdir(parents=True)
    (root / DONE / "voices" / "kept").write_text("evil")
    (root / "voices").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out"):
        finish_saving(root)
    (root / "voices").unlink()
    (root / DONE / OUTDATED).write_text("../outside/kept")
    with pytest.raises(ValueError, match="leads out"):
        finish_saving(root)
    assert (outside / "kept").read_text() == "kept"
    (root / DONE / OUTDATED).unlink()
    assert finish_saving(root) and not finish_saving(root) and (root / "voices" / "kept").read_text() == "evil"


def test_links_out_of_a_checkpoint_are_not_copied(tmp_path, caplog):
    """What is saved may be published."""
    source, secret = tmp_path / "source", tmp_path / "secret"
    (source / "voices").mkdir(parents=True)
    secret.write_text("secret")
    (source / "voices" / "anna.json").symlink_to(secret)
    (source / "voices" / "bert.json").write_text("bert")
    CheckpointSource(str(source)).copy(["voices/*"], tmp_path / "saved", "voices")
    assert [path.name for path in (tmp_path / "saved" / "voices").iterdir()] == ["bert.json"]


def test_a_release_with_links_to_private_files_is_refused(tmp_path):
    (tmp_path / "release" / "talker").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "release" / "talker" / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="tokenizer.json leads out"):
        find_release(tmp_path / "release")


def test_links_within_the_hubs_cache_are_copied(tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "0").write_text("anna")
    (repository / "snapshots" / "1" / "voices").mkdir(parents=True)
    (repository / "snapshots" / "1" / "voices" / "anna.json").symlink_to("../../../blobs/0")
    CheckpointSource(str(repository / "snapshots" / "1")).copy(["voices/*"], tmp_path / "saved", "voices")
    assert (tmp_path / "saved" / "voices" / "anna.json").read_text() == "anna"
    with pytest.raises(ValueError, match="leads out"):
        raise_if_outside(tmp_path / "saved" / ".." / "x", tmp_path / "saved")


@pytest.mark.parametrize(
    "reference",
    [
        {"name": ".", "trust_remote_code": True},
        {"name": ".", "token": "hf_x"},
        {"name": 3},
        {"revision": "a"},
        "elsewhere",
    ],
)
def test_a_configuration_says_where_parts_are_and_nothing_else(reference):
    with pytest.raises(ValueError, match="components_from"):
        CheckpointSource("here").of_components(reference)


def test_trust_in_a_checkpoint_is_no_trust_in_the_place_of_its_parts():
    source = CheckpointSource("here", trust_remote_code=True, token="t")
    elsewhere = source.of_components({"name": "elsewhere"})
    assert elsewhere.name == "elsewhere" and elsewhere.token == "t" and not elsewhere.trust_remote_code


# Checkpoints of training


def test_only_complete_checkpoints_are_continued(tmp_path):
    for step, state in ((2, '{"global_step": 2}'), (4, '{"global_step": 4}'), (6, '{"glob'), (8, "")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-10").mkdir()
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    (tmp_path / "checkpoint-2" / "balance.pt").write_bytes(b"")
    assert last_checkpoint(tmp_path, ["balance.pt"]).name == "checkpoint-2"
    assert last_checkpoint(tmp_path, ["other.pt"]) is None


def test_saved_tensors_and_leftovers(tmp_path):
    """A killed save leaves its folder, which the next one clears away."""
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / "config.json").write_text("half")
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert not (tmp_path / PARTIAL).exists()
    assert "model.lm_head.weight" in load_file(tmp_path / "model.safetensors")
