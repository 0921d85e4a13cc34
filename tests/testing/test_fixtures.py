"""The fixtures that users get: what they do, and which tests they fail."""

from __future__ import annotations

import pytest

from sessionkit import CoordinatorConfig, SessionExpiredError
from sessionkit.testing import ManualClock
from sessionkit.testing.pytest_plugin import CoordinatorFactory


def test_the_factory_makes_coordinators_on_the_session_clock(
    session_coordinator: CoordinatorFactory, session_clock: ManualClock
) -> None:
    """Coordinators of session_coordinator tell time by session_clock, and take all options."""
    coordinator = session_coordinator(
        CoordinatorConfig(session_timeout=60, cleanup_interval=10), resource_factory=lambda session: session.id
    )
    session = coordinator.create_session()
    assert session.resource == session.id
    session_clock.advance(61)
    with pytest.raises(SessionExpiredError):
        coordinator.get_session(session.id)


def test_another_clock_may_be_given(session_coordinator: CoordinatorFactory) -> None:
    """An explicit clock goes before session_clock."""
    assert session_coordinator(clock=lambda: 42.0).create_session().metadata.created_at == 42.0


def test_a_tidy_test_passes_and_its_coordinators_are_closed(pytester: pytest.Pytester) -> None:
    """Coordinators are closed when the test ends, with SHUTDOWN for the sessions left."""
    pytester.makepyfile(
        """
        closed = []

        def test_tidy(session_coordinator):
            coordinator = session_coordinator(on_close=lambda session, cause: closed.append(cause.name))
            session = coordinator.create_session()
            with coordinator.checkout(session.id):
                pass
            with session_coordinator():
                pass

        def test_closed():
            assert closed == ["SHUTDOWN"]
        """
    )
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=2)


def test_what_is_left_fails_the_test(pytester: pytest.Pytester) -> None:
    """A session still checked out at the end, or a cleanup thread still running, is an error of that test, and the
    message says what to do; the thread is ended all the same."""
    pytester.makepyfile(
        """
        import threading

        def test_leaves_a_checkout(session_coordinator):
            coordinator = session_coordinator()
            coordinator.checkout(coordinator.create_session().id).__enter__()

        def test_leaves_a_thread(session_coordinator):
            session_coordinator().start_cleanup_task()

        def test_next():
            assert [thread for thread in threading.enumerate() if thread.name == "sessionkit-cleanup"] == []
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves_a_checkout*",
            "*was left with 1 checked out: leave every checkout's with block*",
            "*ERROR at teardown of test_leaves_a_thread*",
            "*was left with its cleanup thread running: close() it*",
        ]
    )


IMPORTS_NOTHING = """
import sys

def test_nothing_is_imported_before_a_fixture_is_used(request):
    def imported():
        return [name for name in sys.modules if name.partition(".")[0] == "sessionkit"]

    assert imported() == []
    request.getfixturevalue("session_clock")
    assert imported() != []
"""

GREEN = """
import threading
from sessionkit import CoordinatorConfig, SessionBusyError, SessionCoordinator
from sessionkit.stores import SQLiteStore

CONFIG = CoordinatorConfig(cleanup_interval=0.01)

def use(coordinator):
    session, told = coordinator.create_session(data={"n": 0}), []

    def ask():
        try:
            with coordinator.checkout(session.id, timeout=0.01):
                told.append("got it")
        except SessionBusyError:
            told.append("busy")

    def count(turn):
        with coordinator.checkout(session.id, timeout=20) as held:
            n = held.data["n"]
            turn.wait(0.001)
            held.data["n"] = n + 1

    def run(*functions):
        threads = [threading.Thread(target=function, args=arguments) for function, *arguments in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    with coordinator.subscribe() as channel:
        with coordinator.checkout(session.id):
            run((ask,))
        assert told == ["busy"]
        run(*[(count, threading.Event())] * 10)
        assert coordinator.get_session(session.id).data == {"n": 10}
        coordinator.close_session(session.id)
        assert channel.get(timeout=20).session_id == session.id

def test_by_the_fixture(session_coordinator):
    use(session_coordinator(CONFIG))

def test_with_a_store_and_a_cleanup_task(tmp_path):
    with SessionCoordinator(CONFIG, store=SQLiteStore(tmp_path / "sessions.db")) as coordinator:
        use(coordinator)
        while not coordinator.stats().cleanup.runs:
            threading.Event().wait(0.01)
"""


def test_the_plugin_imports_nothing_before_a_fixture_is_used(pytester: pytest.Pytester) -> None:
    """The pytest plugin imports nothing of sessionkit before a fixture is used."""
    pytester.makepyfile(IMPORTS_NOTHING)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "patch", ["from gevent.monkey import patch_all", "from eventlet import monkey_patch as patch_all"]
)
def test_a_conftest_may_patch_the_threads(patch: str, pytester: pytest.Pytester) -> None:
    """A conftest that has gevent or eventlet replace the threads comes in time: their greenlets exclude each other."""
    pytester.makeconftest(f"{patch}\npatch_all()")
    pytester.makepyfile(GREEN)
    pytester.runpytest_subprocess().assert_outcomes(passed=2, warnings=None)
