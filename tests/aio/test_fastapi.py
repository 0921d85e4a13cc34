"""FastAPI and uvicorn: requests of one session, on the loop and in threads, have it one after the other."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import fastapi
import fastapi.responses
import pytest
import uvicorn

from sessionkit import RemovalCause, SessionBusyError, SessionCoordinator
from sessionkit.aio import checkout, on_loop
from sessionkit.stores import SQLiteStore

from ..helpers.support import WAIT, wait_until

Coordinator = SessionCoordinator[Any]


class Shop:
    """An application that counts in one session."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.closed: list[tuple[Any, RemovalCause]] = []
        self.go_on: asyncio.Event
        self.coordinator: Coordinator

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        async def close(session: Any, cause: RemovalCause) -> None:
            await asyncio.sleep(0)
            self.closed.append((session.data.get("n"), cause))

        self.go_on = asyncio.Event()
        loop = asyncio.get_running_loop()
        store = None if self._path is None else SQLiteStore(self._path)
        self.coordinator = SessionCoordinator(store=store, on_close=on_loop(close, loop))
        self.coordinator.start_cleanup_task()
        self.coordinator.create_session(session_id="it")
        yield
        await asyncio.to_thread(self.coordinator.close)
        if store is not None:
            store.close()

    async def session(self, timeout: float = WAIT) -> AsyncIterator[Any]:
        """A dependency: the session, for as long as the request takes."""
        try:
            async with checkout(self.coordinator, "it", timeout=timeout) as session:
                yield session
        except SessionBusyError:
            raise fastapi.HTTPException(503) from None

    def app(self) -> fastapi.FastAPI:
        app = fastapi.FastAPI(lifespan=self.lifespan)
        session = fastapi.Depends(self.session)

        @app.get("/count")
        async def count(session: Any = session) -> int:
            number = session.data.get("n", 0)
            await asyncio.sleep(0.001)
            session.data["n"] = number + 1
            return session.data["n"]

        @app.get("/in-thread")
        def count_in_thread() -> int:
            with self.coordinator.checkout("it", timeout=WAIT) as session:
                session.data["n"] = session.data.get("n", 0) + 1
                return session.data["n"]

        @app.get("/hold")
        async def hold(session: Any = session) -> None:
            await self.go_on.wait()

        @app.get("/release")
        async def release() -> None:
            self.go_on.set()

        @app.get("/stream")
        async def stream() -> fastapi.responses.StreamingResponse:
            async def body() -> AsyncIterator[bytes]:
                async with checkout(self.coordinator, "it", timeout=WAIT):
                    while True:
                        yield b"x" * 10_000
                        await asyncio.sleep(0)

            return fastapi.responses.StreamingResponse(body())

        return app


@contextmanager
def serving(app: fastapi.FastAPI) -> Iterator[int]:
    """The port on which it is served; a graceful stop is waited for."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        server = uvicorn.Server(uvicorn.Config(app, ws="none", log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive()


def get(port: int, path: str) -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)) as connection:
        connection.request("GET", path)
        with connection.getresponse() as response:
            return response.status, response.read().decode()


@pytest.mark.parametrize("kept", [False, True], ids=["in memory", "with a store"])
def test_requests_of_one_session_lose_no_update(tmp_path: Path, kept: bool) -> None:
    """Endpoints on the loop and in threads wait for each other; a client that goes away leaves no trace."""
    shop = Shop(tmp_path / "sessions.db" if kept else None)
    with serving(shop.app()) as port:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda path: get(port, path), ["/count", "/in-thread"] * 12))
        assert sorted(int(text) for _, text in answers) == list(range(1, 25))

        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(get, port, "/hold")
            wait_until(shop.coordinator.checkouts)
            assert get(port, "/count?timeout=0.01")[0] == 503
            assert get(port, "/release")[0] == 200
            assert holding.result(WAIT)[0] == 200

        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)) as connection:
            connection.request("GET", "/stream")
            response = connection.getresponse()
            assert response.read(5) == b"xxxxx"
            assert len(shop.coordinator.checkouts()) == 1
            response.close()
        wait_until(lambda: not shop.coordinator.checkouts())
        assert get(port, "/count") == (200, "25")
    assert shop.closed == [(25, RemovalCause.SHUTDOWN)]
