"""Running the `sessionkit` command (also `python -m sessionkit`), and how it ends.

Exit statuses: 0 done; 1 a log that cannot be read, a store that fails, a session that is not there, an output that
cannot be written, or no `cli` extra; 2 wrong usage; 130 interrupted (Ctrl-C); 141 nobody reads the output any more.
Each but 0 goes with its reason on stderr.
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
        # A terminal shows ^C, and the reason is to stand on a line of its own.
        _say("\n" * sys.stderr.isatty() + "Error: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        _say("Error: the output was closed before all of it was written")
        _let_go_of_output()
        sys.exit(141)
    except OSError as error:
        _say(f"Error: the output cannot be written: {error.strerror}")
        _let_go_of_output()
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
        # Not click's own main(): it ends in its own way when interrupted, or when the output is closed.
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


def _let_go_of_output() -> None:
    # The interpreter flushes both once more when it exits, and would fail once more.
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
