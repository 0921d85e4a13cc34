"""How a value is shown in messages, and logging that cannot fail."""

from __future__ import annotations

import contextlib
import reprlib

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def short_repr(value: object) -> str:
    """The value's `repr`, shortened in the middle when it is long."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python does not write out an int of thousands of digits
        return f"<{type(value).__name__} that is too long to show>"


def report_failure(message: str, *arguments: object) -> None:
    """Log an error with the traceback of the exception that is being handled.

    Whatever a log handler raises is dropped: a session is closed, and a cleanup goes on, also where logging fails.
    """
    with contextlib.suppress(BaseException):
        import logging  # only now: it takes a tenth of the package's import

        logging.getLogger("sessionkit").exception(message, *arguments)


def report_problem(message: str, *arguments: object) -> None:
    """Log a warning; drops what a log handler raises, as `report_failure` does."""
    with contextlib.suppress(BaseException):
        import logging

        logging.getLogger("sessionkit").warning(message, *arguments)
