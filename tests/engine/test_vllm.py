"""vLLM answers as `generate` does, in float32: run by `make test-vllm`, in an environment that has vLLM."""

import statistics
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.engine.questions import BOUND, COUNTS, ROOT, Question, Reply, ask, difference

ENGINES = {
    "eager": {"enforce_eager": True},
    "compiled": {},
    "chunked": {"enforce_eager": True, "max_num_batched_tokens": 64},
    "two processes": {"enforce_eager": True, "tensor_parallel_size": 2},
}
ROUTED = tuple(row for row in COUNTS if row != "text_only")  # whose prompts have media
WRONG = 100 * BOUND


@pytest.fixture(autouse=True)
def any_core(monkeypatch):
    """By itself vLLM keeps a core free and gives each process others, which takes more cores than there may be."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def medians(asked: list[Question], replies: list[Reply], expected: list[Reply]) -> dict[str, float]:
    """The median of the differences of each row, so that one medium with a wrong router cannot hide among others.

    The lower one of two: where experts are nearly tied a difference is larger, and a trial asks few questions.
    """
    found = {question.row: [] for question in asked}
    for question, reply, wanted in zip(asked, replies, expected, strict=True):
        found[question.row].append(difference(reply, wanted))
    return {row: statistics.median_low(differences) for row, differences in found.items()}


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_and_probabilities_are_those_of_generate(engine, asked, processor, expected):
    replies = ask(ROOT, processor, asked, **ENGINES[engine])
    pairs = list(zip(replies, expected, strict=True))
    differences = [difference(*pair) for pair in pairs]
    figures = f"median {np.median(differences):.1e}, most {max(differences):.1e}"
    sys.stdout.write(f"\n{engine}: {len(pairs)} questions, {figures}\n")
    assert not [(wanted.text, found.text) for found, wanted in pairs if found.text != wanted.text]
    assert not {row: median for row, median in medians(asked, replies, expected).items() if median > BOUND}


@pytest.fixture
def one_router(tmp_path):
    """Ming-Tiny with its text routers in the places of those of images and audio, as if the types were lost."""
    for path in ROOT.iterdir():
        if not path.name.startswith((".", "model.")):
            (tmp_path / path.name).symlink_to(path)
    weights = load_file(ROOT / "model.safetensors")
    for name in list(weights):
        layer, _, end = name.rpartition(".mlp.")
        if end in ("image_gate.weight", "audio_gate.weight"):
            weights[name] = weights[f"{layer}.mlp.gate.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_a_wrong_router_is_noticed(one_router, asked, processor, expected):
    """By the measure above; the answers alone would not show it."""
    chosen = [index for index in range(len(asked)) if index < 5 or asked[index - 5].row != asked[index].row]
    questions, wanted = [asked[index] for index in chosen], [expected[index] for index in chosen]
    replies = ask(one_router, processor, questions, enforce_eager=True)
    same = sum(reply.text == right.text for reply, right in zip(replies, wanted, strict=True))
    found = medians(questions, replies, wanted)
    figures = ", ".join(f"{row} {median:.1e}" for row, median in found.items())
    sys.stdout.write(f"\nwrong routers: {same} of {len(chosen)} answers the same; {figures}\n")
    assert found["text_only"] <= BOUND
    assert min(found[row] for row in ROUTED) >= WRONG
