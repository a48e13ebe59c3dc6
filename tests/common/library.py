"""The library's test mixins as the package `library_tests`: what its source archive has, and what it lacks.

The archive of a release has the files `tests/test_*.py` and nothing below them. Names that these import from elsewhere
are made here: mixins as empty classes, whose tests are left out, and two small helpers.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fetch import FOLDER

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "library_tests"
MEDIA = {".png": "picture.jpg", ".jpg": "picture.jpg", ".mp4": "clip.mp4", ".mp3": "recording.wav", ".wav": "iris.wav"}


def local_path(url: str) -> str:
    """A file of the demo for a URL of the library's tests: nothing is downloaded."""
    return str(ROOT / "demo" / MEDIA[Path(url).suffix])


# Module that the archive lacks -> the names that its files import from it.
LACKING: dict[str, Mapping[str, Any]] = {
    f"{PACKAGE}.generation": {},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.exporters": {},
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.utils": {},
    f"{PACKAGE}.utils.test_configuration_utils": {
        "config_common_kwargs": {"return_dict": False, "output_hidden_states": True, "dtype": "float16"}
    },
    "fetch_hub_objects_for_ci": {"url_to_local_path": local_path},
}


def raise_if_missing() -> None:
    """Refuse to go on without the unpacked archive."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(f"the library's tests are not at {FOLDER}: `make test-common` fetches and runs them")


def install() -> None:
    """Make `library_tests` importable."""
    raise_if_missing()
    package = ModuleType(PACKAGE)
    package.__path__ = [str(FOLDER / "tests")]
    sys.modules[PACKAGE] = package
    for name, members in LACKING.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(members)
        sys.modules[name] = module


def markers() -> set[str]:
    """Names of the pytest marks that the library's tests carry."""
    texts = [path.read_text(encoding="utf-8") for path in (FOLDER / "tests").glob("*.py")]
    texts.append((FOLDER / "src" / "transformers" / "testing_utils.py").read_text(encoding="utf-8"))
    return {name for text in texts for name in re.findall(r"\bmark\.(\w+)", text)}
