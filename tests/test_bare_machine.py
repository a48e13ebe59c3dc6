"""What `tools/bare_machine.py` hides, and which skips fail a run of continuous integration."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import inexcusable

ROOT = Path(__file__).parents[1]
BARE = [sys.executable, "-m", "tools.bare_machine"]


def run_bare(code: str, **environment: str) -> subprocess.CompletedProcess:
    """A Python program on the bare machine."""
    command = [*BARE, sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.fixture
def by_hand(tmp_path) -> Path:
    """A folder with a program that somebody installed, outside of what is allowed."""
    program = tmp_path / "espeak-ng"
    program.write_text("#!/bin/sh\necho spoken\n", encoding="utf-8")
    program.chmod(0o755)
    return tmp_path


def test_programs_installed_by_hand_are_hidden(by_hand, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")  # temporary files are allowed, and this program is one
    path = f"{by_hand}{os.pathsep}{os.environ['PATH']}"
    by_name = "import subprocess; print(subprocess.run(['espeak-ng'], capture_output=True).stdout)"
    seen = subprocess.run(
        [sys.executable, "-c", by_name], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert "spoken" in seen.stdout
    for code in (by_name, by_name.replace("espeak-ng", str(by_hand / "espeak-ng"))):
        hidden = run_bare(code, PATH=path, TMPDIR=str(elsewhere))
        assert hidden.returncode and "FileNotFoundError" in hidden.stderr


@pytest.mark.parametrize("name", ["libespeak-ng.so.1", "libsndfile.so.1", "/usr/lib/libanything.so"])
def test_libraries_of_the_system_are_hidden(name):
    hidden = run_bare(f"import ctypes; ctypes.CDLL({name!r})")
    assert "not on a bare machine" in hidden.stderr


def test_a_removed_requirement_is_noticed():
    """Without its package, speech of espeak-ng cannot come from anywhere else."""
    without = "import sys; sys.modules['espeakng_loader'] = None"
    code = f"{without}; from training.tiny.speech import *; speak('a', Voice('en'))"
    failed = run_bare(code)
    assert failed.returncode and "espeakng" in failed.stderr


def test_a_virtual_environment_made_there_works_afterwards(tmp_path):
    target = tmp_path / "environment"
    subprocess.run([*BARE, "python3", "-m", "venv", "--without-pip", str(target)], cwd=ROOT, check=True)
    subprocess.run([str(target / "bin" / "python"), "-c", "import json"], check=True)


def test_what_is_installed_is_seen():
    code = """
import shutil, soundfile, sys
from training.tiny.speech import Voice, speak
assert len(speak("red", Voice("en+m1"))) > 1000
assert shutil.which("git") and shutil.which("make") and sys.prefix
import ctypes
ctypes.CDLL("libc.so.6")
"""
    done = run_bare(code)
    assert done.returncode == 0, done.stderr


def test_settings_of_the_shell_and_the_home_directory_are_hidden():
    code = "import os; print(os.environ.get('HF_TOKEN'), os.listdir(os.path.expanduser('~')))"
    assert run_bare(code, HF_TOKEN="secret").stdout.strip() == "None []"


def test_skips_that_fail_continuous_integration():
    lines = [
        "a: Skipped: there is no CUDA card here",
        "b: there is no Chromium; install one",
        "c: could not import trl",
        "tests/common/test_processor.py::C::test: Skipped: No video_processor",
    ]
    assert inexcusable(lines, {}) == []
    assert inexcusable(lines, {"CI": "true"}) == lines[1:3]
    assert inexcusable(lines, {"CI": "true", "BARE_MACHINE_ALLOWED": "/"}) == lines[2:3]
