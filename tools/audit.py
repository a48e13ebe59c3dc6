"""Ask a vulnerability service about every installed package (pip-audit), and say so when it cannot be asked.

    python -m tools.audit                        # exit code 1: vulnerabilities, 3: not audited
    python -m tools.audit --unreachable report   # not audited is said, but is no failure

pip-audit ends well when the service knows none of the packages, which is what a mirror of PyPI without its data says.
So it is asked first about a release that is known to be vulnerable.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KNOWN = "requests==2.19.0"  # PYSEC-2018-28
VULNERABLE, NOT_AUDITED = 1, 3
SHOWN = 5


def ask(*options: str) -> list[dict[str, Any]]:
    """Packages as pip-audit reports them, with `vulns` or with a `skip_reason`; none if it failed."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", *options]
    # A fixed command, without a shell.
    done = subprocess.run(command, capture_output=True, text=True)  # nosec B603
    try:
        return json.loads(done.stdout)["dependencies"]
    except ValueError:
        sys.stderr.write(done.stderr[-500:])
        return []


def service_answers() -> bool:
    """Whether the service knows of a vulnerability that is there."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "known.txt"
        file.write_text(KNOWN + "\n", encoding="utf-8")
        return any(package.get("vulns") for package in ask("--requirement", str(file), "--no-deps", "--disable-pip"))


def report(packages: list[dict[str, Any]]) -> int:
    """Say what was found; returns the exit code."""
    vulnerable = [package for package in packages if package.get("vulns")]
    for package in vulnerable:
        ids = ", ".join(found["id"] for found in package["vulns"])
        sys.stdout.write(f"VULNERABLE: {package['name']} {package['version']}: {ids}\n")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        names = ", ".join(skipped[:SHOWN])
        sys.stdout.write(
            f"NOT AUDITED: {len(skipped)} of {len(packages)} packages, which the service lacks: {names}\n"
        )
    sys.stdout.write(f"audited: {len(packages) - len(skipped)} packages, {len(vulnerable)} of them vulnerable\n")
    return VULNERABLE if vulnerable else NOT_AUDITED if len(skipped) == len(packages) else 0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unreachable", choices=("fail", "report"), default="fail", help="default: %(default)s")
    args = parser.parse_args()
    code = NOT_AUDITED
    if service_answers():
        code = report(ask("--skip-editable"))
    if code == NOT_AUDITED:
        sys.stdout.write(
            f"NOT AUDITED: the vulnerability service (PyPI) does not answer here: it does not know {KNOWN} to be "
            "vulnerable. Nothing is known about the installed packages; run `make audit` where it can be reached\n"
        )
    return 0 if code == NOT_AUDITED and args.unreachable == "report" else code


if __name__ == "__main__":
    sys.exit(main())
