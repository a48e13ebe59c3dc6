"""The whole model's `forward` as an exported or compiled graph, for prompts of any length."""

import pytest
import torch
from thinker_helpers import Chat, batch, tiny_model

LENGTH = torch.export.Dim("length", min=2, max=64)


def prompts(kind: str) -> list[dict[str, torch.Tensor]]:
    """Two prompts of different lengths: ids of text, or of text and an image."""
    chats = [Chat(seed).text(3) for seed in (1, 2)]
    if kind == "image":
        chats = [chat.image(1, 4, 6) for chat in chats]
    return [batch([chat.text(count)]) for chat, count in zip(chats, (5, 21), strict=True)]


@torch.no_grad()
def traced_inputs(model, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is traced: ids of text as they are; media have been encoded."""
    if "pixel_values" not in inputs:
        return inputs
    media = {name: value for name, value in inputs.items() if name != "attention_mask"}
    embeds, token_types = model.embed(**media)
    return {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"], "mm_token_type_ids": token_types}


@torch.no_grad()
def assert_same(traced, model, inputs):
    found = traced(**traced_inputs(model, inputs), use_cache=False).logits
    torch.testing.assert_close(found, model(**inputs, use_cache=False).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_one_export_reads_prompts_of_any_length(tiny, kind):
    short, long = prompts(kind)
    arguments = {**traced_inputs(tiny, short), "use_cache": False}
    shapes = {name: {1: LENGTH} if isinstance(value, torch.Tensor) else None for name, value in arguments.items()}
    with torch.no_grad():
        program = torch.export.export(tiny, (), arguments, dynamic_shapes=shapes).module()
    for inputs in (short, long):
        assert_same(program, tiny, inputs)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_one_graph_reads_prompts_of_any_length(kind):
    model = tiny_model()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for inputs in prompts(kind):
        assert_same(compiled, model, inputs)


def test_exporting_the_encoders_is_refused_with_the_way_round(tiny):
    with torch.no_grad(), pytest.raises(ValueError, match=r"call embed\(\.\.\.\) first, and export with"):
        torch.export.export(tiny, (), prompts("image")[0])


def test_onnx_of_the_decoder_reads_prompts_of_any_length(tmp_path):
    import onnxruntime

    decoder = tiny_model().model
    decoder.set_experts_implementation("batched_mm")  # an operator for grouped products is not in ONNX

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = decoder

        def forward(self, inputs_embeds, mm_token_type_ids):
            return self.decoder(
                inputs_embeds=inputs_embeds, mm_token_type_ids=mm_token_type_ids, use_cache=False
            ).logits

    generator = torch.Generator().manual_seed(0)

    def inputs(length: int) -> dict[str, torch.Tensor]:
        embeds = torch.randn(1, length, decoder.config.hidden_size, generator=generator)
        return {"inputs_embeds": embeds, "mm_token_type_ids": torch.arange(length)[None] % 4}

    path, shapes = tmp_path / "decoder.onnx", {name: {1: LENGTH} for name in inputs(2)}
    with torch.no_grad():
        torch.onnx.export(
            Logits().eval(), (), path, kwargs=inputs(7), dynamic_shapes=shapes, dynamo=True, verbose=False
        )
        session = onnxruntime.InferenceSession(path)
        for length in (7, 30):
            given = inputs(length)
            (found,) = session.run(None, {name: value.numpy() for name, value in given.items()})
            torch.testing.assert_close(torch.from_numpy(found), Logits()(**given), atol=1e-4, rtol=0)
