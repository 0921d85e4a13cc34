"""Which instances are alive: each has a file that its process keeps locked. For the processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
import os

from ...util.fork import start_clean_after_fork


class LockFiles:
    """Files beside a store, one for each instance, that the instance's process keeps locked while the instance lives.

    The operating system releases the lock when the process dies, however it dies: no clock has to agree and nothing
    has to be renewed, and a process that is merely slow is not taken for dead. Thread-safe: each call is about one
    instance, and each instance is acquired once.
    """

    def __init__(self, stem: str) -> None:
        self._stem = stem
        self._acquired: dict[str, int] = {}
        start_clean_after_fork(self)

    def acquire(self, instance: str) -> None:
        """Make the file of a new instance and lock it: the instance is alive from now on."""
        file = os.open(self._path(instance), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._acquired[instance] = file

    def release(self, instance: str) -> None:
        """Remove the file of an instance, of this process or of a dead one. Doing it again does nothing."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(instance))
        file = self._acquired.pop(instance, None)
        if file is not None:
            os.close(file)

    def release_all(self) -> None:
        """Release all that were acquired here."""
        for instance in list(self._acquired):
            self.release(instance)

    def remove_unlocked(self) -> None:
        """Remove the files of all dead instances, the store's records of them or not.

        No other process may be acquiring one at that time: its file is not locked yet.
        """
        directory, stem = os.path.split(self._path(""))
        for name in os.listdir(directory):
            if name.startswith(stem) and not self.is_alive(name.removeprefix(stem)):
                self.release(name.removeprefix(stem))

    def is_alive(self, instance: str) -> bool:
        """Whether the instance lives, in this process or in another."""
        if instance in self._acquired:
            return True
        try:
            file = os.open(self._path(instance), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared: two callers that ask at once must not take each other's lock for the instance's.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def after_fork_in_child(self) -> None:
        # The instances are the parent's, and must not stay alive here once the parent has died.
        self._close_files()

    def __del__(self) -> None:
        self._close_files()

    def _close_files(self) -> None:
        while self._acquired:
            os.close(self._acquired.popitem()[1])

    def _path(self, instance: str) -> str:
        return f"{self._stem}-instance-{instance}"
