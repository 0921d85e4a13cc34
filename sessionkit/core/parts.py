"""The parts of a coordinator that others work with."""

from __future__ import annotations

import threading
from typing import Protocol

from ..util.clock import SteadyClock
from .events import EventBus
from .finalizer import Finalizer
from .roster import Roster
from .sweep import Sweep


class Parts(Protocol):
    """What a coordinator is made of."""

    _lock: threading.RLock
    _clock: SteadyClock
    _roster: Roster
    _finalizer: Finalizer
    _sweep: Sweep
    _bus: EventBus
