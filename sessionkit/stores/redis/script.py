"""The script of a Redis store: what the server does in one step, and one round trip."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from redis.exceptions import ResponseError

from ...errors import StoreError
from .client import Server
from .servertime import ServerTime

REMEMBERED_SECONDS = 60.0
"""For how long the server knows what it removed, for whoever did not hear it and asks again."""


class OutOfStepError(StoreError):
    """The server knows another time than we thought, or does not know the instance: it is to be told who is here."""


class Script:
    """Runs one operation of `redis.lua` at a time. Every failure raises `StoreError`."""

    def __init__(self, server: Server, time: ServerTime) -> None:
        self._server = server
        self._time = time
        self._run = server.client.register_script(files(__package__).joinpath("store.lua").read_text("utf-8"))

    def run(
        self, keys: list[str], operation: str, *arguments: str, token: str = "", remembered: float | None = None
    ) -> Any:
        """What the server gives. With a token, it does this once however often it is asked, and gives the same.

        It remembers that for as long as the call may be repeated, or for so many seconds.

        It does nothing once nobody waits any more: a server that was held up does not come back with old requests.
        """

        def work() -> Any:
            not_after = self._time.latest(self._server.gives_up_at)
            seconds = self._server.patience if remembered is None else remembered
            return self._run(keys, [operation, token, str(int(seconds * 1000)), repr(not_after), *arguments])

        try:
            return self._server.call(work)
        except StoreError as error:
            # Whoever hears that he is late is not: the server's clock has been set.
            if isinstance(error.__cause__, ResponseError) and str(error.__cause__).startswith(("LATE ", "LAPSED ")):
                raise OutOfStepError(str(error)) from error.__cause__
            raise
