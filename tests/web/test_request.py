"""A request's way to its session: when the session is found, made, rotated, ended, saved and given back."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from sessionkit import RemovalCause, SessionBusyError, SessionCoordinator, StoreError
from sessionkit.stores import SQLiteStore
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory
from sessionkit.web.request import RequestSession
from sessionkit.wsgi import SessionCookie, SessionMiddleware, WebSession

from ..helpers.support import WAIT, Closings, WatchedStore, in_thread, wait_until
from ..helpers.web import CONFIG, COOKIE, SITE, Site, View, Visitor, count

# ---- When there is a session


def test_the_first_write_makes_the_session(session_coordinator: CoordinatorFactory) -> None:
    """All of an update is in its data when the resource is made; the same request sees it."""
    coordinator = session_coordinator(CONFIG, resource_factory=lambda session: f"live in {session.data['lang']}")

    def write(session: WebSession) -> object:
        assert session.resource is None
        session.update({"lang": "en"}, user=7)
        assert session.new
        return session.resource, session["user"], session.id == coordinator.list_sessions()[0].id

    visitor = Visitor(SessionMiddleware(Site(index=write, again=lambda s: (s.new, s.resource)), coordinator))
    assert visitor.text() == "('live in en', 7, True)"
    assert visitor.text("/again") == "(False, 'live in en')"


def test_it_reads_and_writes_like_a_dict(coordinator: SessionCoordinator[Any]) -> None:
    """What a dict can do, and a repr that shows no token."""

    def checks(session: WebSession) -> str:
        for _ in range(2):
            # It does not look either.
            assert repr(session) == "<WebSession not looked at>"
        session["a"] = 1
        session.setdefault("b", [])
        session["b"].append(2)
        assert session == {"a": 1, "b": [2]}
        assert (list(session), len(session), "a" in session, session.pop("a")) == (["a", "b"], 2, True, 1)
        del session["b"]
        assert not session
        session.update([("c", 3)])
        assert session.popitem() == ("c", 3)
        session["d"] = 4
        assert session.setdefault("d", 5) == 4
        assert (session.copy(), session | {"e": 5}) == ({"d": 4}, {"d": 4, "e": 5})
        session |= {"f": 6}
        with pytest.raises(KeyError):
            session.pop("g")
        assert (session.pop("f"), session.pop("g", 7)) == (6, 7)
        session.clear()
        assert dict(session) == {}
        assert repr(session) == f"<WebSession {session.id!r}>"
        return "done"

    visitor = Visitor(SessionMiddleware(Site(index=checks), coordinator))
    assert visitor.text() == "done"
    assert len(coordinator) == 1


def test_the_repr_of_a_visitor_without_a_session(coordinator: SessionCoordinator[Any]) -> None:
    """Says that there is none."""
    page = Site(index=lambda session: (session.get("a"), session))
    assert Visitor(SessionMiddleware(page, coordinator)).text() == "(None, <WebSession none>)"


def test_every_look_is_activity(session_coordinator: CoordinatorFactory, session_clock: ManualClock) -> None:
    """The session is touched when it is taken and given back, and when the application says so in between."""
    coordinator = session_coordinator(CONFIG)

    def long(session: WebSession) -> str:
        session.get("n")
        session_clock.advance(50)
        session.touch()
        assert coordinator.list_sessions()[0].metadata.last_active == session_clock()
        session_clock.advance(50)
        return "long"

    visitor = Visitor(SessionMiddleware(Site(index=count, long=long), coordinator))
    visitor.get()
    session_clock.advance(60)
    visitor.get("/long")
    session_clock.advance(60)
    assert visitor.text() == "2"


# ---- Logging in and out


def test_rotation_gives_a_new_token(coordinator: SessionCoordinator[Any]) -> None:
    """Data and resource stay, the client is told, and the old token is of no use."""

    def login(session: WebSession) -> str:
        session["user"] = 7
        session.rotate()
        session["after"] = True
        return "in"

    app = SessionMiddleware(Site(index=count, login=login, look=dict), coordinator)
    visitor, thief = Visitor(app), Visitor(app)
    visitor.get()
    thief.cookies.update(visitor.cookies)
    assert visitor.text("/login") == "in"
    assert visitor.token != thief.token
    assert visitor.text("/look") == "{'n': 1, 'user': 7, 'after': True}"
    assert thief.text("/look") == "{}"
    assert len(coordinator) == 1


def test_rotation_of_a_session_made_in_the_same_request(coordinator: SessionCoordinator[Any]) -> None:
    """One session, one cookie, with the last token."""

    def work(session: WebSession) -> str:
        session["a"] = 1
        session.rotate()
        return "ok"

    visitor = Visitor(SessionMiddleware(Site(index=work, look=dict), coordinator))
    visitor.get()
    assert visitor.text("/look") == "{'a': 1}"
    assert len(coordinator) == 1


def test_closing_ends_the_session_and_takes_the_cookie(session_coordinator: CoordinatorFactory) -> None:
    """After `close()` the token is dead, and so is every copy of it. The resource is closed when the call returns."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)

    def logout(session: WebSession) -> object:
        session.close()
        return closings[0][1].name, dict(session), session.id

    app = SessionMiddleware(Site(index=count, logout=logout, look=dict), coordinator)
    visitor, thief = Visitor(app), Visitor(app)
    visitor.get()
    thief.cookies.update(visitor.cookies)
    answer = visitor.get("/logout")
    assert answer.written == [b"('CLOSED', {}, None)"]
    assert answer["Cache-Control"] == "private, no-store"
    assert not visitor.cookies
    assert thief.text("/look") == "{}"


def test_a_write_after_closing_makes_another_session(coordinator: SessionCoordinator[Any]) -> None:
    """To say goodbye on the next page, for one."""

    def logout(session: WebSession) -> object:
        session.close()
        session["message"] = "goodbye"
        return session.new

    visitor = Visitor(SessionMiddleware(Site(index=count, logout=logout, look=dict), coordinator))
    visitor.get()
    token = visitor.token
    assert visitor.text("/logout") == "True"
    assert visitor.token != token
    assert visitor.text("/look") == "{'message': 'goodbye'}"
    assert len(coordinator) == 1


def test_a_session_made_and_closed_in_one_request_leaves_nothing(coordinator: SessionCoordinator[Any]) -> None:
    """No cookie either."""

    def work(session: WebSession) -> str:
        session["a"] = 1
        session.close()
        return "done"

    visitor = Visitor(SessionMiddleware(Site(index=work), coordinator))
    assert visitor.get()["Set-Cookie"] is None
    assert len(coordinator) == 0


def test_a_session_that_ended_under_the_request_cannot_be_rotated(coordinator: SessionCoordinator[Any]) -> None:
    """There is none any more, and the client is told so; touching and closing do no harm either."""

    def work(session: WebSession) -> object:
        session.get("n")
        coordinator.close_session(coordinator.list_sessions()[0].id)
        session.touch()
        session.rotate()
        session.close()
        return session.id

    visitor = Visitor(SessionMiddleware(Site(index=count, work=work), coordinator))
    visitor.get()
    assert visitor.text("/work") == "None"
    assert visitor.token is None


# ---- Several processes


class Workers(NamedTuple):
    """One visitor's session in two workers: in the store of the first one, calls can fail."""

    here: Visitor
    there: Visitor
    coordinator: SessionCoordinator[Any]
    """The coordinator of the first worker."""


@pytest.fixture
def workers(session_coordinator: CoordinatorFactory, store: WatchedStore, tmp_path: Path) -> Workers:
    site = Site(index=count, look=dict, close=WebSession.close, rotate=WebSession.rotate)
    coordinator = session_coordinator(CONFIG, store=store)
    other = session_coordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db"))
    here, there = (Visitor(SessionMiddleware(site, each)) for each in (coordinator, other))
    here.get()
    there.cookies.update(here.cookies)
    assert there.text("/look") == "{'n': 1}"
    return Workers(here, there, coordinator)


@pytest.mark.parametrize("failing", ["*", "lease"])
@pytest.mark.parametrize("path", ["/close", "/rotate"])
def test_a_dead_token_is_not_served_from_memory(path: str, failing: str, workers: Workers, store: WatchedStore) -> None:
    """It died in another worker, and the store cannot say so here: 503."""
    here, there, _ = workers
    there.get(path)
    store.failing.add(failing)
    assert here.get("/look").status == "503 Service Unavailable"
    store.failing.clear()
    assert here.text("/look") == "{}"


def test_a_new_session_that_the_store_does_not_confirm(
    session_coordinator: CoordinatorFactory, store: WatchedStore
) -> None:
    """503, and nothing of it stays: nobody has its token."""
    coordinator = session_coordinator(CONFIG, store=store)
    store.failing.add("lease")
    answer = Visitor(SessionMiddleware(SITE, coordinator)).get()
    assert (answer.status, answer["Set-Cookie"]) == ("503 Service Unavailable", None)
    assert len(coordinator) == 0
    assert store.store.page(None, 1) == []
    store.failing.clear()


def test_a_rotation_after_which_a_shared_session_is_not_had_again(coordinator: SessionCoordinator[Any]) -> None:
    """503, with the new token: the old one is dead."""
    check_out = coordinator.checkout

    def only_alone(*arguments: Any, **options: Any) -> Any:
        # As where another request that rotates it has it to itself.
        if not options["exclusive"]:
            raise SessionBusyError("taken")
        return check_out(*arguments, **options)

    def rotate(session: WebSession) -> None:
        assert session["n"] == 1
        with patch.object(coordinator, "checkout", only_alone):
            session.rotate()

    visitor = Visitor(SessionMiddleware(Site(index=count, rotate=rotate), coordinator, shared=True))
    visitor.get()
    token = visitor.token
    assert visitor.get("/rotate").status == "503 Service Unavailable"
    assert visitor.token != token
    assert visitor.text() == "2"


def test_a_log_out_that_others_may_not_see_is_no_success(workers: Workers, store: WatchedStore) -> None:
    """The store cannot delete the record: 503, and the cookie is taken all the same; it is deleted later."""
    here, there, coordinator = workers
    store.failing.add("delete")
    assert here.get("/close").status == "503 Service Unavailable"
    assert here.token is None
    assert there.text("/look") == "{'n': 1}"
    store.failing.clear()
    coordinator.cleanup_inactive_sessions()
    assert there.text("/look") == "{}"


# ---- Several requests of one visitor


def test_requests_that_one_thread_serves_exclude_each_other(coordinator: SessionCoordinator[Any]) -> None:
    """As those do that are greenlets of one thread."""
    visitor = Visitor(SessionMiddleware(SITE, coordinator, timeout=0))
    visitor.get()
    first = visitor.begin()
    assert visitor.get().status == "503 Service Unavailable"
    assert first.read() == b"2"
    assert visitor.text() == "3"


def test_no_update_is_lost(coordinator: SessionCoordinator[Any]) -> None:
    """Exclusive mode: concurrent requests of one visitor have the session one after the other."""
    app = SessionMiddleware(SITE, coordinator, timeout=WAIT)
    visitor = Visitor(app)
    visitor.get()
    threads = [threading.Thread(target=lambda: [visitor.get() for _ in range(25)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert visitor.text() == "202"


def test_a_request_that_waited_too_long_gets_503(coordinator: SessionCoordinator[Any]) -> None:
    """With `Retry-After`; and the one that has the session is not disturbed."""
    visitor = Visitor(SessionMiddleware(SITE, coordinator, timeout=0))
    visitor.get()
    slow = visitor.begin()
    with in_thread(visitor.get) as future:
        answer = future.result(WAIT)
    assert (answer.status, answer["Retry-After"]) == ("503 Service Unavailable", "5")
    assert (answer["Cache-Control"], answer["Vary"], answer["Set-Cookie"]) == ("no-store", "Cookie", None)
    assert b"try again" in answer.written[0]
    assert slow.read() == b"2"
    assert visitor.text() == "3"


def test_shared_requests_have_the_session_at_the_same_time(coordinator: SessionCoordinator[Any]) -> None:
    """Both see what either writes."""
    visitor = Visitor(SessionMiddleware(SITE, coordinator, shared=True, timeout=0))
    visitor.get()
    slow = visitor.begin()
    with in_thread(visitor.text) as future:
        assert future.result(WAIT) == "3"
    assert slow.read() == b"2"
    assert coordinator.list_sessions()[0].data == {"n": 3}


class Meeting:
    """Two requests of one visitor: one waits in the middle until the other one has done something."""

    def __init__(self, coordinator: SessionCoordinator[Any], act: View, *, shared: bool) -> None:
        self.arrived, self.go_on = threading.Event(), threading.Event()
        self.visitor = Visitor(
            SessionMiddleware(
                Site(index=count, wait=self.wait, act=act, look=dict), coordinator, shared=shared, timeout=WAIT
            )
        )
        self.visitor.get()

    def wait(self, session: WebSession) -> object:
        session["begun"] = True
        self.arrived.set()
        assert self.go_on.wait(WAIT)
        session["ended"] = True
        return sorted(session)


def test_login_rotation_while_another_request_runs(coordinator: SessionCoordinator[Any]) -> None:
    """The rotation waits for it; and a request that waits for the rotation, by the old token, gets nothing."""
    rotated = threading.Event()

    def login(session: WebSession) -> str:
        session.rotate()
        session["user"] = 7
        rotated.set()
        return "in"

    meeting = Meeting(coordinator, login, shared=True)
    old = Visitor(meeting.visitor.app)
    old.cookies.update(meeting.visitor.cookies)
    with in_thread(old.text, "/wait") as waiting:
        assert meeting.arrived.wait(WAIT)
        with in_thread(meeting.visitor.text, "/act") as acting:
            assert not rotated.wait(0.01)
            meeting.go_on.set()
            assert acting.result(WAIT) == "in"
        assert waiting.result(WAIT) == "['begun', 'ended', 'n']"
    assert old.text("/look") == "{}"
    assert meeting.visitor.text("/look") == "{'n': 1, 'begun': True, 'ended': True, 'user': 7}"


def test_a_request_that_waited_while_another_one_rotated_has_nothing(coordinator: SessionCoordinator[Any]) -> None:
    """After `rotate()` the old token is dead at once, for requests that wait with it too."""
    holds, go_on, asked = threading.Event(), threading.Event(), threading.Event()
    checkout = coordinator.checkout

    def checkout_and_tell(session_id: str, **options: Any) -> Any:
        asked.set()
        return checkout(session_id, **options)

    def login(session: WebSession) -> str:
        session["user"] = 7
        holds.set()
        assert go_on.wait(WAIT)
        session.rotate()
        return "in"

    app = SessionMiddleware(Site(index=count, login=login, look=dict), coordinator, timeout=WAIT)
    visitor, old = Visitor(app), Visitor(app)
    visitor.get()
    old.cookies.update(visitor.cookies)
    with in_thread(visitor.text, "/login") as first:
        assert holds.wait(WAIT)
        with patch.object(coordinator, "checkout", checkout_and_tell), in_thread(old.text, "/look") as second:
            assert asked.wait(WAIT)
            # It waits, and goes on to wait.
            with pytest.raises(TimeoutError):
                second.result(0.05)
            go_on.set()
            assert (first.result(WAIT), second.result(WAIT)) == ("in", "{}")
    assert visitor.text("/look") == "{'n': 1, 'user': 7}"


def test_two_requests_that_rotate_a_shared_session(coordinator: SessionCoordinator[Any]) -> None:
    """The one that comes second has a token that is dead, and no session; nothing breaks."""
    both = threading.Barrier(2)

    def rotate(session: WebSession) -> object:
        session.get("n")
        both.wait(WAIT)
        session.rotate()
        return dict(session)

    app = SessionMiddleware(Site(index=count, rotate=rotate), coordinator, shared=True, timeout=WAIT)
    visitor = Visitor(app)
    visitor.get()
    copy = Visitor(app)
    copy.cookies.update(visitor.cookies)
    with in_thread(visitor.text, "/rotate") as one, in_thread(copy.text, "/rotate") as other:
        assert sorted([one.result(WAIT), other.result(WAIT)]) == ["{'n': 1}", "{}"]
    assert coordinator.stats().checked_out == 0


def request_of(coordinator: SessionCoordinator[Any], visitor: Visitor | None = None) -> RequestSession:
    """A request's way to its session, with no application."""
    header = "" if visitor is None else f"{COOKIE}={visitor.token}"
    return RequestSession(coordinator, SessionCookie(), header, shared=False, timeout=0)


def test_several_threads_of_one_request(coordinator: SessionCoordinator[Any]) -> None:
    """Find, or make, one session, and have it both; what the last one knows is kept."""
    checkout = coordinator.checkout

    def work(session: WebSession) -> object:
        found, asked = [], threading.Event()

        def ask() -> None:
            asked.set()
            found.append(dict(session))
            session["other"] = True

        def checkout_slowly(session_id: str, **options: Any) -> Any:
            thread.start()
            assert asked.wait(WAIT)
            return checkout(session_id, **options)

        thread = threading.Thread(target=ask)
        with patch.object(coordinator, "checkout", checkout_slowly):
            found.append(dict(session))
        thread.join(WAIT)
        return found, session.copy()

    visitor = Visitor(SessionMiddleware(Site(index=count, work=work), coordinator))
    visitor.get()
    assert visitor.text("/work") == "([{'n': 1}, {'n': 1}], {'n': 1, 'other': True})"
    # Two threads that both found no session.
    request = request_of(coordinator)
    assert request.look() is None
    request.create({"a": 1})
    request.create({"b": 2})
    made = request.look()
    assert made is not None
    assert made.data == {"a": 1, "b": 2}
    request.headers_sent = True
    request.finish()
    assert len(coordinator) == 2
    assert coordinator.stats().checked_out == 0


def test_a_thread_of_the_request_that_comes_second(coordinator: SessionCoordinator[Any]) -> None:
    """Has nothing to rotate or to end any more."""
    visitor = Visitor(SessionMiddleware(SITE, coordinator))
    visitor.get()
    request = request_of(coordinator, visitor)
    assert request.look() is not None
    for _ in range(2):
        request.end()
        request.rotate()
    assert request.look() is None
    assert (len(coordinator), coordinator.stats().checked_out) == (0, 0)


def test_a_look_that_comes_when_the_request_is_over(coordinator: SessionCoordinator[Any]) -> None:
    """A thread that the request has left behind finds nothing, and holds nothing; finishing again does nothing."""
    visitor = Visitor(SessionMiddleware(SITE, coordinator))
    visitor.get()
    request = request_of(coordinator, visitor)
    session = WebSession(request)
    for _ in range(2):
        request.finish()
    assert dict(session) == {}
    assert session.id is None
    assert coordinator.stats().checked_out == 0


def test_a_session_that_cannot_be_given_back(session_coordinator: CoordinatorFactory, store: WatchedStore) -> None:
    """The caller is told, once; here, the session is free."""
    coordinator = session_coordinator(CONFIG, store=store)
    visitor = Visitor(SessionMiddleware(SITE, coordinator))
    visitor.get()
    request = request_of(coordinator, visitor)
    request.look()
    store.failing.add("*")
    with pytest.raises(StoreError):
        request.leave()
    assert request.look() is None
    assert dict(WebSession(request)) == {}
    assert coordinator.stats().checked_out == 0
    store.failing.clear()
    assert visitor.text() == "2"


@pytest.mark.parametrize("token_sent", [True, False])
def test_a_request_that_is_dropped(token_sent: bool, coordinator: SessionCoordinator[Any]) -> None:
    """Gives its session back when it is collected, without `finish`. A new session is there to expire then, also where
    its token was not sent."""
    request = request_of(coordinator)
    request.look()
    request.create({"a": 1})
    request.headers_sent = token_sent
    assert coordinator.stats().checked_out == 1
    del request
    gc.collect()
    wait_until(lambda: coordinator.stats().checked_out == 0)
    assert [session.data for session in coordinator.list_sessions()] == [{"a": 1}]


def test_log_out_while_another_request_runs(session_coordinator: CoordinatorFactory) -> None:
    """It goes on to its end, what it writes is gone with the session, which is closed then, and once."""
    closings = Closings()
    coordinator = session_coordinator(CONFIG, on_close=closings)
    meeting = Meeting(coordinator, WebSession.close, shared=True)
    running = Visitor(meeting.visitor.app)
    running.cookies.update(meeting.visitor.cookies)
    with in_thread(running.text, "/wait") as waiting:
        assert meeting.arrived.wait(WAIT)
        with in_thread(meeting.visitor.get, "/act") as acting:
            assert acting.result(WAIT).status == "200 OK"
        assert not closings
        assert running.text("/look") == "{}"
        meeting.go_on.set()
        assert waiting.result(WAIT) == "['begun', 'ended', 'n']"
    assert [cause for _, cause in closings] == [RemovalCause.CLOSED]
    assert running.text("/look") == "{}"
