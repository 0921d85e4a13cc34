"""The script of a Redis store: what the server does in one step, and one round trip."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from redis.exceptions import ResponseError

from ...errors import StoreError
from .client import Server


class LapsedError(StoreError):
    """The term of the instance has run out, or the server does not know the instance: a heartbeat has to come first."""


class Script:
    """Runs one operation of `redis.lua` at a time. Every failure raises `StoreError`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._run = server.client.register_script(files(__package__).joinpath("store.lua").read_text("utf-8"))

    def run(self, keys: list[str], operation: str, *arguments: str, token: str = "") -> Any:
        """What the server gives. With a token, it does this once however often it is asked, and gives the same.

        It remembers that for as long as the call may be repeated.
        """

        def work() -> Any:
            return self._run(keys, [operation, token, str(int(self._server.patience * 1000)), *arguments])

        try:
            return self._server.call(work)
        except StoreError as error:
            if isinstance(error.__cause__, ResponseError) and str(error.__cause__).startswith("LAPSED "):
                raise LapsedError(str(error)) from error.__cause__
            raise
