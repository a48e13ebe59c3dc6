"""Training on two processes that get different kinds of chats: the gradients are those of one process with all of
them, and a run is resumed from a distributed checkpoint."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from parallel_helpers import run_on_two
from thinker_helpers import Chat, batch, tiny_config, tiny_model

from ming.modeling_bailing_moe import BailingMoeSeparateExperts

ROOT = Path(__file__).resolve().parents[1]

BEGINNING = """
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from thinker_helpers import Chat, batch, tiny_model

def shard(model):
    encoders = [*model.vision.blocks, *model.audio.encoders, *model.whisper_encoder.blocks]
    for part in (*encoders, *model.model.model.layers, *model.talker.model.model.layers, model):
        fully_shard(part)
    return model

def loss_of(model, chats):
    inputs = batch(chats)
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100  # as many tokens of every chat
    return model(**inputs, labels=labels, use_cache=False).loss
"""
GRADIENTS = """
WRAPPERS = {"ddp": DistributedDataParallel, "fsdp2": shard}
kinds = {
    "picture, text": lambda: [Chat(1).text(3).image().text(5), Chat(2).text(9)],
    "text, recording": lambda: [Chat(3).text(9), Chat(4).text(2).audio(9).text(6)],
    "text, long recording": lambda: [Chat(5, "whisper").text(9), Chat(6, "whisper").audio(9).text(6)],
    "picture and video, recording": lambda: [Chat(7).image().text(2).video().text(6), Chat(8).audio(5).text(7)],
    "text, text": lambda: [Chat(9).text(8), Chat(10).text(11)],
}

def new_model(frozen=()):
    model = tiny_model().train()
    for name, weight in model.named_parameters():
        weight.requires_grad_(not name.startswith(frozen))
    return model

def gradients(model, chats):
    model.zero_grad()
    loss = loss_of(model, chats)
    loss.backward()
    return loss.detach(), {name.removeprefix("module."): weight.grad for name, weight in model.named_parameters()}

def difference(found, wanted, frozen):
    # of the loss, and of the gradients in parts of the largest number of each; what no process used has zeros
    (loss, own), (whole_loss, whole) = found, wanted
    dist.all_reduce(loss)
    values = [abs(loss / 2 - whole_loss)]
    for name, gradient in own.items():
        assert (gradient is None) == name.startswith(frozen), name
        if gradient is not None:
            gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            expected = torch.zeros_like(gradient) if whole[name] is None else whole[name]
            values.append((gradient - expected).abs().max() / expected.abs().max().clamp(min=1e-3))
    return max(values).item()

wanted = {kind: gradients(new_model(), chats()) for kind, chats in kinds.items()}  # one process, without a group
assert wanted["text, text"][1]["vision.patch_embed.proj.weight"] is None
begin()
rank, report = dist.get_rank(), {}
for frozen in ((), ("vision.", "audio.", "whisper_encoder.")):
    for wrapper, wrap in WRAPPERS.items():
        model = wrap(new_model(frozen))
        for kind, chats in kinds.items():
            found = gradients(model, chats()[rank:][:1])
            report[f"{wrapper}, {len(frozen)} frozen, {kind}"] = difference(found, wanted[kind], frozen)
if rank == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(report, file)
"""
RESUMED = """
begin()
rank = dist.get_rank()

def start():
    model = shard(tiny_model().train())
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

def step(model, optimizer, seed):
    loss_of(model, [Chat(seed + rank).text(8 + rank)]).backward()
    optimizer.step()
    optimizer.zero_grad()

model, optimizer = start()
step(model, optimizer, 1)
weights, moments = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=sys.argv[1])
step(model, optimizer, 3)
again, other = start()
weights, moments = get_state_dict(again, other)
saved = {"model": weights, "optimizer": moments}
dcp.load(saved, checkpoint_id=sys.argv[1])
set_state_dict(again, other, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
step(again, other, 3)
for (name, wanted), found in zip(model.named_parameters(), again.parameters(), strict=True):
    torch.testing.assert_close(found.to_local(), wanted.to_local(), rtol=0, atol=0, msg=name)
"""


def test_two_processes_with_different_media_train_like_one(tmp_path):
    run_on_two(BEGINNING + GRADIENTS, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) == 20 and max(report.values()) < 1e-4, report


@pytest.fixture
def group_of_one():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def without_gradients(model: torch.nn.Module) -> set[str]:
    """The parts of a model that a text alone gives no gradients to, while it trains."""
    inputs = batch([Chat(1).text(9)])
    model.train()(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
    return {name.split(".")[0] for name, weight in model.named_parameters() if weight.grad is None}


def test_a_process_alone_calls_no_idle_part():
    parts = {"vision", "audio", "whisper_encoder", "linear_proj", "linear_proj_audio", "linear_proj_whisper"}
    assert without_gradients(tiny_model()) == {*parts, "talker"}


def test_a_group_of_one_trains_every_part(group_of_one):
    alone = tiny_model()
    assert without_gradients(alone) == set()
    assert not any(weight.grad.any() for name, weight in alone.named_parameters() if not name.startswith("model."))
    # While it answers, nothing waits for the parts.
    with torch.no_grad():
        logits = alone.eval()(**batch([Chat(1).text(9)])).logits
    assert torch.equal(logits, tiny_model()(**batch([Chat(1).text(9)])).logits)


def test_experts_that_no_token_visits_take_part(group_of_one):
    """As modules of their own, which is how quantised ones are."""
    experts = BailingMoeSeparateExperts(tiny_config().llm_config)
    states, index, weights = torch.randn(3, 64), torch.tensor([[0, 1]] * 3), torch.full((3, 2), 0.5)
    for is_training in (True, False):
        experts.train(is_training).zero_grad()
        experts(states, index, weights).sum().backward()
        called = [place for place, expert in enumerate(experts) if expert.down_proj.weight.grad is not None]
        assert called == list(range(len(experts)) if is_training else range(2))


def test_the_shipped_configuration_splits_every_layer(tiny):
    config = yaml.safe_load((ROOT / "training" / "fsdp2.yaml").read_text(encoding="utf-8"))["fsdp_config"]
    wrapped = config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert config["fsdp_version"] == 2 and set(wrapped) == set(tiny._no_split_modules)
    assert set(wrapped) <= {type(module).__name__ for module in tiny.modules()}


def test_text_alone_is_resumed_from_a_distributed_checkpoint(tmp_path):
    """The state of the optimizer is complete: encoders and routers that no token visited have theirs."""
    run_on_two(BEGINNING + RESUMED, tmp_path / "checkpoint")
