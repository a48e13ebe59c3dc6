"""The heat map of routing: shares that add up, told apart by modality, and a picture of them."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from ming.cli.usage import UsageError
from tools.routing import DEFAULTS, chats_of, expert_load, main

ROOT = Path(__file__).resolve().parents[1]


def prepare(media: dict[str, list]):
    processor = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
    return processor.apply_chat_template(
        chats_of(media), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


def test_loads_add_up_and_do_not_depend_on_padding(model):
    alone = expert_load(model, prepare({"text": ["What comes after three?"]}))
    assert set(alone) == {"text"}
    config = model.config.llm_config
    assert alone["text"].shape == (config.num_hidden_layers, config.num_experts)
    torch.testing.assert_close(alone["text"].mean(dim=1), torch.ones(config.num_hidden_layers))
    padded = expert_load(model, prepare({"text": ["What comes after three?"] * 2, "image": DEFAULTS["image"]}))
    assert set(padded) == {"text", "image"}
    only_image = expert_load(model, prepare({"image": DEFAULTS["image"]}))
    torch.testing.assert_close(padded["image"], only_image["image"])


def test_clips_go_through_the_router_of_pictures(model):
    assert set(expert_load(model, prepare({"video": DEFAULTS["video"]}))) == {"text", "image"}
    assert set(expert_load(model, prepare({"audio": DEFAULTS["audio"]}))) == {"text", "audio"}


def test_the_command_draws_every_router(tmp_path, capsys):
    main([str(ROOT), "--output", str(tmp_path / "routing.png"), "--json", str(tmp_path / "routing.json")])
    written = json.loads((tmp_path / "routing.json").read_text())
    assert list(written) == ["text", "image", "audio"]
    picture = Image.open(tmp_path / "routing.png").convert("RGB")
    assert len(picture.getcolors(maxcolors=1 << 20)) > 100
    assert "most loaded expert" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "repository nowhere: no such directory"),
        ([str(ROOT), "--output", "/nowhere/routing.png"], "the directory /nowhere does not exist"),
        ([str(ROOT), "--json", "/nowhere/routing.json"], "the directory /nowhere does not exist"),
        ([str(ROOT), "--image", str(ROOT / "README.md")], "cannot read image"),
        ([str(ROOT), "--audio", "nowhere.wav"], "--audio nowhere.wav: no such file"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_refused_before_any_loading(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        main(arguments)
    assert not list(tmp_path.iterdir())
