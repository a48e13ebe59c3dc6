"""`load_model`: its defaults, the parts that it leaves out, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ming.loading import default_device, default_dtype, load_model

ROOT = Path(__file__).resolve().parents[1]


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


def test_parts_that_a_user_changed_are_saved(tmp_path, caplog):
    """A new image head and a new voice; a module that cannot be saved is told."""
    model = load_model(ROOT, device="cpu", parts=["talker", "image_gen"])
    head = model.image_gen.load()
    with torch.no_grad():
        for weight in head.parameters():
            weight.zero_()
    model.components.use(image_gen=head)
    voices = model.components.talker_processor().voices
    voices["mine"] = replace(voices["iris"], name="mine")
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, device="cpu", parts=["talker", "image_gen"])
    assert not any(weight.any() for weight in again.image_gen.load().parameters())
    assert "mine" in again.components.talker_processor().voices
    model.components.use(image_gen=torch.nn.Linear(2, 2))
    model.save_pretrained(tmp_path)
    assert "saved with the image_gen of its checkpoint, not with the one in its place: a Linear" in caplog.text


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
