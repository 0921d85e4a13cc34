"""What is compared: sessionkit, and what people use instead, each doing the same work in its own way.

What a contender cannot do is None, and its `note` says what was timed in place of a touch.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

TIMEOUT = 3600.0
Call = Callable[[str], object]


class LiveSession:
    """What people keep in such a cache: the fields that a `ManagedSession` shows."""

    __slots__ = ("created_at", "data", "id", "last_active", "message_count", "name", "resource", "state")

    def __init__(self, session_id: str, now: float) -> None:
        self.id = session_id
        self.name = self.data = self.resource = None
        self.state = "active"
        self.created_at = self.last_active = now
        self.message_count = 0


class Contender:
    """Something that keeps sessions by id, filled with some."""

    name = ""
    package = ""
    """The distribution whose version is told; none for what is written here."""
    note = ""
    capacity = 1_100_000
    """How many it must have room for, where that has to be said."""
    largest = 1_000_000
    """With more sessions it takes too long to set up here."""
    touch: Call
    look: Call | None = None
    create_and_close: Call | None = None
    check_out: Call | None = None
    clean_up: Callable[[], object] | None = None
    """Remove what is due."""
    set_clock: Callable[[float], None] | None = None
    """Say what time it is, in seconds after the first session was put in."""

    def put(self, session_id: str) -> None:
        """Put in one session."""
        raise NotImplementedError

    def fill(self, ids: Sequence[str]) -> None:
        """Put in many."""
        for session_id in ids:
            self.put(session_id)

    def close(self) -> None:
        """Let go of everything."""

    @classmethod
    def title(cls) -> str:
        """Its name, with its version if it has one."""
        return f"{cls.package} {version(cls.package)}" if cls.package else cls.name


class Sessionkit(Contender):
    name = "sessionkit"
    package = "sessionkit"

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        from sessionkit import CoordinatorConfig, SessionCoordinator

        config = CoordinatorConfig(session_timeout=TIMEOUT, max_active_sessions=None)
        coordinator = self.coordinator = SessionCoordinator(config, clock=clock)
        self.touch, self.look = coordinator.touch_session, coordinator.get_session
        self.clean_up, self.close = coordinator.cleanup_inactive_sessions, coordinator.close
        create, close = coordinator.create_session, coordinator.close_session
        checkout = coordinator.checkout

        def put(session_id: str) -> None:
            create(session_id=session_id)

        def create_and_close(session_id: str) -> None:
            create(session_id=session_id)
            close(session_id)

        def check_out(session_id: str) -> None:
            with checkout(session_id):
                pass

        self.put, self.create_and_close, self.check_out = put, create_and_close, check_out


class SessionkitByHand(Sessionkit):
    name = "sessionkit"
    note = "on a clock that is set by hand, as the others here: that one takes the lock"

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(lambda: self.now)

    def set_clock(self, now: float) -> None:
        self.now = now


class TTLCacheUnderLock(Contender):
    name = "cachetools TTLCache + RLock"
    package = "cachetools"
    note = "set again: reading does not extend it"

    def __init__(self) -> None:
        import cachetools

        self.now: float | None = None
        lock = self.lock = threading.RLock()
        cache = self.cache = self.made(cachetools, self.clock)

        def touch(session_id: str) -> None:
            with lock:
                cache[session_id] = cache[session_id]

        def look(session_id: str) -> object:
            with lock:
                return cache[session_id]

        def put(session_id: str) -> None:
            with lock:
                cache[session_id] = LiveSession(session_id, 0.0)

        def create_and_close(session_id: str) -> None:
            with lock:
                cache[session_id] = LiveSession(session_id, 0.0)
            with lock:
                del cache[session_id]

        def clean_up() -> None:
            with lock:
                cache.expire()

        self.touch, self.look, self.put, self.clean_up = touch, look, put, clean_up
        self.create_and_close = create_and_close

    def made(self, cachetools: Any, clock: Callable[[], float]) -> Any:  # noqa: ARG002  for those below
        return cachetools.TTLCache(float("inf"), TIMEOUT, time.monotonic)

    def clock(self) -> float:
        return time.monotonic() if self.now is None else self.now


class TTLCacheByHand(TTLCacheUnderLock):
    def made(self, cachetools: Any, clock: Callable[[], float]) -> Any:
        self.now = 0.0
        return cachetools.TTLCache(float("inf"), TIMEOUT, clock)

    def set_clock(self, now: float) -> None:
        self.now = now


class TLRUCacheUnderLock(TTLCacheUnderLock):
    name = "cachetools TLRUCache + RLock"

    def made(self, cachetools: Any, clock: Callable[[], float]) -> Any:  # noqa: ARG002  for those below
        return cachetools.TLRUCache(float("inf"), lambda _key, _value, now: now + TIMEOUT, time.monotonic)


class TLRUCacheByHand(TTLCacheByHand):
    name = "cachetools TLRUCache + RLock"

    def made(self, cachetools: Any, clock: Callable[[], float]) -> Any:
        self.now = 0.0
        return cachetools.TLRUCache(float("inf"), lambda _key, _value, now: now + TIMEOUT, clock)


class FullScan(Contender):
    name = "dict + lock, full scan"
    made: type[dict[str, LiveSession]] = dict

    def __init__(self) -> None:
        lock = self.lock = threading.RLock()
        sessions: Any = self.made()
        self.sessions = sessions
        self.now: float | None = None

        def touch(session_id: str) -> None:
            with lock:
                session, now = sessions[session_id], time.monotonic()
                if now - session.last_active > TIMEOUT:
                    raise KeyError(session_id)
                session.last_active = now

        def look(session_id: str) -> object:
            with lock:
                session = sessions[session_id]
                if time.monotonic() - session.last_active > TIMEOUT:
                    raise KeyError(session_id)
                return session

        def put(session_id: str) -> None:
            with lock:
                sessions[session_id] = LiveSession(session_id, self.clock())

        def create_and_close(session_id: str) -> None:
            with lock:
                sessions[session_id] = LiveSession(session_id, time.monotonic())
            with lock:
                del sessions[session_id]

        def clean_up(timeout: float = TIMEOUT) -> None:
            with lock:
                now = self.clock()
                idle = [key for key, session in sessions.items() if now - session.last_active > timeout]
                for key in idle:
                    del sessions[key]

        self.touch, self.look, self.put, self.clean_up = touch, look, put, clean_up
        self.create_and_close = create_and_close

    def clock(self) -> float:
        return time.monotonic() if self.now is None else self.now


class InOrder(FullScan):
    """The best that twenty lines by hand do: in order of activity, removed from the front and in batches."""

    name = "OrderedDict + lock, batches"
    made = OrderedDict

    def __init__(self) -> None:
        super().__init__()
        lock, sessions = self.lock, self.sessions

        def touch(session_id: str) -> None:
            with lock:
                session, now = sessions[session_id], time.monotonic()
                if now - session.last_active > TIMEOUT:
                    raise KeyError(session_id)
                session.last_active = now
                sessions.move_to_end(session_id)

        def clean_up(timeout: float = TIMEOUT) -> None:
            while True:
                with lock:
                    now = self.clock()
                    for _ in range(100):
                        if not sessions or now - next(iter(sessions.values())).last_active <= timeout:
                            return
                        sessions.popitem(last=False)
                # Without this, the thread that cleans up takes the lock again before anybody else can.
                time.sleep(50e-6)

        self.touch, self.clean_up = touch, clean_up


class ByHand:
    """For those whose clock is set by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def set_clock(self, now: float) -> None:
        self.now = now


class FullScanByHand(ByHand, FullScan):
    pass


class InOrderByHand(ByHand, InOrder):
    pass


class MokaPy(Contender):
    name = "moka-py (Rust), time to idle"
    package = "moka-py"
    note = "get, which extends it"

    def __init__(self) -> None:
        import moka_py

        cache = moka_py.Moka(self.capacity, tti=TIMEOUT)
        self.touch = cache.get
        # Its own housekeeping; it removes at its own times, from within other calls.
        self.clean_up = cache.run_pending_tasks

        def put(session_id: str) -> None:
            cache.set(session_id, LiveSession(session_id, 0.0))

        def create_and_close(session_id: str) -> None:
            cache.set(session_id, LiveSession(session_id, 0.0))
            cache.remove(session_id)

        self.put, self.create_and_close = put, create_and_close


class Cachebox(Contender):
    name = "cachebox TTLCache (Rust)"
    package = "cachebox"
    note = "insert again: reading does not extend it"

    def __init__(self) -> None:
        import cachebox

        cache: Any = cachebox.TTLCache(0, TIMEOUT)
        self.look = cache.get
        self.clean_up = cache.expire

        def touch(session_id: str) -> None:
            cache.insert(session_id, cache.get(session_id))

        def put(session_id: str) -> None:
            cache.insert(session_id, LiveSession(session_id, 0.0))

        def create_and_close(session_id: str) -> None:
            cache.insert(session_id, LiveSession(session_id, 0.0))
            cache.pop(session_id)

        self.touch, self.put, self.create_and_close = touch, put, create_and_close


class Theine(Contender):
    name = "theine"
    package = "theine"
    note = "set again: reading does not extend it"

    def __init__(self) -> None:
        import theine

        # It takes memory for its capacity at once.
        cache: Any = theine.Cache(self.capacity)
        ttl = datetime.timedelta(seconds=TIMEOUT)
        self.close = cache.close
        self.look = cache.get

        def touch(session_id: str) -> None:
            cache.set(session_id, cache.get(session_id)[0], ttl)

        def put(session_id: str) -> None:
            cache.set(session_id, LiveSession(session_id, 0.0), ttl)

        def create_and_close(session_id: str) -> None:
            cache.set(session_id, LiveSession(session_id, 0.0), ttl)
            cache.delete(session_id)

        self.touch, self.put, self.create_and_close = touch, put, create_and_close


class ExpiringDict(Contender):
    name = "expiringdict"
    package = "expiringdict"
    note = "set again: reading does not extend it"

    def __init__(self) -> None:
        import expiringdict

        cache: Any = expiringdict.ExpiringDict(self.capacity, TIMEOUT)
        self.look = cache.get

        def touch(session_id: str) -> None:
            cache[session_id] = cache[session_id]

        def put(session_id: str) -> None:
            cache[session_id] = LiveSession(session_id, 0.0)

        def create_and_close(session_id: str) -> None:
            cache[session_id] = LiveSession(session_id, 0.0)
            del cache[session_id]

        self.touch, self.put, self.create_and_close = touch, put, create_and_close


class CherryPy(Contender):
    name = "CherryPy RAM sessions"
    package = "CherryPy"
    note = "lock, load, save"

    def __init__(self) -> None:
        from cherrypy.lib.sessions import RamSession

        class Store(RamSession):  # type: ignore[misc]  # it has no type hints
            cache: dict[str, Any] = {}  # noqa: RUF012  its own, and not the class's, as there
            locks: dict[str, Any] = {}  # noqa: RUF012
            clean_freq = 0
            hour = datetime.datetime.now()

            def now(self) -> datetime.datetime:
                return datetime.datetime.now()

        expires = datetime.datetime.now() + datetime.timedelta(hours=1)

        def touch(session_id: str) -> None:
            session = Store(session_id)
            session.acquire_lock()
            session.load()
            session.save()

        def look(session_id: str) -> object:
            return Store(session_id).load()

        def put(session_id: str) -> None:
            Store.cache[session_id] = ({}, expires)

        def create_and_close(session_id: str) -> None:
            Store.cache[session_id] = ({}, expires)
            Store(session_id).delete()

        def clean_up() -> None:
            Store("sentinel").clean_up()

        put("sentinel")
        self.touch, self.look, self.put, self.clean_up = touch, look, put, clean_up
        # It keeps other requests of the session out, and does not keep the session from being removed.
        self.check_out = touch
        self.create_and_close = create_and_close


class Beaker(Contender):
    name = "Beaker memory sessions"
    package = "Beaker"
    note = "load and save"
    largest = 1_000

    def __init__(self) -> None:
        from beaker.session import Session

        def open_session(session_id: str) -> Any:
            return Session({}, id=session_id, type="memory", timeout=TIMEOUT, use_cookies=False)

        def touch(session_id: str) -> None:
            open_session(session_id).save()

        def create_and_close(session_id: str) -> None:
            session = open_session(session_id)
            session.save()
            session.delete()

        self.touch, self.look, self.put = touch, open_session, touch
        self.create_and_close = create_and_close


class Django(Contender):
    name = "Django local-memory cache sessions"
    package = "Django"
    note = "load and save, pickled"
    largest = 100_000

    def __init__(self) -> None:
        import django
        from django.conf import settings

        if not settings.configured:
            cache = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 10**9}}
            settings.configure(CACHES={"default": cache}, USE_TZ=True)
            django.setup()
        from django.contrib.sessions.backends.cache import SessionStore
        from django.core.cache import caches

        self.close = caches["default"].clear
        data = {"user": 1}

        def touch(session_id: str) -> None:
            store = SessionStore(session_id)
            store.get("user")
            store.save()

        def look(session_id: str) -> object:
            return SessionStore(session_id).load()

        def put(session_id: str) -> None:
            store = SessionStore(session_id)
            store._session_cache = dict(data)
            store.save(must_create=True)

        def create_and_close(session_id: str) -> None:
            put(session_id)
            SessionStore(session_id).delete()

        self.touch, self.look, self.put, self.create_and_close = touch, look, put, create_and_close


CONTENDERS: list[type[Contender]] = [
    Sessionkit,
    TTLCacheUnderLock,
    TLRUCacheUnderLock,
    FullScan,
    InOrder,
    MokaPy,
    Cachebox,
    Theine,
    ExpiringDict,
    CherryPy,
    Beaker,
    Django,
]

BY_HAND: list[type[Contender]] = [SessionkitByHand, TTLCacheByHand, TLRUCacheByHand, FullScanByHand, InOrderByHand]
"""Those whose clock can be set, for cleanups of what is due."""
