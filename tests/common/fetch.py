"""Fetch the source archive of the installed transformers and unpack it: `python tests/common/fetch.py`.

The wheel has no tests; the archive on the package index has the mixins that every model of the library is tested with.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from transformers import __version__

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "library-tests"
FOLDER = CACHE / f"transformers-{__version__}"


def fetch() -> Path:
    """Download and unpack the archive, once for each version -> its folder."""
    if FOLDER.is_dir():
        return FOLDER
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as workplace:
        # pip reads the archive's metadata, which takes seconds; it builds nothing, and needs no second environment.
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--no-binary", ":all:", "--dest", workplace]
        subprocess.run([*command, f"transformers=={__version__}"], check=True)
        (archive,) = Path(workplace).glob("*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(workplace, filter="data")
        unpacked = Path(workplace) / FOLDER.name
        complete(unpacked)
        unpacked.rename(FOLDER)
    return FOLDER


def complete(unpacked: Path) -> None:
    """Put beside the tests the two files that they open and the archive lacks."""
    (unpacked / "tests" / "__init__.py").touch()
    (unpacked / "tests" / "fixtures").mkdir(exist_ok=True)
    shutil.copy(unpacked / "README.md", unpacked / "tests" / "fixtures" / "sample_text.txt")  # any longer text


if __name__ == "__main__":
    sys.stdout.write(f"{fetch()}\n")
