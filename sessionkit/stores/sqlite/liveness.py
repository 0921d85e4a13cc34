"""Lifelines: how the processes of one machine see which of them are alive."""

from __future__ import annotations

import contextlib
import fcntl
import os

from ...util.fork import start_clean_after_fork


class Lifelines:
    """Files beside a store, one for each instance, that their process keeps locked for as long as the instance lives.

    The operating system lets go of the lock when the process dies, however it dies: no clock has to agree and nothing
    has to be renewed, and a process that is merely slow is not taken for dead. Thread-safe, because each call is about
    one name and a name is only ever tied once.
    """

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._tied: dict[str, int] = {}
        start_clean_after_fork(self)

    def tie(self, instance: str) -> None:
        """From now on, the instance is alive."""
        file = os.open(self._path(instance), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._tied[instance] = file

    def cut(self, instance: str) -> None:
        """The instance lives no more; its file goes. Cutting again does nothing."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(instance))
        file = self._tied.pop(instance, None)
        if file is not None:
            os.close(file)

    def is_alive(self, instance: str) -> bool:
        """Whether the instance lives, in this process or in another."""
        if instance in self._tied:
            return True
        try:
            file = os.open(self._path(instance), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two who look at once do not take each other for the instance.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def cut_strays(self) -> None:
        """Remove the files of instances that died before anybody knew of them. Nobody else may be tying at that
        time."""
        directory, stem = os.path.split(self._path(""))
        for name in os.listdir(directory):
            if name.startswith(stem) and not self.is_alive(name.removeprefix(stem)):
                self.cut(name.removeprefix(stem))

    def cut_all(self) -> None:
        """Cut all that were tied here."""
        for instance in list(self._tied):
            self.cut(instance)

    def _after_fork_in_child(self) -> None:
        # These are the parent's, and must not live on here once it has died.
        self._let_go()

    def _let_go(self) -> None:
        while self._tied:
            os.close(self._tied.popitem()[1])

    def __del__(self) -> None:
        self._let_go()

    def _path(self, instance: str) -> str:
        return f"{self._stem}-instance-{instance}"
