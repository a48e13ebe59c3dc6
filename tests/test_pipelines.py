"""`pipeline(...)` over the remote code: questions about files, batches, prompts written by hand, speech, pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from image_helpers import build_drawing_repository
from PIL import Image
from speech_helpers import build_speaking_repository
from transformers import pipeline

from image_gen.modeling_image_gen import Drawing
from ming.modeling_bailingmm import OmniOutput

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = json.loads((ROOT / "demo" / "expected.json").read_text(encoding="utf-8"))
FILES = {"image": ROOT / "demo" / "picture.jpg", "audio": ROOT / "demo" / "recording.wav"}
FILES = {medium: str(path) for medium, path in (*FILES.items(), ("video", ROOT / "demo" / "clip.mp4"))}
PICTURE = {"type": "image", "url": FILES["image"]}
RECORDING = {"type": "audio", "audio": FILES["audio"]}
CLIP = {"type": "video", "path": FILES["video"]}
QUESTIONS = {
    "text": ("What comes after three?", "four"),
    "image": ("Describe the picture.", EXPECTED["picture"]),
    "audio": ("Transcribe this recording.", EXPECTED["recording"]),
    "video": ("Which way does it move?", "down"),
}


def user(text: str, *media: dict) -> list[dict]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


CHATS = {
    kind: user(question, *media)
    for (kind, (question, _)), media in zip(QUESTIONS.items(), ((), (PICTURE,), (RECORDING,), (CLIP,)), strict=True)
}


def load(task: str, model: Path, **options):
    return pipeline(task, model=str(model), trust_remote_code=True, dtype=torch.float32, device="cpu", **options)


@pytest.fixture(scope="module")
def anything():
    return load("any-to-any", ROOT)


@pytest.fixture(scope="module")
def seeing():
    return load("image-text-to-text", ROOT)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    return load("any-to-any", build_speaking_repository(tmp_path_factory.mktemp("speaking")))


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    return load("any-to-any", build_drawing_repository(tmp_path_factory.mktemp("drawing")))


def texts(outputs: list) -> list[str]:
    """Generated texts of a chat or of several."""
    return [item["generated_text"] for item in (row[0] if isinstance(row, list) else row for row in outputs)]


# Any to any: text


@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_chat(anything, kind):
    assert texts(anything(CHATS[kind], return_full_text=False)) == [QUESTIONS[kind][1]]


def test_recordings_of_different_length_in_one_batch(anything):
    """The library pads every input of a batch in front."""
    question = {"type": "audio", "audio": str(ROOT / "demo" / "question.wav")}
    chats = [user("Transcribe this recording.", recording) for recording in (question, RECORDING)]
    together = texts(anything(chats, batch_size=2, return_full_text=False))
    assert together == [EXPECTED["question"], EXPECTED["recording"]]


def test_a_chat_grows_by_the_reply(anything):
    ((output),) = anything(CHATS["image"])
    assert output["generated_text"] == [*CHATS["image"], {"role": "assistant", "content": EXPECTED["picture"]}]


def test_an_assistant_message_is_continued(anything):
    start, rest = EXPECTED["picture"][:13], EXPECTED["picture"][13:]
    chat = [*CHATS["image"], {"role": "assistant", "content": [{"type": "text", "text": start}]}]
    assert texts(anything(chat, return_full_text=False)) == [rest]


def test_several_chats(anything):
    assert texts(anything(list(CHATS.values()), return_full_text=False)) == [
        answer for _, answer in QUESTIONS.values()
    ]


def test_chats_of_one_kind_share_a_batch(anything):
    chats = [CHATS["image"], user("What colour is the background?", PICTURE)]
    sizes = []
    hook = lambda module, args, kwargs: sizes.append(len(kwargs["inputs_embeds"]))  # noqa: E731
    handle = anything.model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    answers = texts(anything(chats, return_full_text=False, batch_size=2))
    handle.remove()
    assert answers == [EXPECTED["picture"], "black"] and set(sizes) == {2}


def test_options_reach_processor_and_model(anything):
    assert texts(anything(CHATS["image"], return_full_text=False, max_new_tokens=3)) == ["a small green"]
    widths = []
    handle = anything.model.whisper_encoder.register_forward_pre_hook(
        lambda module, args: widths.append(args[0].shape)
    )
    answer = texts(anything(CHATS["audio"], return_full_text=False, use_whisper_encoder=True))
    handle.remove()
    assert answer == [EXPECTED["recording"]] and len(widths) == 1


@pytest.mark.parametrize(("kind", "argument"), [("image", "images"), ("audio", "audio"), ("video", "videos")])
def test_a_prompt_and_its_file(anything, kind, argument):
    prompt = anything.processor.apply_chat_template(CHATS[kind])
    (output,) = anything(text=prompt, **{argument: FILES[kind]}, return_full_text=False)
    assert output == {"input_text": prompt, "generated_text": QUESTIONS[kind][1]}


def test_plain_prompts(anything):
    first, second = (anything.processor.apply_chat_template(user(text)) for text in ("What comes after three?", "Hi"))
    assert texts(anything(first, return_full_text=False)) == ["four"]
    alone = texts(anything(second))
    assert texts(anything(text=[first, second])) == [first + "four", *alone]


def test_parts_that_were_left_out_are_named():
    reading = load(
        "any-to-any", ROOT, model_kwargs={f"load_{part}": False for part in ("vision", "talker", "image_gen")}
    )
    assert texts(reading(CHATS["text"], return_full_text=False)) == ["four"]
    with pytest.raises(ValueError, match="load_talker=True"):
        reading(CHATS["text"], generation_mode="audio")
    with pytest.raises(ValueError, match="load_image_gen=True"):
        reading(CHATS["text"], generation_mode="image")
    with pytest.raises(ValueError, match="load_vision=True"):
        reading(CHATS["image"])


# Any to any: speech and pictures


def test_speech(speaking, tmp_path):
    options = {"generation_mode": "audio", "generate_kwargs": {"seed": 2, "max_new_tokens": 2}}
    (first,), (second,) = speaking([CHATS["text"], CHATS["image"]], **options)
    assert first.keys() == {"input_text", "generated_audio"}
    inputs = speaking.processor.apply_chat_template(
        CHATS["text"], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    expected = speaking.model.generate(**inputs, generation_mode="audio", seed=2, max_new_tokens=2)
    for item in (first, second):
        wave = item["generated_audio"]
        assert isinstance(wave, np.ndarray) and wave.dtype == np.float32 and wave.ndim == 1 and wave.std() > 0
    np.testing.assert_allclose(first["generated_audio"], expected.waveforms[0].numpy(), atol=1e-4)
    soundfile.write(tmp_path / "reply.wav", first["generated_audio"], expected.sampling_rate)


def test_pictures(drawing):
    options = {"generation_mode": "image", "generate_kwargs": {"seed": 1, "height": 64, "width": 96}}
    (first,) = drawing(CHATS["text"], **options)
    assert first.keys() == {"input_text", "generated_image"}
    assert isinstance(first["generated_image"], Image.Image) and first["generated_image"].size == (96, 64)
    (again,), (other,) = drawing([CHATS["text"], CHATS["image"]], **options)
    assert again["generated_image"] == first["generated_image"] != other["generated_image"]


def test_outputs_of_several_kinds_are_told_apart(anything):
    """What `generate` returns, of every kind, through the processor's half of the pipeline."""
    picture, ids, wave = Image.new("RGB", (8, 8)), torch.tensor([[40, 41]]), torch.ones(5)
    omni = OmniOutput(sequences=ids, waveforms=[wave], images=[picture])
    convert = anything.processor.post_process_multimodal_output
    assert convert(omni, generation_mode="image") == convert(Drawing([picture], (8, 8)), generation_mode="image")
    assert convert(omni) == convert(ids) == [anything.processor.decode([40, 41])]
    assert [row.tolist() for row in convert(omni, generation_mode="audio")] == [[1.0] * 5]
    with pytest.raises(ValueError, match="the outputs hold no waveforms"):
        convert(Drawing([picture], (8, 8)), generation_mode="audio")


# Image and text to text


def test_image_text_to_text(seeing):
    assert texts(seeing(text=CHATS["image"], return_full_text=False)) == [EXPECTED["picture"]]
    assert texts(seeing(text=[CHATS["image"], CHATS["text"]], return_full_text=False)) == [EXPECTED["picture"], "four"]
    prompt = seeing.processor.apply_chat_template(CHATS["image"])
    pictures = [Image.open(FILES["image"])] * 2
    assert texts(seeing(images=pictures, text=[prompt] * 2, return_full_text=False)) == [EXPECTED["picture"]] * 2
