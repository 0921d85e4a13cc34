"""Deadlines: how long a call of a Redis server may take, however slowly that answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

from redis.connection import Connection

from ...util.clock import stopwatch


class Deadline(threading.local):
    """Until when the call that this thread is in may take."""

    at = inf

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """For the length of the block: so many seconds, or until the deadline that there is, if that comes first."""
        before, self.at = self.at, min(self.at, stopwatch() + seconds)
        try:
            yield
        finally:
            self.at = before

    def left(self, most: float | None) -> float | None:
        """How long to wait for a socket now: `most`, or what is left. Raises `TimeoutError` if that is nothing."""
        if self.at == inf:
            return most
        left = self.at - stopwatch()
        if left <= 0:
            raise TimeoutError("timed out")
        return left if most is None else min(most, left)


class _TimedSocket:
    """A socket whose waits all end at a deadline: a server that sends a byte now and then may not hold up anybody."""

    def __init__(self, inner: socket.socket, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline
        self._most = inner.gettimeout()

    def settimeout(self, value: float | None) -> None:
        self._most = value

    def recv(self, size: int) -> bytes:
        self._prepare()
        return self._inner.recv(size)

    def recv_into(self, buffer: bytearray, *arguments: int) -> int:
        self._prepare()
        return self._inner.recv_into(buffer, *arguments)

    def sendall(self, data: bytes) -> None:
        self._prepare()
        self._inner.sendall(data)

    def _prepare(self) -> None:
        # Without waiting, there is nothing to end.
        self._inner.settimeout(self._most if self._most == 0 else self._deadline.left(self._most))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def timed(kind: type[Connection], deadline: Deadline) -> type[Connection]:
    """A kind of connection that keeps to the deadline."""

    class Timed(kind):  # type: ignore[valid-type, misc]  # which kind it is, the URL says
        def _connect(self) -> Any:
            settings: Any = self
            most = settings.socket_connect_timeout
            settings.socket_connect_timeout = deadline.left(most)
            try:
                return _TimedSocket(super()._connect(), deadline)
            finally:
                # The next time may have longer.
                settings.socket_connect_timeout = most

    return Timed
