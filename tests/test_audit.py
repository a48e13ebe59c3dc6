"""What the audit of dependencies says; whether a service can be asked depends on the machine."""

import os
import subprocess
import sys
from pathlib import Path

from tools.audit import NOT_AUDITED, VULNERABLE, report

ROOT = Path(__file__).resolve().parents[1]
FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1"}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


def test_packages_that_the_service_lacks_are_said(capsys):
    assert report([FINE, UNKNOWN]) == 0
    assert "NOT AUDITED: 1 of 2 packages, which the service lacks: c" in capsys.readouterr().out
    assert report([UNKNOWN]) == report([]) == NOT_AUDITED


def test_a_vulnerability_is_a_failure(capsys):
    assert report([FINE, BAD, UNKNOWN]) == VULNERABLE
    assert "VULNERABLE: b 2: PYSEC-1" in capsys.readouterr().out


def test_a_service_out_of_reach_is_no_audit(tmp_path):
    """Behind a proxy that does not exist: pip-audit fails, or is answered by a cache that knows nothing."""
    proxies = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **proxies, "NO_PROXY": "", "no_proxy": "", "HOME": str(tmp_path)}
    for option, code in (("fail", NOT_AUDITED), ("report", 0)):
        command = [sys.executable, "-m", "tools.audit", "--unreachable", option]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == code and "NOT AUDITED" in done.stdout.splitlines()[-1], done.stderr[-500:]
