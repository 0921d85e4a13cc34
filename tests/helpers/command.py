"""The `sessionkit` command for tests: in this process, in one of its own, on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from sessionkit.cli.main import sessionkit

from .support import WAIT

COMMAND = [sys.executable, "-m", "sessionkit"]


def run_command(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
    """Run the command in this process; any exception but `SystemExit` fails the test."""
    result = CliRunner().invoke(sessionkit, [*map(str, arguments)], input=stdin)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def run_real(*arguments: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with piped output unless told otherwise."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | more
    return subprocess.run([*COMMAND, *map(str, arguments)], text=True, timeout=WAIT, check=False, **pipes)  # type: ignore[call-overload,no-any-return]  # noqa: S603


def run_on_terminal(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """Run the command on a terminal of 80 columns; its exit status, and all it wrote."""
    reader, writer = pty.openpty()
    fixed = {"TERM": "xterm-256color", "COLUMNS": "80", "PATH": os.environ["PATH"]} | environment
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(  # noqa: S603
        [*COMMAND, *map(str, arguments)], stdin=writer, stdout=writer, stderr=writer, env=inherited | fixed
    ) as process:
        os.close(writer)
        written = bytearray()
        # A terminal whose other side has gone reads as an I/O error on Linux, and as empty elsewhere.
        try:
            while chunk := os.read(reader, 65536):
                written += chunk
        except OSError:
            pass
        status = process.wait(WAIT)
    os.close(reader)
    return status, written.decode()


def start(*arguments: str | Path, code: str = "") -> subprocess.Popen[str]:
    """The command in a process of its own, which obeys SIGINT even if the process of the tests ignores it."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", f"{code}\nfrom sessionkit.__main__ import main\nmain()", *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def only_line(text: str) -> str:
    """The one line that the text is; fails if it is more, or a traceback."""
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text.removesuffix("\n")
