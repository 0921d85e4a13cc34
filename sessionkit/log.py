"""The package's logger, and logging that cannot fail."""

from __future__ import annotations

import contextlib
import logging

_log = logging.getLogger("sessionkit")


def report_failure(message: str, *arguments: object) -> None:
    """Log an error with the traceback of the exception that is being handled.

    Whatever a log handler raises is dropped: a session is closed, and a cleanup goes on, also where logging fails.
    """
    with contextlib.suppress(BaseException):
        _log.exception(message, *arguments)


def report_problem(message: str, *arguments: object) -> None:
    """Log a warning; drops what a log handler raises, as `report_failure` does."""
    with contextlib.suppress(BaseException):
        _log.warning(message, *arguments)
