"""What is shipped runs no code but its own, starts no process, unpickles nothing and keeps off the network.

Two looks, each proved by violations that are planted: at the syntax trees of all files, and at a process that imports
every module, loads Ming-Tiny, and lets it write, speak and draw. The first cannot see names that are put together at
run time, the second no branch that is not run, and no call of the system from within C.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_repository import PYTHON_FILES, ROOT

SHIPPED = [path for path in PYTHON_FILES if "tests" not in path.relative_to(ROOT).parts]
# Never used: they run text as code, or unpickle. `compile` is one as a name, not as `re.compile` or `torch.compile`.
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "breakpoint", "__builtins__", "globals"}
FORBIDDEN_MODULES = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "codeop", "runpy"),
    *("builtins", "imp", "pty", "commands", "webbrowser", "ftplib", "smtplib", "telnetlib", "xmlrpc", "cffi"),
}
FORBIDDEN_ATTRIBUTES = {
    *("os.system", "os.popen", "os.fork", "os.forkpty", "os.startfile", "torch.hub", "torch.ops.load_library"),
    *(
        "torch.classes.load_library",
        "torch.utils.cpp_extension",
        "yaml.unsafe_load",
        "yaml.full_load",
        "pandas.read_pickle",
    ),
}
FORBIDDEN_BEGINNINGS = ("os.exec", "os.spawn", "os.posix_spawn")
# Ways to the network, to other processes and to code by name -> who uses them, and why.
GATES = (
    "subprocess",
    "multiprocessing",
    "socket",
    "socketserver",
    "ssl",
    "http",
    "urllib.request",
    "urllib3",
    "requests",
)
GATES += ("httpx", "aiohttp", "websockets", "ctypes", "importlib", "huggingface_hub", "concurrent.futures")
ALLOWED = {
    ("ming/media.py", "urllib.request"): "addresses of media that the user gives",
    ("ming/media.py", "importlib"): "names a package that is missing",
    ("ming/training/finetune_data.py", "urllib.request"): "file:// addresses as paths",
    ("ming/serving/fetch.py", "httpx"): "addresses in requests, where the operator allows them",
    ("ming/serving/fetch.py", "socket"): "constants, and names of hosts",
    ("ming/source.py", "huggingface_hub"): "checkpoints on the Hub",
    ("ming/talker_processor.py", "huggingface_hub"): "checkpoints on the Hub",
    ("ming/components.py", "importlib"): "the component's own package, by one of two names",
    ("ming/cli/main.py", "importlib"): "the module of a command, from a table",
    ("ming/cli/checks.py", "socket"): "whether a server can listen at an address",
    ("ming/serving/running_audio.py", "concurrent.futures"): "results that threads wait for",
    ("image_gen/modeling_image_gen.py", "concurrent.futures"): "an exception's class",
    ("benchmarks/__main__.py", "importlib"): "the module of a benchmark, from a table",
    ("benchmarks/load.py", "subprocess"): "measures a process of its own",
    ("benchmarks/load_test.py", "subprocess"): "the server that is loaded",
    ("benchmarks/load_test.py", "socket"): "a free port",
    ("benchmarks/load_test.py", "httpx"): "whether the server is ready, and its figures",
    ("benchmarks/vllm.py", "subprocess"): "the servers that are asked",
    ("benchmarks/vllm.py", "socket"): "a free port",
    ("benchmarks/vllm.py", "httpx"): "asks the servers that it started",
    ("benchmarks/vllm.py", "concurrent.futures"): "questions that are asked at once",
    ("evaluation/lmms.py", "subprocess"): "lmms-eval",
    ("evaluation/lmms.py", "importlib"): "whether lmms-eval is installed, and where",
    ("evaluation/run.py", "importlib"): "whether optional packages are installed",
    ("tools/audit.py", "subprocess"): "pip-audit",
    ("tools/bare_machine.py", "subprocess"): "the command that is tried",
    ("tools/breakages.py", "subprocess"): "the tests of a broken copy",
    ("tools/faults.py", "multiprocessing"): "processes that are killed",
    ("tools/faults.py", "socket"): "a free port",
    ("tools/faults.py", "urllib.request"): "asks the server that it started",
    ("tools/mutants.py", "subprocess"): "mutmut, in a copy",
    ("training/tiny/espeak.py", "ctypes"): "espeak-ng's library",
    ("training/tiny/espeak.py", "subprocess"): "espeak-ng's program",
    ("training/tiny/espeak.py", "importlib"): "whether its package is installed",
    ("training/tiny/speech.py", "multiprocessing"): "synthesis on all cores",
    ("training/tiny/speech.py", "concurrent.futures"): "synthesis on all cores",
}


def gate_of(module: str) -> str | None:
    return next((gate for gate in GATES if module == gate or module.startswith(gate + ".")), None)


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports, with the names behind `from`, which may be modules."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def is_forbidden(name: str) -> bool:
    return name in FORBIDDEN_ATTRIBUTES or name.startswith(FORBIDDEN_BEGINNINGS)


def is_unsafe_call(node: ast.AST) -> bool:
    """Calls that unpickle, run a shell, or build Python objects, unless an argument says otherwise."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    return (
        (name == "torch.load" and options.get("weights_only") != "True")
        or (name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False")
        or (name == "yaml.load" and options.get("Loader") not in ("yaml.SafeLoader", "PlainLoader"))
        or options.get("shell", "False") != "False"
    )


def own_arguments(tree: ast.AST) -> set[ast.AST]:
    """Names that stand for an argument of the function around them, such as `compile`, and not for the builtin."""
    found: set[ast.AST] = set()
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        names = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
        body = (node for part in function.body for node in ast.walk(part))
        found |= {node for node in body if isinstance(node, ast.Name) and node.id in names}
    return found


def violations(source: str) -> list[str]:
    """What the text of a module must not hold."""
    tree, found = ast.parse(source), []
    arguments = own_arguments(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES and node not in arguments:
            found.append(node.id)
        found += [name for name in imported(node) if name.split(".")[0] in FORBIDDEN_MODULES]
        found += [name for name in imported(node) if is_forbidden(name)]
        if (isinstance(node, ast.Attribute) and is_forbidden(ast.unparse(node))) or is_unsafe_call(node):
            found.append(ast.unparse(node))
    return found


def gates(source: str) -> set[str]:
    """The ways out that the text of a module imports."""
    names = [name for node in ast.walk(ast.parse(source)) for name in imported(node)]
    return {gate for name in names if (gate := gate_of(name))}


def test_no_file_holds_what_runs_text_or_unpickles():
    assert len(SHIPPED) > 130
    found = {str(path.relative_to(ROOT)): violations(path.read_text(encoding="utf-8")) for path in SHIPPED}
    assert not {path: names for path, names in found.items() if names}


def test_ways_out_are_imported_where_they_are_needed_only():
    found = {
        (str(path.relative_to(ROOT)), gate) for path in SHIPPED for gate in gates(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)


PLANTED_TEXTS = [
    "eval('1')",
    "run = exec",
    "__import__('os')",
    "import pickle",
    "from pickle import loads",
    "import os\nos.system('true')",
    "from os import system",
    "from os import execv as run",
    "import os\nos.spawnl(0, 'a')",
    "import torch\ntorch.load('a')",
    "import torch\ntorch.load('a', weights_only=False)",
    "import torch\ntorch.hub.load('a', 'b')",
    "import numpy as np\nnp.load('a', allow_pickle=True)",
    "import yaml\nyaml.load('a', Loader=yaml.Loader)",
    "run('ls', shell=True)",
    "import builtins\nbuiltins.eval('1')",
    "def f(compile):\n    return 1\n\ncompile('1', '', 'eval')",
]


@pytest.mark.parametrize("text", PLANTED_TEXTS)
def test_planted_texts_are_found(text):
    assert violations(text)


@pytest.mark.parametrize(
    "text", ["import socket", "from urllib import request", "import http.client", "import httpx as h"]
)
def test_planted_ways_out_are_found(text):
    assert gates(text)


@pytest.mark.parametrize(
    "text",
    [
        "import re\nre.compile('a')",
        "model.eval()",
        "import torch\ntorch.compile(f)",
        "def f(*, compile=False):\n    return compile",
    ],
)
def test_harmless_texts_are_not(text):
    assert not violations(text) and not gates(text)


# At run time

USE = """
import importlib, json, pkgutil, sys
sys.path[:0] = [TESTS, ROOT]
from watching import watch
seen = watch((ROOT, CHECKPOINT))
skipped = []
for name in ("ming", "audio_detokenizer", "image_gen", "tools", "training", "benchmarks", "evaluation", "demo"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if module.name in NOT_IMPORTED:
            skipped.append(module.name)
        elif not module.name.endswith("__main__"):
            importlib.import_module(module.name)
importlib.import_module("handler")
import torch
from ming.loading import load_model
from ming.processing_bailingmm import BailingMMProcessor
torch.set_num_threads(1)
model, processor = load_model(CHECKPOINT), BailingMMProcessor.from_pretrained(CHECKPOINT)
image = {"type": "image", "image": ROOT + "/demo/picture.jpg"}
content = [image, {"type": "text", "text": "Describe the picture."}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, generation_mode=["audio", "image"], num_inference_steps=1, max_new_tokens=4)
model.speak("red", seed=0)
assert answer.images and answer.waveforms and sorted(skipped) == sorted(NOT_IMPORTED)
print(json.dumps(seen))
"""
PARTS = ("audio_detokenizer", "image_gen", "talker", "codec_bpe", "voices")
# Ray starts when it is imported: it asks the system for its version and its memory.
# lmms-eval is in an environment of its own.
NOT_IMPORTED = ["ming.serving.cluster", "ming.evaluation.lmms_model"]
# Programs that libraries ask when they are imported: where a shared library is (ctypes.util), which fonts there are.
LOOKS_FOR_IPV6 = ("urllib3", "util", "connection.py")  # when it is imported, at ::1 of this machine
ASKED = {"ldconfig", "gcc", "cc", "ld", "objdump", "uname", "fc-list"}


def run(script: str, folder: Path, **values) -> list[list[str]]:
    text = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + script
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(folder), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_loading_and_answering_runs_nothing_else(tmp_path):
    """The checkpoint is a copy beside the code, so that its own code would be seen."""
    checkpoint = tmp_path / "checkpoint"
    for name in (".", "ming", *PARTS):
        (checkpoint / name).mkdir(exist_ok=True)
        for path in (path for path in (ROOT / name).glob("[!.]*") if path.is_file()):
            shutil.copy(path, checkpoint / name)
    seen = run(
        USE,
        tmp_path,
        ROOT=str(ROOT),
        TESTS=str(ROOT / "tests"),
        CHECKPOINT=str(checkpoint),
        NOT_IMPORTED=NOT_IMPORTED,
    )
    programs = {Path(about.split("'")[1]).name for event, _, about in seen if event == "subprocess.Popen"}
    assert programs <= ASKED
    others = {(event, Path(file).parts[-3:]) for event, file, _ in seen if event != "subprocess.Popen"}
    by_popen = {each for each in others if each[0] == "os.posix_spawn" and each[1][-1] == "subprocess.py"}
    assert others - by_popen <= {("socket.bind", LOOKS_FOR_IPV6)}


PLANTED = """
import json, sys
sys.path[:0] = [TESTS, PLANTED]
from watching import watch
seen = watch((PLANTED,))
import planted
print(json.dumps(seen))
"""
PLANTED_CALLS = {
    "import socket\nsocket.socket(type=socket.SOCK_DGRAM).connect(('127.0.0.1', 9))": "socket.connect",
    "import socket\nsocket.getaddrinfo('127.0.0.1', 80)": "socket.getaddrinfo",
    "import subprocess, sys\nsubprocess.run([sys.executable, '-V'])": "subprocess.Popen",
    "import os\nos.system('true')": "os.system",
    "import os\nif not os.fork():\n    os._exit(0)": "os.fork",
    "exec('x = 1')": "exec",
    "from builtins import exec as run\nrun('x = 1')": "exec",
    "import builtins\ngetattr(builtins, 'ev' + 'al')('1')": "exec",
    "import pickle\npickle.loads(b'cos\\ngetcwd\\n.')": "pickle.find_class",
    "import marshal\nmarshal.loads(marshal.dumps(1))": "marshal.loads",
    "import runpy\nrunpy.run_path(__file__.replace('planted.py', 'other.py'))": "exec",
}


@pytest.mark.parametrize(("text", "event"), PLANTED_CALLS.items(), ids=PLANTED_CALLS.values())
def test_planted_calls_are_seen(text, event, tmp_path):
    (tmp_path / "planted.py").write_text(text, encoding="utf-8")
    (tmp_path / "other.py").write_text("x = 1", encoding="utf-8")
    seen = run(PLANTED, tmp_path, TESTS=str(ROOT / "tests"), PLANTED=str(tmp_path))
    assert event in {name for name, *_ in seen}


def test_a_module_that_is_imported_is_no_violation(tmp_path):
    (tmp_path / "planted.py").write_text("import re\nre.compile('a')", encoding="utf-8")
    assert not run(PLANTED, tmp_path, TESTS=str(ROOT / "tests"), PLANTED=str(tmp_path))
