"""Weights: the released names and shapes at full size, saving and loading bit by bit, parts, errors, memory."""

import gzip
import json
import logging
import math
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from thinker_helpers import ROOT, Chat, batch, mixed_chats, randomize, tiny_config, tiny_model
from transformers.core_model_loading import revert_weight_conversion

import ming.source
from ming.configuration_bailingmm import BailingMMConfig
from ming.modeling_bailing_moe import BailingMoeForCausalLM
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration as Model

REFERENCE = Path(__file__).resolve().parent / "goldens" / "reference"
TOWERS = {
    "load_vision": {"vision", "linear_proj"},
    "load_audio": {"audio", "linear_proj_audio"},
    "load_whisper": {"whisper_encoder", "linear_proj_whisper"},
    "load_talker": {"talker"},
}
EXPERT = "model.model.layers.1.mlp.experts.3.up_proj.weight"
FUSED = "audio.encoders0.0.self_attn.linear_q_k_v.weight"
# One key of each kind: plain, in a tower of layers that are renamed, in one of layers that are not, a bias, a buffer.
KEYS = ("model.lm_head.weight", FUSED, "vision.blocks.1.attn.qkv.weight", "linear_proj.0.bias")
BUFFER = "whisper_encoder.positional_embedding"


@pytest.fixture(scope="module")
def inputs():
    return batch(mixed_chats())


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("weights") / "single"
    tiny.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def sharded(tiny, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("weights") / "sharded"
    tiny.save_pretrained(directory, max_shard_size="200KB")
    return directory


@pytest.fixture(scope="module")
def logits(tiny, inputs):
    return logits_of(tiny, inputs)


@torch.no_grad()
def logits_of(model, inputs):
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def assert_same_tensors(ours, expected):
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def released_names(model) -> dict[str, torch.Tensor]:
    return revert_weight_conversion(model, model.state_dict())


@contextmanager
def library_log():
    """What transformers and our configuration say; the loading report names the keys of a failed conversion."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("transformers", "ming.source")]
    for logger in loggers:
        logger.addHandler(handler)
    yield messages
    for logger in loggers:
        logger.removeHandler(handler)


def variant(saved: Path, directory: Path, change) -> Path:
    """A copy of a checkpoint whose tensors went through `change(tensors)`."""
    shutil.copytree(saved, directory)
    tensors = load_file(saved / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


# Full size


@pytest.fixture(scope="module")
def released() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the released thinker (7,199 parameters and one buffer) and talker."""
    shapes = {}
    for file in ("thinker_keys.tsv.gz", "talker_keys.tsv.gz"):
        lines = gzip.decompress((REFERENCE / file).read_bytes()).decode().splitlines()
        assert lines[0].split("\t") == ["key", "shape", "kind"]
        for line in lines[1:]:
            key, shape, _ = line.split("\t")
            shapes[key] = tuple(int(size) for size in shape.replace("x", ",").split(",") if size)
    return shapes


@pytest.fixture(scope="module")
def full_size() -> Model:
    config = BailingMMConfig.from_dict(json.loads((REFERENCE / "config.json").read_text(encoding="utf-8")))
    with torch.device("meta"):
        return Model(config)


def test_full_size_keys_and_shapes_are_the_released_ones(full_size, released):
    ours = {name: tuple(tensor.shape) for name, tensor in released_names(full_size).items()}
    assert len(released) == 7495
    assert set(released) - set(ours) == set()  # missing
    assert set(ours) - set(released) == set()  # unexpected
    assert {name: shape for name, shape in ours.items() if shape != released[name]} == {}


def test_full_size_parameter_count(full_size, released):
    thinker, talker = 18_345_197_920, 690_432_384
    assert sum(parameter.numel() for parameter in full_size.talker.parameters()) == talker
    assert sum(parameter.numel() for parameter in full_size.parameters()) == thinker + talker
    assert sum(math.prod(shape) for shape in released.values()) == thinker + talker + 15_000 * 1_280
    assert full_size.model.lm_head.weight is not full_size.model.model.word_embeddings.weight


def test_the_released_index_holds_these_keys_and_no_others(full_size, released):
    index = gzip.decompress((REFERENCE / "index_keys.txt.gz").read_bytes()).decode().split()
    assert len(index) == 7495 and set(index) == set(released)
    assert not full_size._keys_to_ignore_on_load_unexpected


def test_released_config_survives_saving(tmp_path):
    """All sizes of the released file are read, kept, and written in the released layout."""
    released = json.loads((REFERENCE / "config.json").read_text(encoding="utf-8"))
    config = BailingMMConfig.from_dict(dict(released))
    config.save_pretrained(tmp_path)
    again = BailingMMConfig.from_pretrained(tmp_path)
    ours, expected = again.to_dict(), config.to_dict()
    assert {name for name in expected if ours[name] != expected[name]} <= {"transformers_version"}
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for section in ("llm_config", "vision_config"):
        for name in ("hidden_size", "intermediate_size", "hidden_act"):
            assert written[section][name] == released[section][name] == getattr(getattr(again, section), name)
    for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_experts", "vocab_size"):
        assert written["llm_config"][name] == released["llm_config"][name]
    assert again.llm_config.rope_parameters["rope_theta"] == 600000
    assert (
        written["audio_config"]["audio_encoder_config_sanm"].items() >= {"output_size": 512, "num_blocks": 50}.items()
    )
    assert written["whisper_config"]["whisper_encoder_config"] == released["whisper_config"]["whisper_encoder_config"]
    for name in ("text_vocab_size", "audio_vocab_size", "qa_model_hidden_size", "vp_feature_size"):
        assert written["talker_config"][name] == released["talker_config"][name]
    assert written["talker_config"]["llm_config"]["num_hidden_layers"] == 24


# Saving and loading


def test_saved_tensors_have_the_released_names(saved, full_size, released):
    """The tiny model's keys are the released ones but for the numbers in them."""

    def pattern(name):
        return tuple("#" if part.isdigit() else part for part in name.split(".") if part)

    names = {pattern(name) for name in tensors_of(saved)}
    assert names == {pattern(name) for name in released}


def test_round_trip_is_bit_exact(tiny, saved, inputs, logits, tmp_path):
    loaded = Model.from_pretrained(saved)
    assert torch.equal(logits_of(loaded, inputs), logits)
    assert_same_tensors(loaded.state_dict(), tiny.state_dict())
    loaded.save_pretrained(tmp_path / "again")
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(saved))


def test_weights_come_from_a_dictionary(tiny, inputs, logits):
    """The library's way without files: `from_pretrained(None, config=, state_dict=)`."""
    weights = tiny.state_dict()
    assert torch.equal(logits_of(Model.from_pretrained(None, config=tiny.config, state_dict=weights), inputs), logits)
    with pytest.raises(ValueError, match="state_dict: missing keys: audio.after_norm.bias"):
        Model.from_pretrained(None, config=tiny.config, state_dict={"model.lm_head.weight": weights.popitem()[1]})


def test_every_saved_number_is_one_of_the_model(tiny, saved):
    """Fused experts and renamed projections are the same numbers: spot checks by hand, without the library's code."""
    tensors = tensors_of(saved)
    experts = tiny.model.model.layers[1].mlp.experts
    gate, up = experts.gate_up_proj[3].chunk(2)
    assert torch.equal(tensors[EXPERT], up)
    assert torch.equal(tensors[EXPERT.replace("up_proj", "gate_proj")], gate)
    assert torch.equal(tensors[EXPERT.replace("up_proj", "down_proj")], experts.down_proj[3])
    assert torch.equal(tensors[FUSED], tiny.audio.encoders0[0].self_attn.linear_q_k_v.weight)
    assert torch.equal(
        tensors["whisper_encoder.blocks.0.attn.query.weight"], tiny.whisper_encoder.blocks[0].self_attn.q_proj.weight
    )
    assert torch.equal(tensors["whisper_encoder.blocks.0.mlp.2.bias"], tiny.whisper_encoder.blocks[0].fc2.bias)


def test_sharded_round_trip_is_bit_exact(saved, sharded, inputs, logits):
    index = json.loads((sharded / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 4
    assert not (sharded / "model.safetensors").exists()
    for file in files:
        with safe_open(sharded / file, "pt") as shard:
            assert {index["weight_map"][name] for name in shard.keys()} == {file}  # noqa: SIM118
    assert_same_tensors(tensors_of(sharded), tensors_of(saved))
    assert torch.equal(logits_of(Model.from_pretrained(sharded), inputs), logits)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float32},
        {"dtype": "auto"},
        {"torch_dtype": torch.float32},
        {"low_cpu_mem_usage": True},
        {"torch_dtype": torch.float32, "low_cpu_mem_usage": True},
        {"device_map": {"": "cpu"}},
        {"device_map": "cpu"},
        {"attn_implementation": "sdpa", "experts_implementation": "grouped_mm"},
    ],
    ids=str,
)
def test_loading_options_give_equal_outputs(sharded, inputs, logits, options):
    assert torch.equal(logits_of(Model.from_pretrained(sharded, **options), inputs), logits)


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
def test_loading_in_bfloat16(saved, inputs, option):
    """Every parameter is the rounded one; position and rotary tables stay float32."""
    loaded = Model.from_pretrained(saved, **{option: torch.bfloat16})
    expected = {name: tensor.to(torch.bfloat16) for name, tensor in tensors_of(saved).items() if name != BUFFER}
    ours = released_names(loaded)
    assert torch.equal(ours.pop(BUFFER).float(), tensors_of(saved)[BUFFER])
    assert_same_tensors(ours, expected)
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert logits_of(loaded, inputs).isfinite().all()


def test_attention_and_experts_implementations_are_chosen_at_loading(saved):
    loaded = Model.from_pretrained(saved, attn_implementation="eager", experts_implementation="batched_mm")
    parts = (loaded.model, loaded.vision, loaded.audio, loaded.whisper_encoder)
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    assert loaded.model.config._experts_implementation == "batched_mm"


def test_offloading_to_disk_gives_equal_outputs(sharded, inputs, logits, tmp_path):
    loaded = Model.from_pretrained(
        sharded, device_map="auto", max_memory={"cpu": "700KB"}, offload_folder=tmp_path / "offload"
    )
    assert {"cpu", "disk"} == set(loaded.hf_device_map.values())
    assert torch.equal(logits_of(loaded, inputs), logits)


def test_the_decoder_alone_loads_from_the_whole_checkpoint(saved, tiny):
    """`BailingMoeForCausalLM` is a text model of its own: strip the prefix `model.` and leave the towers out."""
    prefixes = {r"^model\.(model|lm_head)\.": r"\1."}
    decoder, info = BailingMoeForCausalLM.from_pretrained(
        saved, config=tiny.config.llm_config, dtype="float32", key_mapping=prefixes, output_loading_info=True
    )
    assert info["missing_keys"] == set()
    ids = torch.arange(30, 40)[None]
    torch.testing.assert_close(decoder(ids).logits, tiny(ids).logits, atol=0, rtol=0)


# Parts


@pytest.mark.parametrize("flag", TOWERS)
def test_a_tower_can_be_left_out(saved, tmp_path, inputs, flag):
    """The rest is bit-equal, is saved again without the tower, and remembers that it was left out."""
    loaded = Model.from_pretrained(saved, **{flag: False})
    full = tensors_of(saved)
    expected = {name: tensor for name, tensor in full.items() if name.split(".")[0] not in TOWERS[flag]}
    assert_same_tensors(released_names(loaded), expected)
    loaded.save_pretrained(tmp_path / "part")
    assert_same_tensors(tensors_of(tmp_path / "part"), expected)
    again = Model.from_pretrained(tmp_path / "part")
    assert getattr(again.config, flag) is False
    text = batch([Chat(51).text(8)])
    assert torch.equal(logits_of(again, text), logits_of(Model.from_pretrained(saved), text))
    with pytest.raises(ValueError, match=f"missing keys: .*({'|'.join(TOWERS[flag])})"):
        Model.from_pretrained(tmp_path / "part", **{flag: True})


def test_all_towers_can_be_left_out(saved):
    loaded = Model.from_pretrained(saved, **dict.fromkeys(TOWERS, False))
    assert {name.split(".")[0] for name in loaded.state_dict()} == {"model"}


# Damaged checkpoints


@pytest.mark.parametrize("key", [*KEYS, BUFFER])
def test_a_missing_key_is_named(saved, tmp_path, key):
    directory = variant(saved, tmp_path / "damaged", lambda tensors: tensors.pop(key))
    with pytest.raises(ValueError, match=rf"missing keys: .*{key}") as raised:
        Model.from_pretrained(directory)
    assert str(directory) in str(raised.value)


@pytest.mark.parametrize("key", [*KEYS, BUFFER, EXPERT])
def test_an_unexpected_key_is_named(saved, tmp_path, key):
    def add(tensors):
        tensors[key + "_2"] = tensors[key].clone()

    with pytest.raises(ValueError, match=rf"unexpected keys: {key}_2"):
        Model.from_pretrained(variant(saved, tmp_path / "damaged", add))


@pytest.mark.parametrize("key", [*KEYS, BUFFER])
def test_a_renamed_key_is_named(saved, tmp_path, key):
    def rename(tensors):
        tensors[key + "_2"] = tensors.pop(key)

    with pytest.raises(ValueError, match=rf"missing keys: .*{key}"):
        Model.from_pretrained(variant(saved, tmp_path / "damaged", rename))


@pytest.mark.parametrize("key", [*KEYS, BUFFER])
def test_a_wrong_shape_is_named_and_only_accepted_when_asked(saved, tmp_path, key):
    def shorten(tensors):
        tensors[key] = tensors[key][:-1].clone()

    directory = variant(saved, tmp_path / "damaged", shorten)
    with pytest.raises(ValueError, match=rf"wrong shapes: {key} \(\d+.*, not \(\d+"):
        Model.from_pretrained(directory)
    loaded, info = Model.from_pretrained(directory, ignore_mismatched_sizes=True, output_loading_info=True)
    assert [mismatch[0] for mismatch in info["mismatched_keys"]] == [key]
    assert loaded.state_dict()[key].isfinite().all()


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_a_damaged_expert_is_named(saved, tmp_path, damage):
    """Experts are fused while loading: the library's report, printed above its error, names the fused weight."""

    def change(tensors):
        tensor = tensors.pop(EXPERT)
        if damage == "shape":
            tensors[EXPERT] = tensor[:-1].clone()

    directory = variant(saved, tmp_path / "damaged", change)
    with library_log() as messages, pytest.raises(RuntimeError, match="conversion of the weights"):
        Model.from_pretrained(directory)
    assert "model.model.layers.1.mlp.experts.gate_up_proj" in "".join(messages)


def test_a_whole_missing_expert_is_named(saved, tmp_path):
    """With all three matrices of an expert gone the rest still fuses, into too few experts."""

    def change(tensors):
        for name in ("gate_proj", "up_proj", "down_proj"):
            tensors.pop(EXPERT.replace("up_proj", name))

    with pytest.raises(ValueError, match=r"wrong shapes: model.model.layers.1.mlp.experts.down_proj \(7, .*not \(8"):
        Model.from_pretrained(variant(saved, tmp_path / "damaged", change))


def test_without_a_talker_config_the_talkers_weights_are_passed_over(saved, tmp_path, inputs, logits):
    directory = variant(saved, tmp_path / "thinker", lambda tensors: None)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config["talker_config"] = None
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = Model.from_pretrained(directory)
    assert not hasattr(loaded, "talker")
    assert torch.equal(logits_of(loaded, inputs), logits)


def test_a_missing_shard_is_an_error(sharded, tmp_path):
    shutil.copytree(sharded, tmp_path / "damaged")
    shard = sorted((tmp_path / "damaged").glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(OSError, match=shard.name):
        Model.from_pretrained(tmp_path / "damaged")


def test_saving_after_the_source_is_gone(saved, tmp_path, inputs, logits):
    """A directory that was moved away while training must not cost the weights: only the code is left out."""
    shutil.copytree(saved, tmp_path / "source")
    loaded = Model.from_pretrained(tmp_path / "source")
    shutil.rmtree(tmp_path / "source")
    with library_log() as messages:
        loaded.save_pretrained(tmp_path / "target")
    assert any("saved without code" in message and "source" in message for message in messages)
    assert torch.equal(logits_of(Model.from_pretrained(tmp_path / "target"), inputs), logits)


def test_code_and_components_travel_with_the_weights(saved, tmp_path):
    """What lies beside the weights under the names we carry is copied; caches and other files are not."""
    shutil.copytree(saved, tmp_path / "source")
    for name in ("code.py", "image_gen/model.py", "image_gen/config.json", "notes.txt", "__pycache__/code.pyc"):
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name, encoding="utf-8")
    Model.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "target")
    names = {str(path.relative_to(tmp_path / "target")) for path in (tmp_path / "target").rglob("*") if path.is_file()}
    own = {"config.json", "generation_config.json", "model.safetensors"}
    assert names == own | {"code.py", "image_gen/model.py", "image_gen/config.json"}


def test_what_was_written_is_uploaded_and_nothing_else(saved, tmp_path, monkeypatch):
    """In place of the Hub's client, which reaches nothing here, one that notes what it is asked for."""
    uploads = []

    class Client:
        def __init__(self, token=None):
            self.token = token

        def upload_folder(self, **options):
            uploads.append({"token": self.token, **options})

    monkeypatch.setattr(ming.source, "HfApi", Client)
    monkeypatch.setattr(ming.source, "create_repo", lambda name, **options: SimpleNamespace(repo_id=f"me/{name}"))
    source, target = shutil.copytree(saved, tmp_path / "source"), tmp_path / "target"
    for name in ("code.py", "voices/anna.json", "image_gen/config.json"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}", encoding="utf-8")
    target.mkdir()
    (target / "diary.txt").write_text("mine", encoding="utf-8")
    Model.from_pretrained(source).save_pretrained(target, push_to_hub=True, repo_id="ming", token="secret")
    (upload,) = uploads
    written = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()} - {"diary.txt"}
    assert written >= {"model.safetensors", "config.json", "code.py", "voices/anna.json", "image_gen/config.json"}
    assert set(upload["allow_patterns"]) == written
    assert (upload["repo_id"], upload["folder_path"], upload["token"]) == ("me/ming", target, "secret")


# Memory

MEMORY_PROBE = """
import sys, threading
sys.path[:0] = [{root!r}]
import torch
from ming.modeling_bailingmm import BailingMMNativeForConditionalGeneration as Model

def anonymous():
    return 1024 * int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0])

Model.from_pretrained({warm_up!r})  # everything that is imported late is imported now
before = peak = anonymous()
done = threading.Event()

def watch():
    global peak
    while not done.is_set():
        peak = max(peak, anonymous())
        done.wait(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
model = Model.from_pretrained({path!r})
done.set()
watcher.join()
sys.stdout.write(f"{{peak - before}} {{sum(p.numel() * p.element_size() for p in model.parameters())}}")
"""


@pytest.mark.parametrize("shard_size", ["1GB", "120MB"])
def test_loading_needs_little_more_memory_than_the_weights(saved, tmp_path, shard_size):
    """Memory a process holds (pages of the mapped file can be dropped at any time) while 319 MiB are loaded."""
    llm = {"num_hidden_layers": 3, "hidden_size": 512, "num_attention_heads": 8, "head_dim": 64}
    config = tiny_config(llm_config=llm | {"num_experts": 32, "moe_intermediate_size": 512})
    Model(config).save_pretrained(tmp_path, max_shard_size=shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard_size == "1GB" else 3)
    probe = MEMORY_PROBE.format(root=str(ROOT), warm_up=str(saved), path=str(tmp_path))
    output = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, cwd=tmp_path)
    peak, size = (int(number) for number in output.stdout.split())
    assert size > 300 * 2**20
    assert peak < 1.15 * size + 32 * 2**20


def test_building_is_quick_to_repeat_and_random_parts_differ():
    """The tiny model of these tests: equal for equal seeds, and every parameter is set."""
    first, second, other = (tiny_model(seed) for seed in (0, 0, 1))
    for (name, one), two, three in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
        assert not torch.equal(one, three), name


def test_fresh_models_are_initialised_like_the_config_says():
    """Own modules have own initialisers: experts and gates are normal with the configured spread, not zero."""
    torch.manual_seed(0)
    model = Model(tiny_config(llm_config={"initializer_range": 0.05}))
    block = model.model.model.layers[0].mlp
    for weights in (block.experts.gate_up_proj, block.experts.down_proj, block.gate.weight, block.audio_gate.weight):
        assert 0.8 < weights.std() / 0.05 < 1.2
        assert weights.mean().abs() < 0.01
    table = model.whisper_encoder.positional_embedding
    randomize(model, 0)
    assert torch.equal(table, model.whisper_encoder.positional_embedding)
    assert torch.equal(table[0], torch.cat([torch.zeros(16), torch.ones(16)]))


def test_other_libraries_save_every_tensor(saved, tmp_path):
    """safetensors refuses tensors that share memory, accelerate leaves all but one of them out."""
    loaded = Model.from_pretrained(saved)
    save_model(loaded, str(tmp_path / "whole.safetensors"))
    assert_same_tensors(load_file(tmp_path / "whole.safetensors"), loaded.state_dict())
    Accelerator().save_model(loaded, tmp_path / "accelerate")
    assert_same_tensors(tensors_of(tmp_path / "accelerate"), loaded.state_dict())
    loaded.save_pretrained(tmp_path / "again")
    assert_same_tensors(tensors_of(tmp_path / "again"), tensors_of(saved))
    assert FUSED in tensors_of(saved)
