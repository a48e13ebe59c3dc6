"""The README and the pages of docs/: every code block is run as it stands there, and every link leads somewhere."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image

from image_gen.configuration_image_gen import MAX_SIDE, MIN_SIDE
from ming.audio_features import BailingMMFeatureExtractor
from ming.cli.main import COMMANDS
from ming.configuration_bailingmm import BailingMMTalkerConfig
from ming.media import MAX_AUDIO_SECONDS, MAX_IMAGE_PIXELS, MAX_VIDEO_FRAMES
from ming.modeling_talker import BailingMMTalker
from ming.serving.settings import Limits
from ming.training.finetune_data import read_chats
from ming.training.finetune_text import DEFAULT_RANK
from ming.video import MAX_CHOSEN_FRAMES
from ming.voices import MAX_SECONDS, MIN_SECONDS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PROMISES = ROOT / "docs" / "promises.md"
TALKER = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))["talker_config"]
WHISPER = json.loads((ROOT / "processor_config.json").read_text(encoding="utf-8"))["feature_extractor"]
# The Python blocks of all pages are run in this order, in one process.
FIRST = ("README.md", "inference.md", "speech.md", "images.md")
PAGES = sorted(
    [README, *(ROOT / "docs").glob("*.md")],
    key=lambda path: (FIRST.index(path.name) if path.name in FIRST else len(FIRST), path.name),
)
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # most users have not set it
# Commands that other tests run, since they need a terminal or minutes: where, and by which words there.
ELSEWHERE = {
    "make demo": ("test_ming_tiny.py", '"-m", "demo"'),
    "transformers serve": ("test_transformers_serve.py", '[TRANSFORMERS, "serve", str(ROOT)'),
    "transformers chat": ("test_transformers_serve.py", '[TRANSFORMERS, "chat", str(ROOT)'),
    "ming cluster": ("test_serving_cluster.py", '"-m", "ming", "cluster"'),
    "ming adopt": ("test_adopt_released.py", '"-m", "ming", "adopt"'),
    "ming memory": ("test_memory.py", '"-m", "ming", "memory"'),
    "torchrun --standalone --nproc_per_node 2 -m ming finetune": ("test_finetuning.py", '"-m", "ming", "finetune"'),
    "make audit": ("test_audit.py", '"-m", "tools.audit"'),
    "make fuzz": ("test_fuzz.py", "fuzz"),
    "make mutants": ("test_mutants.py", "run(area"),
    "python -m tools.faults": ("test_faults.py", "kill_often("),
    "python -m benchmarks load_test": ("test_benchmarks.py", "load_test."),
    "python -m evaluation table all": ("evaluation/test_lmms_eval.py", "TableRun(table"),
    "python -m vllm.entrypoints.openai.api_server": ("engine/test_vllm_server.py", "vllm.entrypoints.openai"),
    "python -m training.tiny all": ("test_tiny_recipe.py", '"-m", "training.tiny", "all", "--quick"'),
}
# What makes this environment, what runs this test, what needs several GPUs, of which the page says so, and what needs
# another environment (`make test-vllm` and `make test-evaluation` start the same in their own) or data.
NOT_RUN = ("pip install", "make test", "accelerate launch", "vllm serve", "export OPENAI_API_KEY", "lmms-eval")
NOT_RUN += tuple(f"python -m evaluation table {table} --model RELEASED" for table in ("image video", "asr"))
SHORT = {
    "ming finetune": "--steps 1 --batch-size 2",
    "evaluation table": "--limit 1 --rows aishell1 cv15_en",
    "training.tiny.evaluate": "--rows image_qa --samples 2",
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of all pages; one that stands on two pages counts once."""
    found = [re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL) for text in TEXTS.values()]
    return list(dict.fromkeys(block for page in found for block in page))


def commands(block: str) -> list[str]:
    """The commands of a block, one a line, without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s{2,}#.*$", "", line).strip() for line in lines) if line]


SHELL = [commands(block) for block in blocks("bash")]
SERVERS = ("ming serve --model", "ming page")
SERVED, PAGE = (next(block for block in SHELL if any(line.startswith(start) for line in block)) for start in SERVERS)
HERE = dict.fromkeys(
    line
    for block in SHELL
    for line in block
    if block not in (SERVED, PAGE) and not line.startswith((*ELSEWHERE, *NOT_RUN))
)


def chats(folder: Path) -> None:
    """The files of chats that the pages name: two questions, two spoken and two drawn answers."""
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
def environment(tmp_path_factory) -> dict[str, str]:
    """An environment with `python` and `ming` as after an installation; `python -m ming` is the same command."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "ming"
    script.write_text('#!/bin/sh\nexec python -m ming "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    path = os.pathsep.join((str(folder), str(Path(sys.executable).parent), os.environ["PATH"]))
    return {**ENVIRONMENT, "PATH": path}


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


@pytest.fixture(scope="module")
def run(environment):
    """Runs a command that must succeed in a folder; returns its output."""

    def start(line: str, folder: Path, seconds: float = 120, **options) -> str:
        result = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            **options,
        )
        assert result.returncode == 0, f"{line}\n{result.stderr[-3000:]}"
        return result.stdout

    return start


# Links and names


def slug(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower())
    return kept.strip().replace(" ", "-")


def prose(path: Path) -> str:
    """A page without its fenced blocks and its header of metadata."""
    text = re.sub(r"```.*?```", "", TEXTS[path], flags=re.DOTALL)
    return text.split("---\n", 2)[2] if text.startswith("---\n") else text


def code_spans() -> Iterator[tuple[Path, str]]:
    """Code within the running text of all pages, each on one line."""
    for path in PAGES:
        for span in re.findall(r"`([^`]+)`", prose(path)):
            yield path, " ".join(span.split())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_and_image_leads_somewhere(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    for target in targets:
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.is_file() and linked.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_the_readme_leads_to_every_page():
    assert len(PAGES) == 14
    for path in PAGES[1:]:
        assert f"](docs/{path.name})" in TEXTS[README]


def test_the_readme_is_short():
    assert len(TEXTS[README].splitlines()) <= 250


def test_files_and_names_of_the_architecture_page_exist():
    """Files by their path from the root; of a row of the table, names in one of the files of that row."""
    for line in prose(ARCHITECTURE).splitlines():
        spans = re.findall(r"`([^`\s]+)`", line)
        files = [ROOT / span for span in spans if "/" in span and (ROOT / span).suffix]
        assert all(path.is_file() for path in files), line
        if not line.startswith("|") or not files:
            continue
        sources = "".join(path.read_text(encoding="utf-8") for path in files)
        names = [span for span in re.findall(r"`(\w+(?:\.\w+)?)`", line) if not span.endswith((".py", ".jinja"))]
        for name in names:
            known = name in ("generate", "stream", "__init__") or all(part in sources for part in name.split("."))
            assert known, f"{name}: {line}"


def test_every_module_of_the_package_has_its_place_on_the_architecture_page():
    text = TEXTS[ARCHITECTURE]
    modules = {path.name for path in (ROOT / "ming").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(name for name in modules if name not in text) == []


def defined_tests(path: Path) -> set[str]:
    """Names of the test functions of a file, which is not imported."""
    return {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_promise_has_a_test_or_a_command():
    """Every test that the page of promises names exists, and every row names one, or what measures its figures."""
    rows = [line for line in TEXTS[PROMISES].splitlines() if line.startswith("| ") and " | " in line]
    rows = [line for line in rows if not line.startswith(("| promise |", "| figures |"))]
    named = re.findall(r"`(tests/(?:\w+/)?test_\w+\.py)::(\w+)`", TEXTS[PROMISES])
    files = {file for file, _ in named}
    known = {(file, name) for file in files for name in defined_tests(ROOT / file)}
    assert sorted(set(named) - known) == []
    assert len(rows) > 200 and len(set(named)) > 150
    proofs = [line.rpartition(" | ")[2] for line in rows]
    assert [row for row, proof in zip(rows, proofs, strict=True) if "`" not in proof] == []


# Numbers of the running text, as they stand there, and where the code has them.
NUMBERS = {
    "inference.md": (
        f"{MAX_AUDIO_SECONDS:,.0f} s of audio",
        f"{MAX_IMAGE_PIXELS // 10**6} megapixels per image",
        f"{MAX_VIDEO_FRAMES:,} frames per video, of which {MAX_CHOSEN_FRAMES:,} can be chosen",
    ),
    "images.md": (f"in pixels, {MIN_SIDE} to {MAX_SIDE}",),
    "speech.md": (
        f"at least {MIN_SECONDS:g} s",
        f"{BailingMMTalkerConfig().max_prompt_seconds:g} s as released",
        f"{TALKER['max_prompt_seconds']:g} s for Ming-Tiny",
        f"up to {('no', 'one', 'two', 'three')[BailingMMTalker.ATTEMPTS]} draws in all",
    ),
    "fine-tuning.md": (f"LoRA of rank {DEFAULT_RANK}", f"Recordings last {MIN_SECONDS:g} to {MAX_SECONDS:g} s"),
    "serving.md": (
        f"of up to {Limits().whole_characters} characters (`--whole-characters`)",
        f"for {Limits().spoken_seconds:,g} s (`--spoken-seconds`), the last {Limits().spoken_replies:,} replies",
    ),
    "ming-tiny.md": (
        f"at temperature {TALKER['sampling_temperature']:g}",
        f"the released default is {BailingMMTalkerConfig().sampling_temperature:g}",
    ),
    "README.md": (
        f"a recording of at most {MAX_SECONDS:g} s; Ming-Tiny's talker follows {TALKER['max_prompt_seconds']:g} s",
        f"at most {BailingMMFeatureExtractor().max_whisper_positions // 50} s for the Whisper encoder",
        f"{WHISPER['max_whisper_positions'] // 50} s for Ming-Tiny's",
    ),
}


@pytest.mark.parametrize("page", NUMBERS)
def test_numbers_in_the_running_text_are_those_of_the_code(page):
    (text,) = (" ".join(text.split()) for path, text in TEXTS.items() if path.name == page)
    assert [number for number in NUMBERS[page] if number not in text] == []


def test_optional_dependencies_of_the_pages_exist():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for text in TEXTS.values() for name in re.findall(r"pip install '\.\[(\w+)\]'", text)}
    assert named == {"finetuning", "serving", "cluster", "page", "evaluation"} and named <= known.keys()


def test_make_demo_hands_on_the_files_of_the_user():
    told = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "demo", "IMAGE=my.jpg", "AUDIO=my.wav", "VIDEO=my.mp4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.rstrip().endswith('-m demo --image "my.jpg" --audio "my.wav" --video "my.mp4"')


def source_of(module: str) -> str:
    """The text of a module and of those beside it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return "".join(path.read_text(encoding="utf-8") for path in Path(spec.origin).parent.glob("*.py"))


def test_commands_in_the_running_text_exist():
    """Their module or sub-command, and their options."""
    seen = 0
    for path, span in code_spans():
        words = span.split()
        if words[0] == "ming" and len(words) > 1:
            known = source_of(COMMANDS[words[1]].module)
        elif words[:2] == ["python", "-m"] and words[2] != "ming":
            known = source_of(words[2])
        else:
            continue
        seen += 1
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in known, (path.name, span)
    assert seen > 20


def test_the_chat_of_the_fine_tuning_page_can_be_read(tmp_path):
    (block,) = blocks("json")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (96, 96), "pink").save(tmp_path / "images" / "1.png")
    (tmp_path / "chats.jsonl").write_text(block, encoding="utf-8")
    (chat,) = read_chats(tmp_path / "chats.jsonl")
    assert chat["messages"][-1]["content"] == "a pink star"


# Code blocks


def test_every_command_is_run_here_or_in_the_test_that_is_named():
    assert len(HERE) >= 15 and len(SERVED) == 4 and len(PAGE) == 2
    for line in (line for block in SHELL for line in block):
        for start, (name, words) in ELSEWHERE.items():
            if line.startswith(start):
                assert words in (ROOT / "tests" / name).read_text(encoding="utf-8"), (line, name)


@pytest.mark.parametrize("line", HERE)
def test_commands_run(line, checkout, run):
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
    for option in ("--out", "--speak"):
        if option in words:
            assert (checkout / words[words.index(option) + 1]).is_file()
    if line.endswith("chat"):
        assert "four" in said


def test_python_blocks_run_one_after_the_other(tmp_path, checkout, run):
    """But for the client's, which talks to the server."""
    script = tmp_path / "blocks.py"
    script.write_text("\n".join(block for block in blocks("python") if "OpenAI(" not in block), encoding="utf-8")
    expected = json.loads((ROOT / "demo" / "expected.json").read_text())
    said = run(f"PYTHONPATH=. python {shlex.quote(str(script))}", checkout, seconds=240).splitlines()
    # By the model, at the end of its stream, by the pipeline, in 4 bit, and as the text of what was spoken.
    assert sum(expected["picture"] in line for line in said) >= 5
    assert {expected["recording"], "four", "down", "star", "green"} <= set(said)
    written = ("reply.wav", "second.wav", "cloned.wav", "drawing.png", "edited.png")
    assert all((checkout / name).is_file() for name in written)


@contextmanager
def server(line: str, folder: Path, folder_of_log: Path, environment: dict[str, str]) -> Iterator[str]:
    """A command of a page that serves until it is stopped, at a free port, which is given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    log = folder_of_log / "log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            ["bash", "-c", f"exec {line} --port {port}"], cwd=folder, env=environment, stdout=said, stderr=said
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


@pytest.fixture
def curl():
    """The program with which the pages ask the server."""
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")


def test_the_server_answers_the_commands_and_the_client_beside_it(checkout, tmp_path, run, environment, curl):
    start, *asked = (line for line in SERVED if not line.startswith(NOT_RUN))
    (client,) = (block for block in blocks("python") if "OpenAI(" in block)
    script = tmp_path / "client.py"
    with server(start, checkout, tmp_path, environment) as port:
        script.write_text(client.replace("8000", port), encoding="utf-8")
        replies = [json.loads(run(line.replace("8000", port), checkout)) for line in asked]
        streamed = run(f"python {shlex.quote(str(script))}", ROOT)
    expected = json.loads((ROOT / "demo" / "expected.json").read_text())
    assert replies[0]["choices"][0]["message"]["content"] == "four"
    assert replies[1]["text"] == expected["recording"]
    assert expected["picture"] in streamed


def test_the_page_opens(checkout, tmp_path, environment):
    (start,) = (line for line in PAGE if not line.startswith(NOT_RUN))
    with server(start, checkout, tmp_path, environment) as port:
        page = httpx.get(f"http://127.0.0.1:{port}/").text
    assert '"title":"Ming-Lite-Omni"' in page.replace('": "', '":"')
