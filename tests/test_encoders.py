"""Parts of the encoders: positions, and lengths after the projector."""

import pytest
import torch
from thinker_helpers import tiny_config

from ming.modeling_encoders import (
    BailingMMWhisperEncoder,
    audio_projector,
    projected_lengths,
    sinusoids,
    split_audio_segments,
)


@pytest.fixture
def half_precision():
    """What the library does while it builds a model in bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_positions_are_float32_while_a_model_is_built_in_bfloat16(half_precision):
    expected = torch.arange(1500, dtype=torch.float64)
    table = sinusoids(torch.arange(1500), 64)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table[:, 0].double(), expected.sin(), atol=1e-6, rtol=0)
    encoder = BailingMMWhisperEncoder(tiny_config().whisper_config)
    assert encoder.conv1.weight.dtype == torch.bfloat16
    positions = torch.arange(len(encoder.positional_embedding))
    assert torch.equal(encoder.positional_embedding, sinusoids(positions, encoder.config.d_model))


@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2), (4, 2), (5, 3)])
def test_lengths_after_the_projector(kernel_size, stride):
    projector = audio_projector(4, 8, 2, kernel_size, stride)
    for length in (5, 6, 7, 30):
        (expected,) = projected_lengths(torch.tensor([length]), kernel_size, stride).tolist()
        assert projector(torch.zeros(1, 4, length)).shape == (1, expected, 8)


def test_padding_stands_at_either_end_of_a_row():
    """The processor pads at the end, the library's pipelines at the start; a recording may begin with silence."""
    frames, silence = torch.arange(1.0, 6.0)[:, None], torch.zeros(2, 1)
    rows = [torch.cat([frames, silence]), torch.cat([silence, frames]), torch.cat([silence, frames[:3], silence])]
    segments, lengths = split_audio_segments(torch.stack(rows), torch.tensor([[2, 3], [2, 3], [1, 4]]))
    assert lengths.tolist() == [2, 3, 2, 3, 1, 4]
    found = [segment[:length, 0].tolist() for segment, length in zip(segments, lengths, strict=True)]
    assert found == [[1, 2], [3, 4, 5], [1, 2], [3, 4, 5], [0], [0, 1, 2, 3]]
