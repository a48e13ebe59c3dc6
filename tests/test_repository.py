"""Rules of the repository: sizes of files and functions, no pickles, documented packages, a valid model card."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 60


def tracked(pattern: str) -> list[Path]:
    """Files that git tracks or would track; outside a checkout, all of them."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        return [path for path in ROOT.rglob(pattern) if ".venv" not in path.parts]
    return [ROOT / line for line in result.stdout.splitlines() if (ROOT / line).is_file()]


PYTHON_FILES = tracked("*.py")


def test_there_are_python_files_to_check():
    assert {path.name for path in PYTHON_FILES} >= {"modeling_bailingmm.py", "processing_bailingmm.py"}


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    if path.name.startswith("modeling_"):
        # Library signatures of forward and generate are exempt: their many arguments are documented one by one.
        functions = [n for n in functions if n.name not in ("forward", "generate", "embed")]
    lengths = {function.name: function.end_lineno - function.lineno + 1 for function in functions}
    assert not {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}


def test_nothing_unpickles():
    for path in PYTHON_FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and "tests" not in path.parts:
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert "pickle" not in names, path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"
    assert not [path for suffix in ("*.bin", "*.pkl", "*.pt", "*.pth", "*.ckpt") for path in tracked(suffix)]


def test_the_root_holds_entry_points_only():
    names = {"configuration_bailingmm.py", "modeling_bailingmm.py", "processing_bailingmm.py", "handler.py"}
    assert {path.name for path in PYTHON_FILES if path.parent == ROOT} == names


def test_requirements_have_both_bounds():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines and all(re.fullmatch(r"[a-z_]+>=[\d.]+,<[\d.]+", line) for line in lines)


def test_readme_is_a_valid_model_card():
    _, header, body = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "any-to-any"
    for command in ("make demo", "make test"):
        assert command in body


def test_widgets_show_what_the_demo_gets():
    """The demo's test asks the model; here the card must say the same."""
    _, header, _ = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    expected = json.loads((ROOT / "demo" / "expected.json").read_text(encoding="utf-8"))
    widgets = yaml.safe_load(header)["widget"]
    shown = {Path(widget["src"]).stem: widget["output"]["text"] for widget in widgets if "src" in widget}
    assert shown == {name: expected[name] for name in ("picture", "recording")}
    assert all((ROOT / widget["src"]).is_file() for widget in widgets if "src" in widget)


def test_no_machine_paths():
    pattern = re.compile(r"(?<![\w.])/(work|root|home|farm)/")
    texts = [*PYTHON_FILES, ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("*.json"), *ROOT.glob("*.toml")]
    texts = [path for path in texts if path.name != Path(__file__).name]
    found = [path for path in texts if pattern.search(path.read_text(encoding="utf-8"))]
    assert not found
