"""Run a command where nothing is visible that was installed by hand: `python -m tools.bare_machine make test`.

The command sees the programs of a minimal system and those of the virtual environment, an empty home directory, and
no setting of this shell. Its Python processes refuse to start any other program, and to load a shared library that
neither Python nor an installed package brings. What the command needs beyond that is named in the error, so a
requirement that is missing from requirements.txt fails here, although the machine happens to have it.

Not seen: libraries that a compiled extension opens by itself, and children whose PYTHONPATH a test sets. `PROGRAMS`
and `LIBRARIES` are the minimal system.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

# What a Debian of a container has, and make, git and the Python that the README asks for.
PROGRAMS = (
    *("sh", "bash", "env", "uname", "cat", "cp", "mv", "rm", "mkdir", "rmdir", "ln", "ls", "touch", "chmod", "test"),
    *("head", "tail", "cut", "sort", "uniq", "wc", "tr", "sed", "grep", "awk", "find", "xargs", "dirname", "basename"),
    *("date", "sleep", "true", "false", "expr", "id", "kill", "ps", "nproc", "tar", "gzip", "readlink", "realpath"),
    *("make", "git", "ldconfig", "lscpu"),
)
# Of the C library and the compiler's runtime; all other shared libraries come with Python or a package.
LIBRARIES = (
    *("libc.", "libm.", "libdl.", "libpthread.", "librt.", "libutil.", "ld-linux", "libgcc_s.", "libstdc++."),
    *("libz.", "libcuda.", "libnvidia"),
)
KEPT = ("LANG", "TZ", "SSL_CERT_FILE", "CI", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
KEPT_PREFIXES = ("PIP_", "UV_", "REQUESTS_", "HTTP", "http", "NO_PROXY", "no_proxy")
ALLOWED, LIBRARY_NAMES = "BARE_MACHINE_ALLOWED", "BARE_MACHINE_LIBRARIES"

# Read by every Python process of the command, before anything else is imported.
GUARD = f'''
import os
import sys


def _install():
    allowed = tuple(os.environ["{ALLOWED}"].split(os.pathsep))
    libraries = tuple(os.environ["{LIBRARY_NAMES}"].split(os.pathsep))

    def inside(path):
        return os.path.realpath(path).startswith(allowed) or os.path.abspath(path).startswith(allowed)

    def guard(event, arguments):
        if event == "subprocess.Popen" or event in ("os.exec", "os.posix_spawn"):
            program = os.fsdecode(arguments[0] or "")
            if os.sep in program and not inside(program):
                raise FileNotFoundError(2, "not on a bare machine", program)
        elif event == "ctypes.dlopen" and arguments[0] is not None:
            name = os.fsdecode(arguments[0])
            if os.path.basename(name).startswith(libraries):
                return
            if os.sep not in name or not inside(name):
                raise OSError(f"{{name}}: not on a bare machine")

    sys.addaudithook(guard)


_install()
'''


def prepare(folder: Path) -> dict[str, str]:
    """Make the minimal system in a folder; the environment in which a command sees nothing else.

    Raises:
        FileNotFoundError: this machine lacks a program of the minimal system that the command line needs.
    """
    programs, home, guard = folder / "bin", folder / "home", folder / "guard"
    for path in (programs, home, guard):
        path.mkdir()
    for name in PROGRAMS:
        if (found := shutil.which(name)) is not None:
            (programs / name).symlink_to(found)
    if missing := [name for name in ("sh", "make", "git") if not (programs / name).exists()]:
        raise FileNotFoundError(f"this machine has no {', '.join(missing)}, which `make` needs: install it")
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    for name in ("python3", base.name):  # no links: a virtual environment would link to them, and outlives the folder
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(base))} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    (guard / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    python = [sysconfig.get_paths()["stdlib"], sysconfig.get_config_var("LIBDIR") + "/libpython", str(base)]
    allowed = [str(folder), str(Path.cwd()), sys.prefix, tempfile.gettempdir(), *python]
    allowed += [os.path.realpath(path) for path in (*allowed, *programs.iterdir())]
    return environment | {
        "PATH": str(programs),
        "HOME": str(home),
        "PYTHONPATH": str(guard),
        ALLOWED: os.pathsep.join(allowed),
        LIBRARY_NAMES: os.pathsep.join(LIBRARIES),
    }


def main() -> None:
    """Command line; exits with the code of the command."""
    command = sys.argv[1:]
    if not command or command[0].startswith("-"):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory(prefix="bare-machine-") as folder:
        done = subprocess.run(command, env=prepare(Path(folder)), check=False)  # nosec B603
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
