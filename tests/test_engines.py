"""Ming-Tiny under the library's other ways of decoding: static cache and compilation, continuous batching."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMultimodalLM, CompileConfig, GenerationConfig

ROOT = Path(__file__).resolve().parents[1]
PICTURE = {"type": "image", "image": str(ROOT / "demo" / "picture.jpg")}
QUESTIONS = ("What comes after three?", "Say red in Chinese.", "Repeat this: a small red circle on the left")
NEW_TOKENS = 40


@pytest.fixture
def model():
    options = {"dtype": torch.float32, "load_talker": False, "load_image_gen": False}
    return AutoModelForMultimodalLM.from_pretrained(ROOT, trust_remote_code=True, **options).eval()


def read(processor, content):
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    return processor.apply_chat_template([{"role": "user", "content": content}], **options)


def test_compiled_decoding_over_a_static_cache(model, processor):
    """One graph for every step, traced once: media are in the prompt's embeddings before decoding starts."""
    inputs = read(processor, [PICTURE, {"type": "text", "text": "Describe the picture."}])
    plain = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config = CompileConfig(fullgraph=True, dynamic=False, mode=None, backend="eager")
    config._compile_all_devices = True  # the library compiles on accelerators only
    for _ in range(2):
        options = {"cache_implementation": "static", "compile_config": config}
        assert torch.equal(model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options), plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_continuous_batching_answers_like_generate(model, processor):
    prompts = [read(processor, question)["input_ids"] for question in QUESTIONS]
    wanted = [model.generate(ids, max_new_tokens=NEW_TOKENS)[0, ids.shape[1] :].tolist() for ids in prompts]
    ends = model.generation_config.eos_token_id
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=ends,
        pad_token_id=model.generation_config.pad_token_id,
    )
    outputs = model.generate_batch([ids[0].tolist() for ids in prompts], generation_config=config)
    answers = [outputs[f"req_{index}"].generated_tokens for index in range(len(prompts))]
    assert answers == wanted


def test_places_for_pictures_without_pictures_are_refused(model, processor):
    ids = read(processor, [PICTURE, {"type": "text", "text": "Describe the picture."}])["input_ids"]
    with pytest.raises(ValueError, match=r"30 image or video tokens but no media were given"):
        model.generate(ids)
    with pytest.raises(ValueError, match="no media were given"):
        model.generate_batch([[1, 2], ids[0].tolist()])
