"""Live sessions that clean up after themselves. The README is the place to begin."""

from .checkout import Checkout
from .config import CoordinatorConfig
from .coordinator import SessionCoordinator
from .ending import RemovalCause
from .errors import (
    CoordinatorClosedError,
    InvalidSessionError,
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
from .events import EventChannel, EventKind, SessionEvent
from .session import ManagedSession, SessionMetadata, SessionState
from .stats import CleanupStats, CoordinatorStats, StoreStats

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
