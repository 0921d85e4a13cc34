"""The package's logger, and logging that cannot fail."""

from __future__ import annotations

import contextlib


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
