"""Live sessions that clean up after themselves. The README is the place to begin."""

from .config import CoordinatorConfig
from .coordinator import SessionCoordinator
from .core.checkout import Checkout
from .core.events import EventChannel, EventKind, SessionEvent
from .core.session import ManagedSession, SessionMetadata, SessionState
from .core.stats import CleanupStats, CoordinatorStats, StoreStats
from .errors import (
    CoordinatorClosedError,
    InvalidSessionError,
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

__all__ = [
    "Checkout",
    "CleanupStats",
    "CoordinatorClosedError",
    "CoordinatorConfig",
    "CoordinatorStats",
    "EventChannel",
    "EventKind",
    "InvalidSessionError",
    "ManagedSession",
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
    "SessionState",
    "StoreError",
    "StoreStats",
]
