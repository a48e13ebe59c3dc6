"""What the tests of vLLM compare with: Ming-Tiny in float32, and its answers."""

import pytest
import torch

from ming.loading import load_model
from ming.processing_bailingmm import BailingMMProcessor
from tests.engine.questions import ROOT, answer, questions


@pytest.fixture(scope="session")
def processor():
    return BailingMMProcessor.from_pretrained(ROOT)


@pytest.fixture(scope="session")
def model():
    return load_model(str(ROOT), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def asked():
    return questions()


@pytest.fixture(scope="session")
def expected(asked, model, processor):
    return [answer(model, processor, question.messages, **question.options) for question in asked]
