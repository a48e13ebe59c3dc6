"""Objectives of talker and vocoder, and the stage that trains Ming-Tiny to speak."""

import numpy as np
import pytest
import torch
from speech_helpers import talker_config, tiny_detokenizer
from torch import nn

from ming.modeling_talker import BailingMMTalker
from ming.talker_steps import StopRules, TalkerPrompt
from ming.training.objectives import IGNORE
from ming.training.talker import WordAlignment, pointing_loss, talker_batch, talker_loss
from ming.training.vocoder import Critics, adversarial_loss, critic_loss, mel_loss, pitch, spectral_loss
from training.tiny.speaking import SEGMENT_FRAMES, VocoderTask

RATE, HOP = 22050, 256


def tone(frequency: float, seconds: float = 0.5, harmonics: int = 5) -> torch.Tensor:
    """A voice-like sound: a fundamental and weaker multiples of it, [1, S]."""
    time = torch.arange(int(seconds * RATE)) / RATE
    return sum(torch.sin(2 * torch.pi * frequency * k * time) / k for k in range(1, harmonics + 1))[None] * 0.3


@pytest.mark.parametrize("frequency", [80.0, 123.4, 220.0, 410.0])
def test_pitch_of_a_voiced_sound(frequency):
    found = pitch(tone(frequency), RATE, HOP)
    assert found.shape == (1, tone(frequency).shape[1] // HOP)
    middle = found[0, 4:-4]
    assert ((middle - frequency).abs() < 0.02 * frequency).all()


def test_silence_and_noise_have_no_pitch():
    assert (pitch(torch.zeros(2, RATE // 4), RATE, HOP) == 0).all()
    noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    assert (pitch(noise, RATE, HOP) == 0).float().mean() > 0.9


def test_spectral_and_mel_loss_are_zero_for_equal_sounds_and_grow_with_the_difference():
    sound = tone(200.0)
    louder, other = sound * 1.2, tone(300.0)
    for loss in (spectral_loss, mel_loss):
        assert loss(sound, sound).item() == pytest.approx(0.0, abs=1e-6)
        assert 0 < loss(louder, sound) < loss(other, sound)


def test_losses_are_finite_at_silence():
    silent = torch.zeros(1, 8192, requires_grad=True)
    (spectral_loss(silent, tone(200.0)[:, :8192]) + mel_loss(silent, tone(200.0)[:, :8192])).backward()
    assert silent.grad.isfinite().all()


def test_critics_learn_to_tell_and_the_vocoder_gets_their_gradient():
    torch.manual_seed(0)
    critics = Critics(channels=4)
    real, fake = tone(200.0)[:, :4096].repeat(4, 1), torch.randn(4, 4096) * 0.1
    optimizer = torch.optim.Adam(critics.parameters(), 1e-2)
    first = critic_loss(critics, fake, real)
    for _ in range(20):
        optimizer.zero_grad()
        loss = critic_loss(critics, fake, real)
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * first
    spoken = fake.requires_grad_()
    critics.requires_grad_(False)
    score, matching = adversarial_loss(critics, spoken, real)
    (score + matching).backward()
    assert spoken.grad.abs().sum() > 0
    zero = adversarial_loss(critics, real, real)[1]
    assert zero.item() == pytest.approx(0.0, abs=1e-6) and matching > 0


def prompt(seed: int, num_states: int = 0) -> TalkerPrompt:
    generator = torch.Generator().manual_seed(seed)
    return TalkerPrompt(
        torch.randint(0, 256, (6,), generator=generator),
        torch.randint(0, 24, (3 + seed,), generator=generator),
        torch.randn(192, generator=generator),
        torch.randn(num_states, 48, generator=generator) if num_states else None,
    )


@pytest.fixture
def talker() -> BailingMMTalker:
    torch.manual_seed(0)
    return BailingMMTalker(talker_config(48))


def test_talker_labels_are_the_next_ids_and_the_end(talker):
    prompts, targets = [prompt(0), prompt(1, 4)], [torch.tensor([5, 6, 7]), torch.tensor([9])]
    batch = talker_batch(talker, prompts, targets)
    offset, eos = talker.config.text_vocab_size, talker.config.special_token_ids["<audio_eos>"]
    for row, labels, own, ids in zip(batch["audio_ids"], batch["labels"], prompts, targets, strict=True):
        wanted = [*(own.prompt_ids + offset).tolist(), *(ids + offset).tolist(), eos]
        trained = labels[labels != IGNORE].tolist()
        assert trained == wanted
        assert row[-len(wanted)] == talker.config.special_token_ids["<audio_bos>"]
        assert row[-len(wanted) + 1 :].tolist() == wanted[:-1]


def test_talker_loss_equals_that_of_forward_and_falls(talker):
    batch = talker_batch(talker, [prompt(0), prompt(1, 4)], [torch.tensor([5, 6, 7]), torch.tensor([9])])
    loss, states = talker_loss(talker, batch)
    assert len(states) == talker.config.llm_config.num_hidden_layers + 1
    torch.testing.assert_close(loss, talker(**batch).loss)
    optimizer = torch.optim.Adam(talker.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        now = talker_loss(talker, batch)[0]
        now.backward()
        optimizer.step()
    assert now < 0.1 * loss
    # What was learned is what is said: likeliest ids, from the voice's prompt on.
    talker.eval()
    said = talker.generate([prompt(0), prompt(1, 4)], rules=StopRules(min_new_ids=1))
    assert [piece.codec_ids.tolist() for piece in said] == [[5, 6, 7], [9]]


ALIGNED = ([prompt(0), prompt(1, 4)], [torch.tensor([5, 6, 7]), torch.tensor([9])])
ALIGNMENTS = [
    WordAlignment([0, 0, 1, 1, 2, 3], [0, 0, 1, 1, 2, 3]),
    WordAlignment([0, 1, 2, 3, 3, 3], [0, 1, 1, 2, 3]),
]


def test_pointing_loss_is_that_of_the_weights_that_attention_used(talker):
    batch = talker_batch(talker, *ALIGNED, ALIGNMENTS)
    hidden_states = talker_loss(talker, batch)[1]
    inputs = {name: batch[name] for name in ("attention_mask", "position_ids")}
    rest = ("labels", "words", "due", *inputs)
    embeds = talker.embed(**{name: value for name, value in batch.items() if name not in rest})
    talker.model.set_attn_implementation("eager")
    weights = talker.model.model(inputs_embeds=embeds, **inputs, output_attentions=True).attentions
    for head in range(4):
        shares = [
            weight[place, batch["words"][row] == due].sum()
            for row in range(2)
            for weight in [weights[1][row, head]]
            for place, due in enumerate(batch["due"][row].tolist())
            if due != IGNORE and (batch["words"][row][: place + 1] == due).any()
        ]
        own = pointing_loss(talker, hidden_states[1], batch, layer=1, head=head)
        torch.testing.assert_close(own, -torch.stack(shares).log().mean())


def test_a_head_learns_to_point_at_the_word_that_is_due(talker):
    batch = talker_batch(talker, *ALIGNED, ALIGNMENTS)
    optimizer = torch.optim.Adam(talker.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = pointing_loss(talker, talker_loss(talker, batch)[1][1], batch, layer=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.7 and losses[-1] < 0.1


def test_gradients_reach_text_voice_and_thinker(talker):
    batch = talker_batch(talker, [prompt(1, 4)], [torch.tensor([9, 8])])
    for name in ("speaker_embedding", "thinker_states"):
        batch[name].requires_grad_()
    talker_loss(talker, batch)[0].backward()
    assert batch["speaker_embedding"].grad.abs().sum() > 0 and batch["thinker_states"].grad.abs().sum() > 0
    assert talker.get_input_embeddings().weight.grad[prompt(1).text_ids].abs().sum() > 0


def test_vocoder_task_trains_vocoder_and_critics_apart():
    torch.manual_seed(0)
    task = VocoderTask(tiny_detokenizer(), channels=4)
    waveform = tone(180.0, 1.0)[:, : SEGMENT_FRAMES * HOP].repeat(2, 1)
    quiet = task(waveform, adversary=torch.tensor(0.0))
    quiet["loss"].backward()
    assert all(value.grad is None for value in task.heads.parameters())
    assert task.hift.f0_predictor.classifier.weight.grad.abs().sum() > 0
    task.zero_grad()
    judged = task(waveform, adversary=torch.tensor(1.0))
    judged["loss"].backward()
    assert all(value.grad is not None for value in task.heads.parameters())
    assert isinstance(task.hift, nn.Module) and np.isfinite(judged["critic"].item())
