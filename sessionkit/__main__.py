"""Run the `sessionkit` command (also `python -m sessionkit`), and choose its exit status.

Exit statuses: 0 done; 1 a log that cannot be read, a store that fails, a session that is not there, an output that
cannot be written, or no `cli` extra; 2 wrong usage; 130 interrupted (Ctrl-C); 141 the output was closed by its reader.
With every status but 0, the reason is on stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> None:
    """Run the command with the arguments of this process, and exit."""
    # Python has None for an output that was closed before it started.
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  it stays open to the end
    if sys.stdout is None:
        _say("Error: the output cannot be written: it is closed")
        sys.exit(1)
    try:
        sys.exit(_run())
    except KeyboardInterrupt:
        # A terminal has shown ^C; the reason gets a line of its own.
        _say("\n" * sys.stderr.isatty() + "Error: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        _say("Error: the output was closed before all of it was written")
        _discard_output()
        sys.exit(141)
    except OSError as error:
        _say(f"Error: the output cannot be written: {error.strerror}")
        _discard_output()
        sys.exit(1)


def _run() -> int:
    try:
        import click

        from .cli.main import sessionkit
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        _say(f"Error: the command line needs its extra ({reason}); run: pip install 'sessionkit[cli]'")
        return 1
    try:
        # Not click's own main(): that has exit statuses of its own for Ctrl-C and for a closed output.
        with sessionkit.make_context("sessionkit", sys.argv[1:]) as context:
            sessionkit.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0


def _say(reason: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{reason}\n")
        sys.stderr.flush()


def _discard_output() -> None:
    # The interpreter flushes both when it exits, which would fail again.
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
