"""Guesses that are checked in one pass: the tokens are those of plain greedy decoding."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM, AutoProcessor

ROOT = Path(__file__).resolve().parents[1]
PICTURE = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
RECORDING = {"type": "audio", "audio": str(ROOT / "demo" / "recording.wav")}
CONTENTS = {
    "text": "Say this: a small red circle a small red circle a small red circle",
    "image": [PICTURE, {"type": "text", "text": "Describe the picture."}],
    "audio": [{"type": "text", "text": "Transcribe this recording."}, RECORDING],
}


@pytest.fixture(scope="module", params=CONTENTS)
def inputs(request):
    processor = AutoProcessor.from_pretrained(ROOT, trust_remote_code=True)
    chat = [{"role": "user", "content": CONTENTS[request.param]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template(chat, **options)


def passes(model, inputs, **options) -> tuple[torch.Tensor, int]:
    """The sequence, and how many passes of the decoder it took."""
    count = 0

    def hook(module, args, output):
        nonlocal count
        count += 1

    handle = model.get_decoder().register_forward_hook(hook)
    try:
        return model.generate(**inputs, max_new_tokens=40, **options), count
    finally:
        handle.remove()


def test_prompt_lookup_gives_the_same_tokens_in_fewer_passes(model, inputs):
    plain, every_token = passes(model, inputs)
    guessed, count = passes(model, inputs, prompt_lookup_num_tokens=4)
    assert torch.equal(guessed, plain)
    if "mm_token_type_ids" not in inputs or not inputs["mm_token_type_ids"].any():
        assert count < every_token  # the answer repeats the question


def test_a_small_assistant_gives_the_same_tokens(model, inputs):
    """An assistant reads token ids alone; it guesses what it can, and the model decides."""
    assistant = AutoModelForMultimodalLM.from_pretrained(
        ROOT, trust_remote_code=True, dtype=torch.float32, load_vision=False, load_audio=False, load_whisper=False
    ).eval()
    plain, _ = passes(model, inputs)
    assisted, _ = passes(model, inputs, assistant_model=assistant)
    assert torch.equal(assisted, plain)
