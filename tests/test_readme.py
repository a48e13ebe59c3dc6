"""Every code block of the README is run, as it stands there, in a folder that looks like a checkout."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}
# Commands that other tests run, since they need a terminal or minutes: where, and by which words there.
ELSEWHERE = {
    "make demo": ("test_ming_tiny.py", '"-m", "demo"'),
    "transformers serve": ("test_transformers_serve.py", '[TRANSFORMERS, "serve", str(ROOT)'),
    "transformers chat": ("test_transformers_serve.py", '[TRANSFORMERS, "chat", str(ROOT)'),
    "python -m serving.cluster": ("test_serving_cluster.py", '"-m", "ming.serving.cluster"'),
    "python -m training.tiny all": ("test_tiny_recipe.py", '"-m", "training.tiny", "all", "--quick"'),
}
# What makes this environment, and what runs this test.
NOT_RUN = ("pip install", "make test")
SHORT = {
    "ming.training.finetune": "--steps 1 --batch-size 2",
    "training.tiny.evaluate": "--rows image_qa --samples 2",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands(block: str) -> list[str]:
    """The commands of a block, one a line, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s{2,}#.*$", "", line).strip() for line in lines) if line]


SHELL = [commands(block) for block in blocks("bash")]
SERVERS = ("python -m serving --model", "python -m serving.app")
SERVED, PAGE = (next(block for block in SHELL if any(line.startswith(start) for line in block)) for start in SERVERS)
HERE = [
    line
    for block in SHELL
    for line in block
    if block not in (SERVED, PAGE) and not line.startswith((*ELSEWHERE, *NOT_RUN))
]


def chats(folder: Path) -> None:
    """The files of chats that the README speaks of: two questions, two spoken and two drawn answers."""
    for index, colour in enumerate(("red", "blue")):
        Image.new("RGB", (96, 96), colour).save(folder / f"{index}.png")
        tone = 0.3 * np.sin(np.arange(12_000 + 2000 * index) * (0.1 + 0.02 * index))
        soundfile.write(folder / f"{index}.wav", tone.astype(np.float32), 16_000)
    for name, kind, ending in (("chats", "text", ""), ("spoken", "audio", ".wav"), ("drawn", "image", ".png")):
        lines = []
        for index, colour in enumerate(("red", "blue")):
            text = {"type": "text", "text": colour}
            answer = {"text": [text], "audio": [text, {"type": "audio", "audio": f"{index}{ending}"}]}
            answer["image"] = [{"type": "image", "image": f"{index}{ending}"}]
            asked = [{"type": "image", "image": f"{index}.png"}, {"type": "text", "text": "What colour is it?"}]
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer[kind]}]
            lines.append(json.dumps({"messages": messages, "speaker": "me"}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with everything that the repository has, in which results may be left."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "runs":
            (folder / path.name).symlink_to(path)
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / "model").symlink_to(ROOT)
    chats(folder)
    return folder


def run(line: str, folder: Path, **options) -> str:
    """The output of a command that must succeed."""
    result = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, **options
    )
    assert result.returncode == 0, f"{line}\n{result.stderr[-3000:]}"
    return result.stdout


def test_every_command_is_run_here_or_in_the_test_that_is_named():
    assert len(HERE) >= 10 and len(SERVED) == 4 and len(PAGE) == 2
    for line in (line for block in SHELL for line in block):
        for start, (name, words) in ELSEWHERE.items():
            if line.startswith(start):
                assert words in (ROOT / "tests" / name).read_text(encoding="utf-8"), (line, name)


@pytest.mark.parametrize("line", HERE)
def test_commands_run(line, checkout):
    before = set(checkout.iterdir())
    short = next((options for name, options in SHORT.items() if name in line), "")
    said = run(f"{line} {short}", checkout, input="What comes after three?\n/quit\n" if line.endswith("chat") else "")
    words = shlex.split(line)
    if "--output" in words:
        output = checkout / words[words.index("--output") + 1]
        assert output in set(checkout.iterdir()) - before or any(output.iterdir())
        assert "--merge" not in words or (output / "merged" / "config.json").is_file()
    else:
        assert said.strip(), line
    if line.endswith("chat"):
        assert "four" in said


def test_python_blocks_run_one_after_the_other(tmp_path):
    """But for the client's, which talks to the server."""
    script = tmp_path / "readme.py"
    script.write_text("\n".join(block for block in blocks("python") if "OpenAI(" not in block), encoding="utf-8")
    picture = json.loads((ROOT / "demo" / "expected.json").read_text())["picture"]
    said = run(f"python {shlex.quote(str(script))}", ROOT)
    assert said.count(picture) >= 2  # by the model, and by the pipeline


@contextmanager
def server(line: str, folder: Path, folder_of_log: Path) -> Iterator[str]:
    """A command of the README that serves until it is stopped, at a free port, which is given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    log = folder_of_log / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            ["bash", "-c", f"exec {line} --port {port}"], cwd=folder, env=ENVIRONMENT, stdout=said, stderr=said
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while f":{port}" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()


def test_the_server_answers_the_commands_and_the_client_beside_it(checkout, tmp_path):
    start, *asked = (line for line in SERVED if not line.startswith(NOT_RUN))
    (client,) = (block for block in blocks("python") if "OpenAI(" in block)
    script = tmp_path / "client.py"
    with server(start, checkout, tmp_path) as port:
        script.write_text(client.replace("8000", port), encoding="utf-8")
        replies = [json.loads(run(line.replace("8000", port), checkout)) for line in asked]
        streamed = run(f"python {shlex.quote(str(script))}", ROOT)
    expected = json.loads((ROOT / "demo" / "expected.json").read_text())
    assert replies[0]["choices"][0]["message"]["content"] == "four"
    assert replies[1]["text"] == expected["recording"]
    assert expected["picture"] in streamed


def test_the_page_opens(checkout, tmp_path):
    (start,) = (line for line in PAGE if not line.startswith(NOT_RUN))
    with server(start, checkout, tmp_path) as port:
        page = run(f"curl -s http://127.0.0.1:{port}/", checkout)
    assert '"title":"Ming-Lite-Omni"' in page.replace('": "', '":"')
