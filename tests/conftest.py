"""Shared fixtures: the repository on `sys.path`, one thread, the golden thinker and a tiny random one."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
TESTS = Path(__file__).resolve().parent
for folder in (TESTS.parent, TESTS):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import pytest  # noqa: E402
import torch  # noqa: E402
from thinker_helpers import GOLDENS, load_golden_model, read_goldens, tiny_model  # noqa: E402
from transformers import AutoModelForMultimodalLM, AutoProcessor  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def goldens() -> dict[str, torch.Tensor]:
    """Golden tensors by name; float16 storage is widened to float32."""
    return read_goldens()


@pytest.fixture(scope="session")
def golden_meta() -> dict:
    return json.loads((GOLDENS / "goldens.json").read_text(encoding="utf-8"))["meta"]


@pytest.fixture(scope="session", params=["eager", "sdpa"])
def golden_model(request):
    """The thinker of the goldens as released: Whisper's frames see the padding of their batch."""
    return load_golden_model(request.param, mask_padding=False)


@pytest.fixture(scope="session", params=["eager", "sdpa"])
def masked_golden_model(request):
    """The thinker of the goldens with our default: no leakage between Whisper segments."""
    return load_golden_model(request.param, mask_padding=True)


@pytest.fixture(scope="session")
def tiny():
    """A random thinker with all towers, eval mode. Do not change it: build your own with `tiny_model`."""
    return tiny_model()


@pytest.fixture(scope="module")
def model():
    """Ming-Tiny as it is bundled, with all its parts."""
    return AutoModelForMultimodalLM.from_pretrained(TESTS.parent, trust_remote_code=True, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor():
    """Ming-Tiny's processor."""
    return AutoProcessor.from_pretrained(TESTS.parent, trust_remote_code=True)


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    """A server of a model with everything in and out."""
    from serving_helpers import omni_server  # only tests of the server pay for its imports

    server = omni_server(tmp_path_factory.mktemp("serving"))
    yield server
    server.close()
