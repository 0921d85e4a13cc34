"""Time, and how chats end, in words."""

from __future__ import annotations

from math import ceil

from sessionkit import RemovalCause, SessionExpiredError


def duration(seconds: float) -> str:
    """A length of time as one says it: "10 minutes"."""
    whole = ceil(seconds)
    for unit, length in (("hour", 3600), ("minute", 60)):
        if whole % length == 0 or whole >= 2 * length:
            return _counted(round(whole / length), unit)
    return _counted(whole, "second")


def time_left(seconds: float) -> str:
    """How long a chat has, and no more exact than is of use."""
    return f"about {_counted(round(seconds / 60), 'minute')} left" if seconds >= 60 else "less than a minute left"


def ending(error: SessionExpiredError) -> str:
    """Why a chat ended."""
    limit = error.limit or 0
    match error.cause:
        case RemovalCause.IDLE:
            return away(limit)
        case RemovalCause.LIFETIME:
            return f"This chat ended because it was {duration(limit)} old, and none gets older."
        case RemovalCause.CAPACITY:
            return "This chat ended because there were too many at once."
        case RemovalCause.SHUTDOWN:
            return "This chat ended because the server was stopped."
        case _:
            return CLOSED


def away(seconds: float) -> str:
    """What is said to somebody who was away for too long."""
    return f"This chat ended because you were away for {duration(seconds)}."


CLOSED = "This chat was ended."

UNKNOWN = "This chat has ended. How is not known any more."


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
