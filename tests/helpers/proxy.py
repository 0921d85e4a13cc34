"""A TCP proxy for tests: it stands before a server, and does to the connections what a bad network does."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto

from .support import WAIT


class Mode(Enum):
    """What becomes of bytes."""

    PASS = auto()
    HOLD = auto()
    """Nothing comes through; what was sent meanwhile comes through later."""
    REFUSE = auto()
    """Connections are closed, new ones at once."""


class _Pair:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_done = False
        """Whether the client has nothing more to say."""


class Proxy:
    """Passes on what comes to its own `port`, to the port of a server, until it is told otherwise.

    One thread does all of it. Whoever tells it something is back once that holds.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._poked, self._poke = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, _Pair] = {}
        self._orders: list[tuple[Callable[[], None], threading.Event]] = []
        self._lock = threading.Lock()
        self._mode = Mode.PASS
        self._cut_after: int | None = None
        self._cut_next: list[int] = []
        self._cut_request = False
        self._then = Mode.PASS
        self.cuts = 0
        """How many connections were cut on demand."""
        self.replied = 0
        """How many bytes the server has replied."""
        self.connections = 0
        """How many connections were taken."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._poked, selectors.EVENT_READ, self._obey)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is, for a store."""
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self, after: int, then: Mode = Mode.PASS, times: int = 1) -> None:
        """Cut a connection when the server has replied so many bytes from now on; at 0, when it begins to.

        So many times, each counted from the one before.
        """

        def order() -> None:
            self._cut_after, self._cut_request, self._then = after, False, then
            self._cut_next = [after] * (times - 1)

        self._tell(order)

    def cut_request(self, then: Mode = Mode.PASS) -> None:
        """Cut the next connection that asks something, once, before the server hears of it."""

        def order() -> None:
            self._cut_after, self._cut_request, self._then = None, True, then

        self._tell(order)

    def turn(self, mode: Mode) -> None:
        """From now on, and for connections that there are too: this."""
        self._tell(lambda: self._turn(mode))

    def pass_on(self) -> None:
        """No more of all that."""

        def order() -> None:
            self._cut_after, self._cut_request = None, False
            self._turn(Mode.PASS)

        self._tell(order)

    def close(self) -> None:
        """Close everything."""

        def order() -> None:
            self._ended = True

        self._tell(order)
        self._thread.join(WAIT)
        for pair in set(self._pairs.values()):
            self._close(pair)
        for each in (self._listener, self._poked, self._poke):
            each.close()
        self._selector.close()

    def _tell(self, order: Callable[[], None]) -> None:
        done = threading.Event()
        with self._lock:
            self._orders.append((order, done))
        self._poke.send(b"!")
        assert done.wait(WAIT), "the proxy hangs"

    # ---- In its thread

    def _run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select():
                key.data(key.fileobj)

    def _obey(self, poked: socket.socket) -> None:
        poked.recv(1)
        with self._lock:
            order, done = self._orders.pop(0)
        order()
        done.set()

    def _turn(self, mode: Mode) -> None:
        self._mode = mode
        for pair in set(self._pairs.values()):
            if mode is Mode.REFUSE:
                self._close(pair)
            else:
                self._listen(pair)

    def _listen(self, pair: _Pair) -> None:
        """To both sides of it, or to neither."""
        for each in (pair.client, pair.server):
            with suppress(KeyError):
                self._selector.unregister(each)
            if self._mode is not Mode.HOLD and not (pair.is_done and each is pair.client):
                self._selector.register(each, selectors.EVENT_READ, self._read)

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        self.connections += 1
        if self._mode is Mode.REFUSE:
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port), WAIT)
        except OSError:
            client.close()
            return
        pair = _Pair(client, server)
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[each] = pair
        self._listen(pair)

    def _read(self, source: socket.socket) -> None:
        pair = self._pairs.get(source)
        if pair is None or self._mode is Mode.HOLD:
            # That has changed just before, together with this.
            return
        try:
            data = source.recv(65536)
        except OSError:
            data = b""
        if source is pair.client:
            self._ask(pair, data)
        elif data:
            self._reply(pair, data)
        else:
            self._close(pair)

    def _ask(self, pair: _Pair, data: bytes) -> None:
        if not data:
            # The server does what came before, and ends it.
            pair.is_done = True
            self._selector.unregister(pair.client)
            with suppress(OSError):
                pair.server.shutdown(socket.SHUT_WR)
            return
        if self._cut_request:
            self._cut_request = False
            self._cut(pair)
            return
        self._send(pair, pair.server, data)

    def _reply(self, pair: _Pair, data: bytes) -> None:
        self.replied += len(data)
        self._give(pair, data)

    def _give(self, pair: _Pair, data: bytes) -> None:
        after = self._cut_after
        if after is not None and len(data) >= after:
            self._cut_after = self._cut_next.pop() if self._cut_next else None
            if after:
                self._send(pair, pair.client, data[:after])
            self._cut(pair)
            return
        if after is not None:
            self._cut_after = after - len(data)
        self._send(pair, pair.client, data)

    def _cut(self, pair: _Pair) -> None:
        self.cuts += 1
        self._close(pair)
        if self._then is not Mode.PASS:
            self._turn(self._then)

    def _send(self, pair: _Pair, target: socket.socket, data: bytes) -> None:
        try:
            target.sendall(data)
        except OSError:
            self._close(pair)

    def _close(self, pair: _Pair) -> None:
        for each in (pair.client, pair.server):
            self._pairs.pop(each, None)
            with suppress(KeyError, ValueError):
                self._selector.unregister(each)
            each.close()


@contextmanager
def proxy(server_port: int) -> Iterator[Proxy]:
    """A proxy before the server at this port, for the length of the block."""
    found = Proxy(server_port)
    try:
        yield found
    finally:
        found.close()
