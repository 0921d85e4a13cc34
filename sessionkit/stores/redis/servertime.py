"""Server time: what a Redis server's clock reads, as far as this process can tell without asking."""

from __future__ import annotations

import time
from math import inf
from types import BuiltinFunctionType

from ...util.clock import stopwatch, system_wall_clock

AGREE_SECONDS = 0.05
"""Clocks that differ by less agree: a process may be held up for as long while it reads them."""


class ServerTime:
    """The server's clock, told by what it read when it was asked last and how long ago that is. Thread-safe."""

    def __init__(self) -> None:
        self.host_clock = system_wall_clock
        """The wall clock that `clock_offset` is against."""
        # The server's clock minus stopwatch(): it is between these.
        self._least, self._most = -inf, inf

    def note(self, server_time: float, asked_at: float) -> None:
        """The server said what time it is, to a question that was asked at this reading of `stopwatch`."""
        least, most = server_time - stopwatch(), server_time - asked_at
        if least > self._most or most < self._least:
            # Either clock has been set.
            self._least, self._most = least, most
        else:
            self._least, self._most = max(least, self._least), min(most, self._most)

    @property
    def is_known(self) -> bool:
        """Whether the server has said what time it is."""
        return self._least > -inf

    def clock_offset(self) -> float:
        """How far the server's clock is ahead of this host's, in seconds: 0 if they agree.

        Also 0 while a test has replaced `time.time`, and before the server has said what time it is.
        """
        if not self.is_known or type(time.time) is not BuiltinFunctionType:
            return 0.0
        ours = self.host_clock() - stopwatch()
        if self._least - AGREE_SECONDS <= ours <= self._most + AGREE_SECONDS:
            return 0.0
        return (self._least + self._most) / 2 - ours
