"""`load_model`: its defaults, the parts that it leaves out, and what it refuses."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from safetensors.torch import load_file

from image_gen.modeling_image_gen import ImageGen
from ming.loading import default_device, default_dtype, load_model

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "model.safetensors"


def test_defaults_suit_the_device():
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert default_dtype("cpu") == default_dtype(torch.device("cpu")) == torch.float32
    assert default_dtype("cuda:1") == default_dtype("mps") == torch.bfloat16


def test_only_the_named_parts_are_loaded():
    model = load_model(ROOT, device="cpu", parts=["vision"])
    assert not model.training and model.dtype == torch.float32 and model.device.type == "cpu"
    config = model.config
    flags = (config.load_vision, config.load_audio, config.load_whisper, config.load_talker, config.load_image_gen)
    assert flags == (True, False, False, False, False)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_by_its_short_name(bits):
    model = load_model(ROOT, device="cpu", parts=[], quantization=f"{bits}bit")
    assert getattr(model, f"is_loaded_in_{bits}bit") and not model.config.load_vision


def test_dtype_and_options_of_from_pretrained():
    model = load_model(ROOT, device="cpu", dtype=torch.bfloat16, load_talker=False)
    assert model.dtype == torch.bfloat16 and model.config.load_vision and not model.config.load_talker


def test_parts_beside_the_weights_are_read_when_they_are_needed():
    model = load_model(ROOT, device="cpu", parts=["image_gen"])
    for handle in (model.image_gen, model.audio_detokenizer):
        assert not handle.is_loaded
    assert isinstance(model.image_gen.load(), torch.nn.Module) and model.image_gen.load() is model.image_gen.load()
    assert model.audio_detokenizer.config.sample_rate == 22050 and model.audio_detokenizer.is_loaded
    own = torch.nn.Linear(2, 2)
    model.components.use(image_gen=own)
    assert model.image_gen.load() is own and model.image_gen.weight is own.weight


def test_parts_that_were_read_keep_their_precision():
    model = load_model(ROOT, device="cpu", parts=["talker", "image_gen"])
    model.image_gen.load()
    model.to(torch.bfloat16)
    assert (model.talker.dtype, model.image_gen.dtype) == (torch.bfloat16, torch.float32)
    assert model.audio_detokenizer.dtype == torch.bfloat16  # read after it
    ids = torch.arange(30, 38)[None]
    assert model.generate(ids, generation_mode="image", seed=0, num_inference_steps=1).images
    assert len(model.speak("red", seed=0).waveforms[0])


def test_parts_that_a_user_put_in_are_saved(tmp_path, caplog):
    """A new image head and a new voice; a module that cannot be saved is told."""
    model = load_model(ROOT, device="cpu", parts=["talker", "image_gen"])
    head = ImageGen(model.image_gen.config)
    model.components.use(image_gen=head)
    voices = model.components.talker_processor().voices
    voices["mine"] = replace(voices["iris"], name="mine")
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, device="cpu", parts=["talker", "image_gen"])
    assert weights_of(again.image_gen) == weights_of(head)
    assert "mine" in again.components.talker_processor().voices
    model.components.use(image_gen=torch.nn.Linear(2, 2))
    model.save_pretrained(tmp_path)
    assert "saved with the image_gen of its checkpoint, not with the one in its place: a Linear" in caplog.text


def weights_of(part) -> dict[str, bytes]:
    return {name: value.contiguous().view(torch.uint8).numpy().tobytes() for name, value in part.state_dict().items()}


def set_in_place(part):
    next(part.parameters()).data.add_(1)


def train_a_step(part):
    weight = next(part.parameters())
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=1.0).step()


def set_of_config(part):
    part.config.comment = "mine"


@pytest.mark.parametrize("change", [set_in_place, train_a_step, set_of_config])
@pytest.mark.parametrize("name", ["audio_detokenizer", "image_gen"])
def test_parts_that_were_changed_where_they_are_are_saved(tmp_path, name, change):
    model = load_model(ROOT, device="cpu", parts=["image_gen"])
    parts = {"audio_detokenizer": model.audio_detokenizer.load(), "image_gen": model.image_gen.load()}
    change(parts[name])
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, device="cpu", parts=["image_gen"])
    saved = {"audio_detokenizer": again.audio_detokenizer.load(), "image_gen": again.image_gen.load()}
    assert weights_of(saved[name]) == weights_of(parts[name])
    assert getattr(saved[name].config, "comment", None) == getattr(parts[name].config, "comment", None)
    other = next(each for each in parts if each != name)
    assert (tmp_path / other / WEIGHTS).read_bytes() == (ROOT / other / WEIGHTS).read_bytes()


def test_the_precision_of_a_part_is_kept_unless_it_was_changed(tmp_path):
    full, half, changed = (tmp_path / name for name in ("full", "half", "changed"))
    model = load_model(ROOT, device="cpu", parts=["image_gen"])
    set_in_place(model.image_gen.load())
    model.save_pretrained(full)
    model = load_model(full, device="cpu", parts=["image_gen"], dtype=torch.bfloat16)
    assert model.image_gen.load().dtype == torch.bfloat16
    model.save_pretrained(half)
    assert (half / "image_gen" / WEIGHTS).read_bytes() == (full / "image_gen" / WEIGHTS).read_bytes()
    set_in_place(model.image_gen)
    model.save_pretrained(changed)
    assert load_file(changed / "image_gen" / WEIGHTS)["proj_in.weight"].dtype == torch.bfloat16
    assert weights_of(load_model(changed, device="cpu", dtype=torch.bfloat16).image_gen) == weights_of(model.image_gen)


def test_a_changed_part_is_saved_by_every_kind_of_save(tmp_path):
    """Into a checkpoint of a Trainer, beside an adapter, offloaded, and when the files that it came from are gone."""
    home, checkpoint, adapter, again = (tmp_path / name for name in ("home", "checkpoint-5", "adapter", "again"))
    load_model(ROOT, device="cpu", parts=["image_gen"]).save_pretrained(home)
    model = load_model(home, device="cpu", parts=["image_gen"])
    set_in_place(model.image_gen)
    wanted = weights_of(model.image_gen)
    cpu_offload(model.image_gen.load(), torch.device("cpu"))
    model.save_pretrained(checkpoint)
    assert weights_of(load_model(checkpoint, device="cpu", parts=["image_gen"]).image_gen) == wanted
    shutil.rmtree(home)
    model.save_pretrained(again)
    assert weights_of(ImageGen.from_pretrained(again / "image_gen", dtype=torch.float32)) == wanted
    model.add_adapter(LoraConfig(target_modules=["query_key_value"]))
    model.save_pretrained(adapter)
    assert (adapter / "adapter_model.safetensors").is_file() and not (adapter / "audio_detokenizer").exists()
    assert weights_of(ImageGen.from_pretrained(adapter / "image_gen", dtype=torch.float32)) == wanted


def test_a_part_that_holds_an_adapter_is_not_saved_in_a_form_that_does_not_load(tmp_path, caplog):
    model = load_model(ROOT, device="cpu", parts=["image_gen"])
    model.image_gen.transformer.add_adapter(LoraConfig(target_modules=["to_q"]))
    model.save_pretrained(tmp_path)
    assert "not with the one in its place: its weights are not those that its configuration tells of" in caplog.text
    assert (tmp_path / "image_gen" / WEIGHTS).read_bytes() == (ROOT / "image_gen" / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["smell"]}, "unknown parts smell; there are vision, audio, whisper, talker, image_gen"),
        ({"quantization": "3bit"}, "unknown quantization '3bit'; give one of 4bit, 8bit"),
    ],
)
def test_unknown_choices_are_refused_before_loading(options, message):
    with pytest.raises(ValueError, match=message):
        load_model("no such directory", **options)


REFUSED = [
    ({"bogus": 1}, "bogus=1: no option of from_pretrained, and no setting of the model; check the spelling"),
    ({"device": "bogus"}, "device='bogus' names no device"),
    ({"device": "cpu:1"}, "device='cpu:1' names no device; give 'cpu', 'cuda' or 'cuda:1'"),
    ({"device": torch.device("cpu", 1)}, "names no device"),
    ({"device": "cuda:4096"}, "device='cuda:4096' names no device"),
    ({"device": "cuda:99"}, "device='cuda:99': this machine has .* CUDA GPU"),
    ({"device_map": "cpu"}, "device_map='cpu': load_model puts all weights on one device, which is device="),
    ({"parts": "vision"}, "parts='vision' must be a list of parts, of vision, audio, whisper"),
    ({"parts": 3}, "parts=3 must be a list of parts"),
    ({"parts": [3]}, "unknown parts 3; there are vision, audio"),
    ({"quantization": 3}, "quantization=3 must be '4bit', '8bit' or a configuration"),
    ({"trust_remote_code": "x"}, "trust_remote_code='x' must be True or False"),
    ({"source": 3}, "source=3 must be a directory, or the Hub id"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_nothing_takes_is_named_before_weights_are_read(monkeypatch, options, message):
    monkeypatch.setattr("transformers.modeling_utils.load_state_dict", lambda *args, **kwargs: pytest.fail("read"))
    with pytest.raises((TypeError, ValueError), match=message):
        load_model(**{"source": ROOT, **options})
