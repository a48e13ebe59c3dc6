"""The heat map of routing: shares that add up, told apart by modality, and a picture of them."""

import json
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor

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
