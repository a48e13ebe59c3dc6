"""Shared fixtures: the repository on `sys.path`, one thread, the golden thinker and a tiny random one.

With CI=true in the environment a skipped test fails the run, unless its reason is that there is no GPU (or that there
is one), or a program is missing that `tools/bare_machine.py` hides. In tests/common the library's tests skip what does
not apply; their reasons are held against a list of their own (`SKIPS` in tests/common/deviations.py).
"""

import json
import os
import re
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
EXCUSED = r"\bGPU\b|\bCUDA\b"
LIBRARY_TESTS = "tests/common/"
HIDDEN_PROGRAMS = r"there is no (Chromium|ffmpeg|curl)"
skipped: list[str] = []


def pytest_collection_modifyitems(items) -> None:
    """Tests in a browser or with curl need programs that no package brings; `-m programs` runs these alone."""
    for item in items:
        if {"browser", "curl"} & set(item.fixturenames):
            item.add_marker("programs")


def note_skip(report) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        skipped.append(f"{report.nodeid}: {report.longrepr[2] if report.longrepr else 'skipped'}")


def pytest_runtest_logreport(report) -> None:
    note_skip(report)


def pytest_collectreport(report) -> None:
    note_skip(report)


def inexcusable(lines: list[str], environment) -> list[str]:
    """The skipped tests that may not be skipped in an environment."""
    if environment.get("CI") != "true":
        return []
    excused = f"{EXCUSED}|{HIDDEN_PROGRAMS}" if "BARE_MACHINE_ALLOWED" in environment else EXCUSED
    return [line for line in lines if not line.startswith(LIBRARY_TESTS) and not re.search(excused, line)]


def pytest_sessionfinish(session) -> None:
    if inexcusable(skipped, os.environ) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter) -> None:
    for line in inexcusable(skipped, os.environ):
        terminalreporter.write_line(f"with CI=true this may not be skipped: {line}", red=True)


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
