"""Watches a Python process: what runs code, starts processes, reaches the network or unpickles. No imports of ours.

`watch(roots)` records, from its call on, the audit events of `WATCHED`, with the file of the code that raised them.
Code under one of the `roots` is ours: it may raise none. Of code of libraries, events of `RUNS_CODE` are passed over,
unless the code that is run lies under a root and no import runs it; the others are recorded whoever raises them.

What it cannot see: C and Rust code that calls the system itself instead of Python's functions.
"""

import sys
from types import CodeType

RUNS_CODE = ("compile", "exec", "code.__new__")
WATCHED = (
    *(
        "socket.connect",
        "socket.bind",
        "socket.sendto",
        "socket.sendmsg",
        "socket.getaddrinfo",
        "socket.gethostbyname",
    ),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("pickle.find_class", "marshal.loads", "builtins.input", "webbrowser.open", "urllib.Request"),
    *("http.client.connect", "ftplib.connect", "smtplib.connect", "telnetlib.Telnet.open"),
)
IMPORTS = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


def watch(roots: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Watch from now on; the list grows by (event, file of the code that raised it, what it was about)."""
    seen: list[tuple[str, str, str]] = []

    def is_ours(file: str) -> bool:
        return file.startswith(roots) and "site-packages" not in file

    def hook(event: str, args: tuple) -> None:
        if event not in WATCHED and event not in RUNS_CODE:
            return
        caller = sys._getframe(1).f_code.co_filename
        if event == "marshal.loads" and caller in IMPORTS:
            return  # a module that was compiled before
        if event in RUNS_CODE and not is_ours(caller):
            code = args[0]
            runs_ours = event == "exec" and isinstance(code, CodeType) and is_ours(code.co_filename)
            if not runs_ours or caller in IMPORTS:
                return
        seen.append((event, caller, repr(args)[:200]))

    sys.addaudithook(hook)
    return seen
