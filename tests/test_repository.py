"""Rules of the repository: sizes of functions, imports, composition, no pickles, a valid model card."""

import ast
import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MAX_FUNCTION_LINES, MAX_NESTING = 60, 3


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


NESTED = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def functions_of(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def depth(node: ast.AST) -> int:
    """How deep blocks are nested in a function; `elif` counts as its `if`, functions inside count for themselves."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, NESTED) and not is_elif))
    return deepest


@pytest.mark.parametrize("path", PYTHON_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_stay_small_and_flat(path):
    functions = functions_of(path)
    deep = {function.name: depth(function) for function in functions if depth(function) > MAX_NESTING}
    assert not deep or "tests" in path.parts
    if path.name.startswith("modeling_"):
        # Library signatures of forward and generate are exempt: their many arguments are documented one by one.
        functions = [n for n in functions if n.name not in ("forward", "generate", "embed")]
    lengths = {function.name: function.end_lineno - function.lineno + 1 for function in functions}
    assert not {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES}


PACKAGES = ("ming", "audio_detokenizer", "image_gen")
PACKAGE = [path for path in PYTHON_FILES if path.relative_to(ROOT).parts[0] in PACKAGES]


def imports_of(path: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def loaded_as_remote_code() -> set[Path]:
    """The modules that an auto_map names, and those that they import from their own folder."""
    configs = ("config.json", "processor_config.json", "audio_detokenizer/config.json", "image_gen/config.json")
    named = [json.loads((ROOT / name).read_text(encoding="utf-8"))["auto_map"] for name in configs]
    waiting = {ROOT / f"{reference.split('.')[0]}.py" for auto_map in named for reference in auto_map.values()}
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        found.add(path)
        siblings = {path.with_name(f"{node.module}.py") for node in imports_of(path) if getattr(node, "level", 0)}
        waiting |= siblings - found
    return found


def test_remote_code_imports_its_own_folder_alone():
    """The library's loader of remote code follows `from .name import x` and nothing else."""
    paths = loaded_as_remote_code()
    assert len(paths) > 30 and all(path.parent.name in PACKAGES for path in paths)
    for path in paths:
        for node in imports_of(path):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, (path, ast.unparse(node))
                continue
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.split(".")[0] for name in names} & {*PACKAGES, "training"}, path


def test_missing_imports_are_excused_for_optional_packages_alone():
    """No module of ours is imported in a second way when the first one fails."""
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            handled = [ast.unparse(h.type) for h in node.handlers if h.type] if isinstance(node, ast.Try) else []
            if any(name in ("ImportError", "ModuleNotFoundError") for name in handled):
                tried = [each for each in ast.walk(node) if isinstance(each, ast.ImportFrom)]
                assert not [each for each in tried if each.level or (each.module or "").startswith("ming")], path


CONSENT = "trust_remote_code"


def test_consent_is_never_given_for_the_user():
    """Code of a checkpoint runs if the user says so; nobody says it for him, as an argument or in a dict of them."""
    shipped = [path for path in PYTHON_FILES if "tests" not in path.relative_to(ROOT).parts]
    assert len(shipped) > 130
    for path in shipped:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        given = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == CONSENT]
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Dict)):
            given += [v for k, v in zip(node.keys, node.values, strict=True) if k and ast.unparse(k) == repr(CONSENT)]
        allowed = {"False", CONSENT, f"bool(given.get({CONSENT!r}))"}
        assert {ast.unparse(value) for value in given} <= allowed, path


def test_models_are_composed():
    """No mixin, no overridden assignment, no state behind the back of attributes; what is a check returns nothing."""
    for path in PACKAGE:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name.endswith("Mixin")]
        assert not own, path
        for function in functions_of(path):
            assert function.name != "__setattr__", path
            if function.name.lstrip("_").startswith(("check_", "raise_if_")):
                returns = [n.value for n in ast.walk(function) if isinstance(n, ast.Return)]
                assert not any(value is not None for value in returns), (path, function.name)
        touched = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "__dict__"]
        assert not touched, path


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
    assert lines and all(re.fullmatch(r"[a-z0-9_]+>=[\d.]+,<[\d.]+", line) for line in lines)


def test_readme_is_a_valid_model_card():
    _, header, body = (ROOT / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "any-to-any"
    for command in ("make demo", "make test"):
        assert command in body
    images = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", body)
    assert len(images) >= 2 and all((ROOT / image).is_file() for image in images)


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
    pages = [*tracked("*.md"), ROOT / "cookbook.ipynb"]
    texts = [*PYTHON_FILES, *pages, ROOT / "Makefile", *ROOT.glob("*.json"), *ROOT.glob("*.toml")]
    texts = [path for path in texts if path.name != Path(__file__).name]
    found = [path for path in texts if pattern.search(path.read_text(encoding="utf-8"))]
    assert not found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(file: str) -> set[str]:
    """Names of the packages that a requirements file lists."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    names = [re.match(r"[A-Za-z0-9][\w.-]*", line) for line in lines]
    return {canonical(name[0]) for name in names if name}


def imported_packages(paths: list[Path]) -> dict[str, set[str]]:
    """Modules of other people that Python files import -> the installed packages they belong to."""
    own = {path.stem for path in PYTHON_FILES} | {path.parent.name for path in PYTHON_FILES}
    own.add("vllm")  # in an environment of its own, see `make test-vllm`
    own |= {"lmms_eval", "cleanfid"}  # in an environment of its own, see `make test-evaluation`
    own.add("library_tests")  # of transformers' source archive, see tests/common/conftest.py
    names: set[str] = set()
    for node in (node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    installed = packages_distributions()
    others = names - own - set(sys.stdlib_module_names)
    return {name: {canonical(package) for package in installed.get(name, [name])} for name in others}


@pytest.mark.parametrize(
    ("files", "shipped"), [(("requirements.txt", "requirements-dev.txt"), False), (("requirements.txt",), True)]
)
def test_what_is_imported_is_required(files, shipped):
    """A package that another one happens to bring is gone with that one's next release."""
    optional = (
        "cli",
        "serving",
        "training",
        "tests",
        "tools",
        "benchmarks",
        "evaluation",
        "lmms_tasks",
        "demo",
        "examples",
        "tiny",
        "common",
        "fuzz",
        "engine",
    )
    paths = [path for path in PYTHON_FILES if not (shipped and path.parent.name in optional)]
    wanted = set().union(*map(required, files))
    # onnxruntime is of the extra `cloning`; pydantic comes with exactly one version of its core.
    wanted |= {"onnxruntime"} if shipped else {"pydantic-core"}
    missing = {name for name, packages in imported_packages(paths).items() if not packages & wanted}
    assert not missing
