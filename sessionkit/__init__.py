"""Live sessions that clean up after themselves. The README is the place to begin."""

from .config import CoordinatorConfig
from .coordinator import CoordinatorStats, SessionCoordinator
from .core.checkout import Checkout
from .core.cleanup import CleanupStats
from .core.events import EventChannel, EventKind, SessionEvent
from .core.holding import CheckoutInfo
from .core.session import ManagedSession, SessionMetadata, SessionSnapshot, SessionState
from .errors import (
    CoordinatorClosedError,
    InvalidSessionError,
    ReadOnlySessionError,
    RemovalCause,
    SessionBusyError,
    SessionConflictError,
    SessionElsewhereError,
    SessionError,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
    SessionNotFoundError,
    StoreError,
)
from .persistence.records import StoreStats

__all__ = [
    "Checkout",
    "CheckoutInfo",
    "CleanupStats",
    "CoordinatorClosedError",
    "CoordinatorConfig",
    "CoordinatorStats",
    "EventChannel",
    "EventKind",
    "InvalidSessionError",
    "ManagedSession",
    "ReadOnlySessionError",
    "RemovalCause",
    "SessionBusyError",
    "SessionConflictError",
    "SessionCoordinator",
    "SessionElsewhereError",
    "SessionError",
    "SessionEvent",
    "SessionExistsError",
    "SessionExpiredError",
    "SessionLimitError",
    "SessionMetadata",
    "SessionNotFoundError",
    "SessionSnapshot",
    "SessionState",
    "StoreError",
    "StoreStats",
]
