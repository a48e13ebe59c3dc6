"""`load_model`: its defaults, the parts that it leaves out, and what it refuses."""

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


def test_dtype_and_options_of_from_pretrained():
    model = load_model(ROOT, device="cpu", dtype=torch.bfloat16, load_talker=False)
    assert model.dtype == torch.bfloat16 and model.config.load_vision and not model.config.load_talker


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
