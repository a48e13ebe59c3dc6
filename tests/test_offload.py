"""Weights that wait on the CPU or on a disk give the answers that loaded ones give: text, speech and pictures."""

import re
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from image_helpers import STEPS, build_drawing_repository, small_image_gen
from speech_helpers import build_speaking_repository
from transformers import AutoModelForMultimodalLM, AutoProcessor

from ming.talker_steps import StopRules

ROOT = Path(__file__).resolve().parents[1]
PICTURE = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
RECORDING = {"type": "audio", "audio": str(ROOT / "demo" / "recording.wav")}
CONTENTS = ([PICTURE, {"type": "text", "text": "Describe the picture."}], [RECORDING])
DECODER_ON_DISK = {
    "model": "disk",
    "vision": "cpu",
    "linear_proj": "cpu",
    "audio": "disk",
    "linear_proj_audio": "cpu",
    "whisper_encoder": "disk",
    "linear_proj_whisper": "cpu",
    "talker": "disk",
}


def load(path: Path, **options):
    options = {"trust_remote_code": True, "dtype": torch.float32, **options}
    return AutoModelForMultimodalLM.from_pretrained(path, **options).eval()


def load_offloaded(path: Path, folder: Path, device_map, **options):
    model = load(path, device_map=device_map, offload_folder=folder, **options)
    assert "disk" in model.hf_device_map.values()
    assert any(weight.device.type == "meta" for weight in model.parameters())
    return model


@pytest.fixture(scope="module")
def inputs():
    processor = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
    chats = [[{"role": "user", "content": content}] for content in CONTENTS]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template(chats, **options)


def test_text_is_the_same_with_most_weights_on_disk(inputs, tmp_path):
    whole = load(ROOT).generate(**inputs, max_new_tokens=24)
    for device_map, options in (("auto", {"max_memory": {"cpu": "6MB"}}), (DECODER_ON_DISK, {})):
        model = load_offloaded(ROOT, tmp_path / "offload", device_map, **options)
        assert not [name for name in model.hf_device_map if re.search(r"layers\.\d+\.", name)]  # whole layers
        assert model.device == torch.device("cpu")  # inputs go where it computes, not where the weights wait
        assert torch.equal(model.generate(**inputs.to(model.device), max_new_tokens=24), whole)


def test_speech_is_the_same_with_the_talker_on_disk(tmp_path):
    repository = build_speaking_repository(tmp_path / "speaking")
    options = {"seed": 3, "rules": StopRules(max_new_ids=12)}
    whole = load(repository).speak("a red star", **options)
    model = load_offloaded(repository, tmp_path / "offload", DECODER_ON_DISK)
    assert model.talker.device == torch.device("cpu")
    assert torch.equal(model.speak("a red star", **options).waveforms[0], whole.waveforms[0])


def test_pictures_are_the_same_with_the_decoder_on_disk(inputs, tmp_path):
    repository = build_drawing_repository(tmp_path / "drawing")
    options = {"generation_mode": "image", "seed": 1, "num_inference_steps": STEPS}
    whole = load(repository).generate(**inputs, **options).images
    model = load_offloaded(repository, tmp_path / "offload", DECODER_ON_DISK)
    offloaded = model.generate(**inputs, **options).images
    assert [one.tobytes() for one in offloaded] == [one.tobytes() for one in whole]
    # The parts that draw take turns as well.
    model.image_gen.enable_model_cpu_offload("cpu")
    taking_turns = model.generate(**inputs, **options).images
    assert [one.tobytes() for one in taking_turns] == [one.tobytes() for one in whole]


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_parts_beside_the_main_weights_are_offloaded_by_accelerate(inputs, tmp_path, kind):
    """`accelerate.cpu_offload` and `disk_offload` leave meta tensors; the calls are those of a loaded part."""
    model = load(ROOT, dtype=torch.float32)
    model.components.use(image_gen=small_image_gen())
    drawing = {"generation_mode": "image", "seed": 1, "num_inference_steps": STEPS}
    speaking = {"seed": 3, "rules": StopRules(max_new_ids=12)}
    wanted = model.generate(**inputs, **drawing).images, model.speak("a red star", **speaking).waveforms
    for part in (model.image_gen.load(), model.audio_detokenizer.load()):
        if kind == "cpu":
            cpu_offload(part, torch.device("cpu"))
        else:
            disk_offload(part, tmp_path / type(part).__name__, torch.device("cpu"))
        assert next(part.parameters()).device.type == "meta" and part.device.type == "cpu"
    found = model.generate(**inputs, **drawing).images, model.speak("a red star", **speaking).waveforms
    assert [one.tobytes() for one in found[0]] == [one.tobytes() for one in wanted[0]]
    assert torch.equal(found[1][0], wanted[1][0])


def test_parts_that_draw_take_turns(monkeypatch):
    """One is fetched when it is called, after the one before it was sent back; the last one goes back at the end."""
    image_gen = small_image_gen()
    image_gen.enable_model_cpu_offload("cpu")
    names = {image_gen.connector: "connector", image_gen.transformer: "transformer", image_gen.vae: "vae"}
    moves = []
    for part, name in names.items():
        move = part.to
        monkeypatch.setattr(
            part, "to", lambda device, move=move, name=name: (moves.append((name, str(device))), move(device))[1]
        )
    states = torch.randn(1, 9, 192, generator=torch.Generator().manual_seed(0))
    image_gen.draw(image_gen.condition(states), num_inference_steps=STEPS)
    order = [name for name, _ in moves]
    assert order.index("connector") < order.index("transformer") < order.index("vae")
    assert order[-1] == "vae" and len({name for name, _ in moves}) == 3
