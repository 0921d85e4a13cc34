"""The coordinator against a naive model: a dict and a full scan, with time that moves in both directions."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    rule,
    run_state_machine_as_test,
)

from sessionkit import (
    Checkout,
    CoordinatorConfig,
    EventKind,
    ManagedSession,
    RemovalCause,
    SessionCoordinator,
    SessionExistsError,
    SessionExpiredError,
    SessionLimitError,
)
from sessionkit.testing import ManualClock

from ..helpers.support import examples, system_time

NAMES = st.sampled_from([None, None, "a", "b", "raises"])
LATER = st.sampled_from([0, 0, 11])
TIMEOUTS = st.sampled_from([None, None, 5, 20])


@dataclass(eq=False)
class NaiveSession:
    """All that is known of one session, with nothing kept in order."""

    session: ManagedSession[Any]
    created: float
    last: float
    timeout: float
    holds: int = 0
    messages: int = 0
    ended: RemovalCause | None = None
    finalized: bool = False


class CoordinatorMachine(RuleBasedStateMachine):
    """Every rule does one thing to both, and says what the naive model expects of it."""

    known = Bundle("known")
    held = Bundle("held")

    @initialize(
        limit=st.sampled_from([1, 3, None]),
        lifetime=st.sampled_from([None, 30]),
        on_full=st.sampled_from(["reject", "evict"]),
        has_factory=st.booleans(),
        switches=st.booleans(),
    )
    def start(self, limit: int | None, lifetime: int | None, on_full: Any, has_factory: bool, switches: bool) -> None:
        self.switches = switches
        self.config = CoordinatorConfig(
            session_timeout=10, cleanup_interval=1, max_active_sessions=limit, max_lifetime=lifetime, on_full=on_full
        )
        self.clock = ManualClock()
        self.now = 0.0
        self.sessions: dict[str, NaiveSession] = {}
        self.active: NaiveSession | None = None
        self.closed: list[tuple[str, RemovalCause]] = []
        self.factory_raises = False
        self.coordinator: SessionCoordinator[Any] = SessionCoordinator(
            self.config,
            clock=self.given_clock(),
            resource_factory=self.make_resource if has_factory else None,
            on_close=self.note_close,
        )
        self.has_factory = has_factory
        self.channel = self.coordinator.subscribe(1000)
        self.note_the_time()

    def given_clock(self) -> ManualClock | None:
        return self.clock

    def note_the_time(self) -> None:
        # A look that reads the clock and puts nothing right: a time that nobody saw has not been.
        assert "nobody" not in self.coordinator

    def make_resource(self, session: ManagedSession[Any]) -> str:
        if self.factory_raises:
            raise OSError("no resource")
        return session.id

    def note_close(self, session: ManagedSession[Any], cause: RemovalCause) -> None:
        self.closed.append((session.id, cause))
        assert self.sessions[session.id].holds == 0
        if session.name == "raises":
            raise OSError("a close callback that fails")

    # ---- The naive model

    def due(self, naive: NaiveSession) -> RemovalCause | None:
        ends = []
        if not naive.holds:
            ends.append((naive.last + naive.timeout, 0, RemovalCause.IDLE))
        if self.config.max_lifetime is not None:
            ends.append((naive.created + self.config.max_lifetime, 1, RemovalCause.LIFETIME))
        return next((cause for end, _, cause in sorted(ends) if self.now > end), None)

    def live(self) -> list[NaiveSession]:
        return [naive for naive in self.sessions.values() if not naive.ended and not self.due(naive)]

    def settle_active(self) -> None:
        if self.active is not None and (self.active.ended or self.due(self.active)):
            self.active = None

    def expect_closed(self, *must: NaiveSession, may: bool = False) -> None:
        """Check what on_close was called for since the last check, and that the channel tells the same."""
        due = {n.session.id: self.due(n) for n in self.sessions.values() if not n.ended and not n.holds and self.due(n)}
        expected = {naive.session.id: naive.ended or due[naive.session.id] for naive in must}
        for session_id, cause in self.closed:
            wanted = expected.pop(session_id, None) or (due.get(session_id) if may else None)
            assert cause is wanted, (session_id, cause, wanted)
            self.sessions[session_id].ended = cause
            assert not self.sessions[session_id].finalized
            self.sessions[session_id].finalized = True
        assert not expected
        removed = [
            (event.session_id, event.cause)
            for event in iter(lambda: self.channel.get(timeout=0), None)
            if event.kind is EventKind.REMOVED
        ]
        assert removed == self.closed
        self.closed.clear()

    def expect_gone(self, naive: NaiveSession, call: Any) -> None:
        with pytest.raises(SessionExpiredError) as caught:
            call(naive.session.id)
        assert caught.value.cause is (naive.ended or self.due(naive))
        self.expect_closed()

    def is_live(self, naive: NaiveSession) -> bool:
        self.settle_active()
        return naive in self.live()

    # ---- What happens

    @rule(seconds=st.sampled_from([1, 4, 5, 6, 10, 11, 31]))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(seconds)
        self.now = max(self.now, self.clock())
        self.note_the_time()

    @rule(seconds=st.sampled_from([1, 20]))
    def the_clock_goes_back(self, seconds: int) -> None:
        self.clock.advance(-seconds)

    @rule(target=known, later=LATER, name=NAMES, timeout=TIMEOUTS, factory_raises=st.booleans())
    def create(self, later: int, name: str | None, timeout: int | None, factory_raises: bool) -> Any:
        if later:
            # No step of its own: few random lives would come to what only a creation after a long time meets.
            self.time_passes(later)
        self.settle_active()
        live = self.live()
        self.factory_raises = factory_raises
        taken = name is not None and any(naive.session.name == name for naive in live)
        # One that has ended and is held takes its place still.
        places = [naive for naive in self.sessions.values() if naive in live or naive.holds]
        full = self.config.max_active_sessions is not None and len(places) >= self.config.max_active_sessions
        resting = [naive for naive in live if not naive.holds]
        evicts = full and not taken and self.config.on_full == "evict" and bool(resting)
        expected: type[Exception] | None = None
        if taken:
            expected = SessionExistsError
        elif full and not evicts:
            expected = SessionLimitError
        elif factory_raises and self.has_factory:
            expected = OSError
        session = None
        with pytest.raises(expected) if expected else nullcontext():
            session = self.coordinator.create_session(name, session_timeout=timeout)
        if evicts:
            victim = self.sessions[next(i for i, cause in self.closed if cause is RemovalCause.CAPACITY)]
            assert victim in resting
            assert victim.last == min(naive.last for naive in resting)
            victim.ended = RemovalCause.CAPACITY
            self.expect_closed(victim, may=True)
            self.settle_active()
        else:
            self.expect_closed(may=True)
        if session is None:
            return None
        assert session.resource == (session.id if self.has_factory else None)
        naive = NaiveSession(session, self.now, self.now, timeout or self.config.session_timeout)
        self.sessions[session.id] = naive
        return naive

    @rule(naive=known, way=st.sampled_from(["touch_session", "touch", "record_message", "switch"]))
    def be_active(self, naive: NaiveSession | None, way: str) -> None:
        if naive is None or (way == "switch" and not self.switches):
            return
        calls = {
            "touch_session": self.coordinator.touch_session,
            "touch": lambda _: naive.session.touch(),
            "record_message": lambda _: naive.session.record_message(),
            "switch": self.coordinator.switch_session,
        }
        through_the_session = way in ("touch", "record_message")
        # A session that has ended and is checked out may be used until it is given back.
        if not self.is_live(naive) and not (through_the_session and naive.holds):
            self.expect_gone(naive, calls[way])
            return
        calls[way](naive.session.id)
        naive.last = self.now
        naive.messages += way == "record_message"
        if way == "switch":
            self.active = naive
        self.expect_closed()

    @rule(naive=known, timeout=TIMEOUTS.filter(bool))
    def set_timeout(self, naive: NaiveSession | None, timeout: int) -> None:
        if naive is None:
            return
        if not self.is_live(naive) and not naive.holds:
            self.expect_gone(naive, lambda _: naive.session.set_timeout(timeout))
            return
        naive.session.set_timeout(timeout)
        naive.timeout = timeout
        assert naive.session.session_timeout == timeout
        self.expect_closed()
        self.settle_active()

    @rule()
    def everybody_moves_on(self) -> None:
        """Whatever the order of sessions says, it is not so any more."""
        self.time_passes(1)
        for naive in self.live():
            self.be_active(naive, "touch")

    @rule(naive=known)
    def look(self, naive: NaiveSession | None) -> None:
        if naive is None:
            return
        assert (naive.session.id in self.coordinator) is self.is_live(naive)
        if self.is_live(naive):
            assert self.coordinator.get_session(naive.session.id) is naive.session
        else:
            self.expect_gone(naive, self.coordinator.get_session)

    @rule(target=held, naive=known, exclusive=st.booleans())
    def check_out(self, naive: NaiveSession | None, exclusive: bool) -> Any:
        if naive is None:
            return None
        checkout = self.coordinator.checkout(naive.session.id, exclusive=exclusive, timeout=0)
        if not self.is_live(naive):
            self.expect_gone(naive, lambda _: checkout.__enter__())
            return None
        assert checkout.__enter__() is naive.session
        naive.holds += 1
        naive.last = self.now
        self.expect_closed()
        return naive, checkout

    @rule(taken=consumes(held))
    def give_back(self, taken: tuple[NaiveSession, Checkout[Any]] | None) -> None:
        if taken is None:
            return
        naive, checkout = taken
        self.settle_active()
        cause = naive.ended or self.due(naive)
        naive.holds -= 1
        naive.last = self.now
        checkout.__exit__()
        if naive.holds or cause is None:
            self.expect_closed()
        else:
            naive.ended = cause
            self.expect_closed(naive)
            self.settle_active()

    @rule(naive=known)
    def rotate(self, naive: NaiveSession | None) -> None:
        if naive is None:
            return
        if not self.is_live(naive):
            self.expect_gone(naive, self.coordinator.rotate_session)
            return
        former_id = naive.session.id
        assert self.coordinator.rotate_session(former_id, timeout=0) is naive.session
        naive.last = self.now
        self.sessions[naive.session.id] = self.sessions.pop(former_id)
        assert former_id not in self.coordinator
        self.expect_closed()

    @rule(naive=known)
    def close(self, naive: NaiveSession | None) -> None:
        if naive is None:
            return
        if not self.is_live(naive):
            self.expect_gone(naive, self.coordinator.close_session)
            return
        self.coordinator.close_session(naive.session.id)
        naive.ended = RemovalCause.CLOSED
        self.expect_closed(*() if naive.holds else (naive,))
        self.settle_active()

    @rule(max_age=st.sampled_from([None, None, 3, 100]), dry_run=st.booleans())
    def clean_up(self, max_age: int | None, dry_run: bool) -> None:
        self.settle_active()
        present = [naive for naive in self.sessions.values() if not naive.ended]
        old = [n for n in self.live() if max_age is not None and not n.holds and self.now - n.last > max_age]
        removable = [naive for naive in present if self.due(naive) and not naive.holds] + old
        assert self.coordinator.cleanup_inactive_sessions(max_age, dry_run=dry_run) == len(removable)
        if dry_run:
            self.expect_closed()
            return
        for naive in present:
            if self.due(naive):
                naive.ended = self.due(naive)
        for naive in old:
            naive.ended = RemovalCause.IDLE
        self.expect_closed(*removable)
        self.settle_active()

    # ---- What always holds

    # No invariant: most of these looks put the order of sessions right, which the next call then could not get wrong.
    @rule()
    def compare(self) -> None:
        self.settle_active()
        live = self.live()
        listed = self.coordinator.list_sessions()
        stats = self.coordinator.stats()
        assert len(self.coordinator) == stats.live == len(live)
        assert set(listed) == {naive.session for naive in live}
        activity = [session.metadata.last_active for session in listed]
        assert activity == sorted(activity)
        assert self.coordinator.active_session is (self.active.session if self.active else None)
        assert stats.checked_out == sum(naive.holds > 0 for naive in self.sessions.values())
        assert {checkout.session_id for checkout in self.coordinator.checkouts()} == {
            naive.session.id for naive in self.sessions.values() if naive.holds
        }
        assert stats.created == len(self.sessions)
        assert sum(stats.removed.values()) == sum(naive.finalized for naive in self.sessions.values())
        failing = [naive for naive in self.sessions.values() if naive.finalized and naive.session.name == "raises"]
        assert stats.close_failures == len(failing)
        for naive in self.sessions.values():
            metadata = naive.session.metadata
            assert (metadata.created_at, metadata.message_count) == (naive.created, naive.messages)
            assert metadata.last_active == naive.last

    def teardown(self) -> None:
        if not hasattr(self, "coordinator"):
            return
        self.compare()
        held = [naive for naive in self.sessions.values() if naive.holds]
        self.coordinator.close()
        self.closed.clear()
        stats = self.coordinator.stats()
        assert stats.live == 0
        assert sum(stats.removed.values()) == len(self.sessions) - len(held)
        assert self.channel.closed


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.filterwarnings("ignore:cleanup_interval")
def test_the_coordinator_does_what_a_dict_and_a_full_scan_would_do(caplog: pytest.LogCaptureFixture) -> None:
    """Random lives of random sessions: both agree on who is live, who is active, who left, when and why."""
    with caplog.at_level("CRITICAL", logger="sessionkit"):
        run_state_machine_as_test(
            CoordinatorMachine, settings=settings(max_examples=examples(100), stateful_step_count=40)
        )


class MachineWithoutLock(CoordinatorMachine):
    """The same on the system's clock: looks and touches go without the lock."""

    def given_clock(self) -> None:
        self.stack = ExitStack()
        self.stack.enter_context(system_time(self.clock))

    @rule()
    def the_clock_goes_back(self) -> None:
        """The system's clock does not."""

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "stack"):
            self.stack.close()


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.filterwarnings("ignore:cleanup_interval")
def test_the_paths_without_the_lock_do_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """The same random lives, on the paths that a coordinator with the system's clock takes."""
    with caplog.at_level("CRITICAL", logger="sessionkit"):
        run_state_machine_as_test(
            MachineWithoutLock, settings=settings(max_examples=examples(100), stateful_step_count=40)
        )
