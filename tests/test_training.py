"""Objectives, balance, optimizer and loop of `training/`."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ming.processing_bailingmm import BailingMMProcessor
from ming.token_types import AUDIO_TYPE, IMAGE_TYPE
from ming.training.balance import DynamicBalance, relative_slope, weighted_sum
from ming.training.chats import chat_batch
from ming.training.loop import fit
from ming.training.objectives import IGNORE, chat_labels, ctc_greedy, ctc_loss
from ming.training.optimizer import Muon, MuonAdamW
from training.tiny.dense import ASPECTS, CLIP_ASPECTS, DenseLoss, _runs, cell_labels, clip_labels, dense_labels
from training.tiny.drawing import Course, render
from training.tiny.evaluate import questions_of, word_errors
from training.tiny.scenes import MOTIONS, Clip, Scene, Shape
from training.tiny.warmup import silhouettes
from training.tiny.world import sample_chat

ROOT = Path(__file__).resolve().parents[1]
ROLE, HUMAN, ASSISTANT, END_ROLE, EOS = 90, 91, 92, 93, 99
HEADER = [ROLE, ASSISTANT, END_ROLE]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_chat_labels_cover_every_assistant_turn_and_its_end():
    ids = [
        EOS,
        ROLE,
        HUMAN,
        END_ROLE,
        1,
        2,
        *HEADER,
        3,
        4,
        ROLE,
        HUMAN,
        END_ROLE,
        5,
        *HEADER,
        6,
        ROLE,
        HUMAN,
        END_ROLE,
    ]
    mask = [0] + [1] * (len(ids) - 1)
    labels = chat_labels(torch.tensor([ids]), torch.tensor([mask]), HEADER, EOS)[0].tolist()
    trained = {index: label for index, label in enumerate(labels) if label != IGNORE}
    assert trained == {9: 3, 10: 4, 11: EOS, 18: 6, 19: EOS}


def test_chat_labels_ignore_padding_and_text_that_looks_like_a_reply():
    row = [ROLE, ASSISTANT, END_ROLE, 7]
    labels = chat_labels(torch.tensor([row]), torch.zeros(1, 4, dtype=torch.long), HEADER, EOS)
    assert (labels == IGNORE).all()


def test_ctc_loss_equals_the_sum_over_all_alignments():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 4, 3), [0, 1]  # blank is class 2
    probabilities = logits[0].softmax(-1)
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        merged = [token for token, _ in itertools.groupby(path) if token != 2]
        if merged == target:
            total += math.prod(probabilities[frame, token].item() for frame, token in enumerate(path))
    loss = ctc_loss(logits, torch.tensor([4]), torch.tensor([target]), torch.tensor([2]))
    assert loss.item() == pytest.approx(-math.log(total) / 2, rel=1e-4)


def test_ctc_greedy_merges_repeats_and_drops_blanks_within_the_length():
    best = torch.tensor([[0, 0, 2, 0, 1, 1, 1]])
    logits = nn.functional.one_hot(best, 3).float()
    assert ctc_greedy(logits, torch.tensor([5])) == [[0, 0, 1]]


def test_weighted_sum_uses_one_where_no_weight_is_given():
    losses = {"text": torch.tensor(2.0), "image": torch.tensor(3.0)}
    assert weighted_sum(losses, {"image": 0.5}).item() == 3.5


def balance_after(curves: dict[str, list[float]]) -> dict[str, float]:
    balance = DynamicBalance(list(curves), window=5)
    for losses in zip(*curves.values(), strict=True):
        balance.observe(dict(zip(curves, losses, strict=True)))
    return balance.weights()


def test_dynamic_balance_favours_the_slower_modality():
    fast, slow = [2.0, 1.7, 1.4, 1.2, 1.0], [2.0, 1.98, 1.96, 1.94, 1.92]
    weights = balance_after({"fast": fast, "slow": slow})
    assert weights["slow"] > 1 > weights["fast"]


def test_dynamic_balance_lowers_a_modality_that_overfits():
    falling, rising = [2.0, 1.9, 1.8, 1.7, 1.6], [1.0, 1.05, 1.1, 1.2, 1.3]
    weights = balance_after({"falling": falling, "rising": rising})
    assert weights["rising"] == 0.5 < weights["falling"]


def test_dynamic_balance_is_even_for_equal_progress_and_until_the_window_is_full():
    curve = [2.0, 1.9, 1.8, 1.7, 1.6]
    assert balance_after({"a": curve, "b": curve}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert balance_after({"a": curve[:4], "b": [5.0, 4.0, 3.0, 2.0]}) == {"a": 1.0, "b": 1.0}
    assert relative_slope(curve) == pytest.approx(-0.1 / 1.8)


def test_dynamic_balance_refuses_unknown_modalities_and_divergence():
    balance = DynamicBalance(["text"])
    with pytest.raises(ValueError, match="unknown modality 'smell'"):
        balance.observe({"smell": 1.0})
    with pytest.raises(ValueError, match="'text' is nan"):
        balance.observe({"text": float("nan")})


def test_dynamic_balance_survives_a_checkpoint():
    first, second = DynamicBalance(["a", "b"], window=2), DynamicBalance(["a", "b"], window=2)
    first.observe({"a": 2.0, "b": 2.0})
    second.load_state_dict(first.state_dict())
    for balance in (first, second):
        balance.observe({"a": 1.0, "b": 1.9})
    assert first.weights() == second.weights() != {"a": 1.0, "b": 1.0}


class Regression(nn.Module):
    """Two layers that learn y = x; one matrix for Muon, biases for AdamW."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(4, 8)
        self.heads = nn.ModuleDict({"out": nn.Linear(8, 4)})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        error = (self.heads["out"](self.hidden(x)) - x).square().mean()
        return {"loss": error, "error": error.detach()}


class Batches(torch.utils.data.Dataset):
    """Item `step` is the batch of step `step`."""

    def __init__(self, steps: int):
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return {"x": torch.randn(16, 4, generator=torch.Generator().manual_seed(step))}


def test_muon_takes_hidden_matrices_and_scales_learning_rates():
    module = Regression()
    optimizer = MuonAdamW(module, 0.01, scales={"hidden": 0.1})
    assert [len(group["params"]) for group in optimizer.muon.param_groups] == [1]
    assert optimizer.muon.param_groups[0]["lr"] == pytest.approx(0.001)
    assert {group["lr"] for group in optimizer.adamw.param_groups} == {0.001, 0.01}


def test_muon_on_a_stack_is_the_librarys_muon_on_each_matrix():
    generator = torch.Generator().manual_seed(0)
    stack = nn.Parameter(torch.randn(3, 8, 5, generator=generator))
    matrices = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    ours = Muon([stack], lr=0.1, weight_decay=0.1)
    library = torch.optim.Muon(matrices, lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        stack.grad = torch.randn(3, 8, 5, generator=generator)
        for matrix, gradient in zip(matrices, stack.grad, strict=True):
            matrix.grad = gradient.clone()
        ours.step()
        library.step()
    torch.testing.assert_close(
        stack.detach(), torch.stack([matrix.detach() for matrix in matrices]), rtol=0, atol=1e-3
    )


def test_loop_learns_and_resumes_to_the_same_weights(tmp_path):
    options = {"learning_rate": 0.02, "seed": 0, "save_steps": 20, "warmup_steps": 2, "dataloader_num_workers": 0}
    options |= {"dataloader_prefetch_factor": None, "disable_tqdm": True}
    whole, parts = Regression(), Regression()
    before = whole(**Batches(1)[0])["loss"].item()
    fit(whole, Batches(40), tmp_path / "whole", **options)
    assert whole(**Batches(1)[0])["loss"].item() < 0.2 * before

    fit(parts, Batches(40), tmp_path / "parts", max_steps=20, lr_scheduler_type="constant_with_warmup", **options)
    straight = Regression()
    fit(straight, Batches(40), tmp_path / "straight", lr_scheduler_type="constant_with_warmup", **options)
    resumed = Regression()
    fit(resumed, Batches(40), tmp_path / "parts", lr_scheduler_type="constant_with_warmup", **options)
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=1e-6)


def test_cell_labels_name_the_shape_where_it_is():
    scene = Scene("white", (Shape("star", "red", "large", "left"),))
    labels = cell_labels(scene, 140, 140, 5, 5)
    kind = labels["kind"].reshape(5, 5)
    assert kind[2, 0] == ASPECTS["kind"].index("star") and kind[:, 3:].max() == 0
    assert (labels["background"] == ASPECTS["background"].index("white")).all() and (labels["count"] == 0).all()


def test_runs_are_the_stretches_of_a_mask_row_by_row():
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]).bool()
    assert _runs(mask).tolist() == [2, 1, 1, 3]


def test_dense_labels_number_the_pictures_of_a_chat_and_spell_all_recordings(rng):
    processor = BailingMMProcessor.from_pretrained(ROOT)
    samples = [sample_chat(row, rng, "train", dense=True, max_side=96) for row in ("two_images", "image_qa")]
    inputs = chat_batch(processor, [sample.messages for sample in samples])
    labels = dense_labels(samples, processor.tokenizer, inputs, use_whisper_encoder=False)
    tokens = (inputs["image_grid_thw"].prod(dim=1) // 4).tolist()
    assert labels["order"]["order"].tolist() == [0] * tokens[0] + [1] * tokens[1] + [0] * tokens[2]
    assert len(labels["vision"]["kind"]) == sum(tokens) == (inputs["mm_token_type_ids"] == IMAGE_TYPE).sum()
    waves = [(np.zeros(8000 + 4000 * n, np.float32), 16000) for n in range(3)]
    chats = [
        [{"role": "user", "content": [{"type": "audio", "audio": wave}, {"type": "text", "text": "hm"}]}]
        for wave in waves
    ]
    chats = [[*chats[0], {"role": "assistant", "content": "no"}, *chats[1]], chats[2]]
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    lengths = _runs(inputs["mm_token_type_ids"] == AUDIO_TYPE)
    assert len(lengths) == 3 and lengths.tolist() == sorted(lengths.tolist())


def test_dense_loss_trains_the_first_layer_to_tell_pictures_apart(rng):
    torch.manual_seed(0)
    dense = DenseLoss(16, 8)
    types = torch.tensor([[0, IMAGE_TYPE, IMAGE_TYPE, 0, IMAGE_TYPE]])
    embeds, states = torch.randn(1, 5, 16), torch.randn(1, 5, 16, requires_grad=True)
    labels = {"order": {"order": torch.tensor([0, 0, 1])}}
    dense(embeds, states, types, labels).backward()
    assert (states.grad.abs().sum(-1)[0] > 0).tolist() == (types[0] == IMAGE_TYPE).tolist()
    assert dense(embeds, None, types, labels) == 0


def test_clip_labels_follow_the_shape():
    course = Course(Clip("star", "red", "small", "right", "white", 5), 0.1, np.linspace(0.2, 0.8, 5), np.full(5, 0.5))
    labels = {name: values.reshape(3, 4, 6) for name, values in clip_labels(course, 168, 112, 3, 4, 6).items()}
    seen = [np.argwhere(step > 0)[:, 1].mean() for step in labels["kind"]]
    assert seen == sorted(seen) and labels["kind"].max() == ASPECTS["kind"].index("star")
    assert labels["x"][:, 0, 0].tolist() == [2, 4, 6] and (labels["y"] == 4).all()
    assert set(labels) == set(CLIP_ASPECTS) and (labels["motion"] == MOTIONS.index("right")).all()
    with pytest.raises(ValueError, match="5 frames are 3 steps of two, got 2"):
        clip_labels(course, 168, 112, 2, 4, 6)


def test_silhouettes_match_the_rendered_picture():
    scene = Scene("white", (Shape("square", "black", "large", "center"),))
    picture = render(scene, 140, 140, np.random.default_rng(3), clean=True)
    masks = silhouettes(scene, 140, 140, np.random.default_rng(3), 5, 5).reshape(5, 5, 7, 7)
    covered = masks.transpose(0, 2, 1, 3).reshape(35, 35) > 0.5
    dark = np.asarray(picture.convert("L").resize((35, 35), resample=4)) < 128
    assert (covered == dark).mean() > 0.99 and 40 < covered.sum() < 400


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [("a b c", "a b c", 0), ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a b", "a x b", 1), ("a b", "", 2)],
)
def test_word_errors(reference, hypothesis, errors):
    assert word_errors(reference, hypothesis) == errors


def test_questions_of_a_chat_keep_the_earlier_turns():
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))
    ]
    asked = list(questions_of(messages))
    assert [answer for _, answer in asked] == ["a1", "a2"] and [len(prompt) for prompt, _ in asked] == [1, 3]
