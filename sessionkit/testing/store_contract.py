"""The store contract as tests: to check a store of your own, subclass `StoreContract` and let pytest run it."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import inf
from typing import Any

from .. import SessionBusyError, SessionConflictError, SessionExistsError, SessionNotFoundError, StoreError
from ..stores import Changes, Found, Known, SessionRecord, Store, Touch

NOW = 1_800_000_000.0
"""The instant at which the records of the contract's tests are created: in 2027."""

KNOWN = Known(NOW, 60.0)
"""What is known of a record that is as it was created."""

THREADS = 8
SECONDS = 30.0
"""How long threads may take to meet before a test fails."""


def record(session_id: str = "s-1", **changes: Any) -> SessionRecord:
    """A record with a session timeout of 60 seconds that was created, and active last, at `NOW`."""
    return SessionRecord(session_id, None, '{"lang":"en"}', "active", NOW, NOW, 0, 60.0, None)._replace(**changes)


class StoreContract(ABC):
    """What every store must do, one test for each promise of `sessionkit.stores.Store`.

    In a test file of yours: `class TestMyStore(StoreContract)`, with a `new_store` that gives an empty store each time.
    The stores are closed when the test ends.
    """

    @abstractmethod
    def new_store(self) -> Store:
        """An empty store."""

    @contextmanager
    def store(self) -> Iterator[tuple[Store, str]]:
        """A store, and an instance that joined it and promised a lag of 10 seconds."""
        store = self.new_store()
        try:
            yield store, store.join(10.0, "instance")
        finally:
            store.close()

    def test_a_record_comes_back_as_it_was_created(self) -> None:
        """Every field, to the last bit of a float and with any text in its data."""
        made = record(
            name="a name",
            data='{"text":"\\u0000 \u20ac \U0001f40d \'\\"","list":[1,2.5,null]}',
            created_at=NOW + 1e-6,
            last_active=NOW + 2e-6,
            message_count=3,
            session_timeout=0.1,
            max_lifetime=1e9 / 3,
        )
        with self.store() as (store, instance):
            store.create(made, instance)
            assert _record(store) == made

    def test_absent_is_none(self) -> None:
        """Nothing is found of what was never created, or was deleted."""
        with self.store() as (store, instance):
            for _ in range(2):
                assert store.load("s-1") is None
                assert store.find("a") is None
                assert store.attach("s-1", instance) is None
                assert store.attach("s-1", instance, lease=True) is None
                store.create(record(name="a"), instance)
                assert _record(store) == record(name="a")
                store.delete({"s-1": None})

    def test_creating_only_inserts(self) -> None:
        """An id or name that is taken raises, names the record that has it, and changes nothing; expired ones too."""
        with self.store() as (store, instance):
            store.create(record(name="a", session_timeout=0.001), instance)
            for second in (record(name="b"), record("s-2", name="a"), record(name="a", data="{}")):
                error = _raised(SessionExistsError, lambda second=second: store.create(second, instance))  # type: ignore[misc]  # a default binds it now
                assert error.session_id == "s-1"
            assert _record(store) == record(name="a", session_timeout=0.001)
            assert store.load("s-2") is None
            store.create(record("s-2"), instance)
            store.create(record("s-3"), instance)

    def test_a_name_is_found(self) -> None:
        """By name, the id; the name is free again once its record is gone."""
        with self.store() as (store, instance):
            store.create(record(name="a"), instance)
            assert store.find("a") == "s-1"
            store.delete({"s-1": None})
            store.create(record("s-2", name="a"), instance)
            assert store.find("a") == "s-2"

    def test_of_many_that_create_the_same_one_succeeds(self) -> None:
        """The others are told that it exists."""
        with self.store() as (store, instance):
            outcomes = _at_once(lambda: _outcome(lambda: store.create(record(name="a"), instance)))
            assert sorted(outcomes) == ["SessionExistsError"] * (THREADS - 1) + ["done"]

    def test_saving_sets_the_data_and_notes_the_touch(self) -> None:
        """Data and state are replaced, messages added, the last activity raised, and the version is 1 more."""
        with self.store() as (store, instance):
            store.create(record(message_count=2), instance)
            assert store.save("s-1", Changes(1, "{}", Touch(NOW + 5, 3, "processing"))) == 2
            assert store.save("s-1", Changes(2, '{"a":1}', Touch(NOW + 1))) == 3
            assert _record(store) == record(
                data='{"a":1}', state="processing", last_active=NOW + 5, message_count=5, version=3
            )

    def test_saving_without_data_notes_the_touch(self) -> None:
        """Whatever the version, which stays; an absent record raises."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            assert store.save("s-1", Changes(1, None, Touch(NOW + 5, 3, "processing"))) == 1
            assert store.save("s-1", Changes(7, None, Touch(NOW + 1, 1))) == 7
            assert _record(store) == record(state="processing", last_active=NOW + 5, message_count=4)
            error = _raised(SessionNotFoundError, lambda: store.save("gone", Changes(1, None, Touch(NOW))))
            assert error.session_id == "gone"

    def test_saving_compares_the_version(self) -> None:
        """A save of another version raises, and changes nothing."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            store.save("s-1", Changes(1, '{"by":"first"}', Touch(NOW)))
            for version in (0, 1, 3):
                _raised(
                    SessionConflictError,
                    lambda version=version: store.save("s-1", Changes(version, "{}", Touch(NOW + 9, 1))),  # type: ignore[misc]  # a default binds it now
                )
            assert _record(store) == record(data='{"by":"first"}', version=2)

    def test_of_many_that_save_the_same_version_one_succeeds(self) -> None:
        """The others are told of the conflict, so that no update is lost."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            outcomes = _at_once(lambda: _outcome(lambda: store.save("s-1", Changes(1, "{}", Touch(NOW, 1)))))
            assert sorted(outcomes) == ["SessionConflictError"] * (THREADS - 1) + ["done"]
            assert _record(store).message_count == 1

    def test_releasing_saves_in_the_same_step(self) -> None:
        """Data if there are any, the touch, and the lease in one step; without new data the version stays."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            store.attach("s-1", instance, lease=True)
            assert store.release("s-1", instance, Changes(1, '{"a":1}', Touch(NOW + 5, 1))) == 2
            assert _found(store.load("s-1")).lag == 10.0
            store.attach("s-1", instance, lease=True)
            assert store.release("s-1", instance, Changes(2, None, Touch(NOW + 7, 1, "processing"))) == 2
            assert _found(store.load("s-1")).lag == 10.0
            changed = record(data='{"a":1}', last_active=NOW + 7, message_count=2, state="processing", version=2)
            assert _record(store) == changed

    def test_releasing_ends_the_lease_also_if_saving_fails(self) -> None:
        """Another version, or a record that is gone, raises, and no instance has a lease any more."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            store.save("s-1", Changes(1, '{"by":"other"}', Touch(NOW)))
            store.attach("s-1", instance, lease=True)
            _raised(SessionConflictError, lambda: store.release("s-1", instance, Changes(1, "{}", Touch(NOW + 1, 1))))
            assert store.load("s-1") == Found(record(data='{"by":"other"}', version=2), 10.0, ("instance",))
            store.delete({"s-1": None})
            for data in ("{}", None):
                error = _raised(
                    SessionNotFoundError,
                    lambda data=data: store.release("s-1", instance, Changes(2, data, Touch(NOW))),  # type: ignore[misc]  # a default binds it now
                )
                assert error.session_id == "s-1"

    def test_a_lease_makes_other_copies_stale(self) -> None:
        """Each instance hears it of its own copy, until it has released a lease of its own; attaching is not enough."""
        with self.store() as (store, instance):
            other = store.join(5.0, "other")
            store.create(record(), instance)
            store.attach("s-1", other)
            store.release("s-1", other)
            assert not _found(store.load("s-1", instance)).stale
            store.attach("s-1", other, lease=True)
            store.release("s-1", other, Changes(1, None, Touch(NOW)))
            assert _found(store.load("s-1", instance)).stale
            assert _found(store.attach("s-1", instance)).stale
            assert not _found(store.load("s-1", other)).stale
            assert not _found(store.load("s-1")).stale
            # Without a lease, there is nothing to release.
            store.release("s-1", instance)
            store.release("s-1", instance, Changes(1, None, Touch(NOW)))
            assert _found(store.attach("s-1", instance, lease=True)).stale
            store.release("s-1", instance)
            assert not _found(store.load("s-1", instance)).stale
            assert _found(store.load("s-1", other)).stale
            store.detach(["s-1"], other)
            assert not _found(store.attach("s-1", other)).stale

    def test_copies_are_stale_once_the_lease_has_ended(self) -> None:
        """Also those of instances that attached meanwhile, and however the lease ends: no more is done under it."""
        with self.store() as (store, instance):
            other, third = (store.join(5.0, name) for name in ("other", "third"))
            endings: dict[str, Callable[[], object]] = {
                "s-1": lambda: store.release("s-1", other),
                "s-2": lambda: store.detach(["s-2"], other),
                "s-3": lambda: store.leave(other),
            }
            for session_id, end in endings.items():
                store.create(record(session_id), instance)
                store.attach(session_id, other, lease=True)
                store.attach(session_id, third)
                for holder in (instance, third):
                    assert not _found(store.load(session_id, holder)).stale
                    assert not _found(store.attach(session_id, holder)).stale
                end()
                for holder in (instance, third):
                    assert _found(store.load(session_id, holder)).stale

    def test_a_record_gets_another_id(self) -> None:
        """All else stays, the old id is free, and the instance that renamed it is attached, with the lease it had."""
        with self.store() as (store, instance):
            made = record(name="a", message_count=3, max_lifetime=1e6)
            store.create(made, instance)
            other = store.join(5.0, "other")
            store.attach("s-1", other)
            store.attach("s-1", instance, lease=True)
            assert store.rename("s-1", "s-2", instance)
            assert store.load("s-1") is None
            assert store.find("a") == "s-2"
            assert store.load("s-2", instance) == Found(made._replace(id="s-2"), 0.0)
            assert _found(store.load("s-2", other)).lag == inf
            _raised(SessionBusyError, lambda: store.attach("s-2", other, lease=True))
            store.create(record("s-1"), other)
            assert _found(store.load("s-1", instance)).lag == 5.0
            store.release("s-2", instance)
            assert _found(store.load("s-2", other)).lag == 10.0

    def test_an_instance_that_renames_is_attached(self) -> None:
        """Also if it was not before; it has no lease then."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            other = store.join(5.0, "other")
            assert store.rename("s-1", "s-2", other)
            assert _found(store.load("s-2", instance)).lag == 5.0

    def test_renaming_to_a_taken_id(self) -> None:
        """A new id that is taken raises, names the record that has it, and changes nothing; its own id too."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            store.create(record("s-2", data="{}"), instance)
            for taken in ("s-2", "s-1"):
                error = _raised(SessionExistsError, lambda taken=taken: store.rename("s-1", taken, instance))  # type: ignore[misc]  # a default binds it now
                assert error.session_id == taken
            assert _record(store) == record()
            assert _found(store.load("s-2")).record == record("s-2", data="{}")

    def test_renaming_what_is_absent_or_on_lease_elsewhere(self) -> None:
        """An absent record is not made, and one that another instance has a lease on keeps its id."""
        with self.store() as (store, instance):
            assert not store.rename("s-1", "s-2", instance)
            assert store.load("s-2") is None
            store.create(record(), instance)
            other = store.join(5.0, "other")
            store.attach("s-1", other, lease=True)
            _raised(SessionBusyError, lambda: store.rename("s-1", "s-2", instance))
            assert _record(store) == record()
            store.leave(other)
            assert store.rename("s-1", "s-2", instance)

    def test_what_is_gone_stays_gone(self) -> None:
        """Neither a save nor a touch nor a lease brings a deleted record back."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            store.attach("s-1", instance, lease=True)
            store.delete({"s-1": None})
            error = _raised(SessionNotFoundError, lambda: store.save("s-1", Changes(1, "{}", Touch(NOW))))
            assert error.session_id == "s-1"
            assert store.touch({"s-1": Touch(NOW)}) == {"s-1"}
            store.release("s-1", instance)
            store.detach(["s-1"], instance)
            assert store.attach("s-1", instance, lease=True) is None
            assert store.page(None, 10) == []

    def test_touching_many(self) -> None:
        """Each gets its own; the last activity is never lowered, the version stays, and the absent are named."""
        with self.store() as (store, instance):
            for session_id in ("s-1", "s-2", "s-3"):
                store.create(record(session_id), instance)
            touches = {"s-1": Touch(NOW + 7, 2), "s-2": Touch(NOW - 7, 0, "processing"), "gone": Touch(NOW)}
            assert store.touch(touches) == {"gone"}
            assert _record(store) == record(last_active=NOW + 7, message_count=2)
            assert _record(store, "s-2") == record("s-2", state="processing")
            assert _record(store, "s-3") == record("s-3")
            assert store.touch({}) == set()

    def test_another_timeout(self) -> None:
        """It comes with a touch, a save or a release, leaves the rest as it was, and the record expires by it."""
        ways: dict[str, Callable[[Touch], object]] = {
            "s-1": lambda touch: store.touch({"s-1": touch, "gone": touch}),
            "s-2": lambda touch: store.save("s-2", Changes(1, None, touch)),
            "s-3": lambda touch: store.save("s-3", Changes(1, '{"a":1}', touch)),
            "s-4": lambda touch: store.release("s-4", instance, Changes(1, None, touch)),
        }
        for timeout, ends in ((0.1, NOW + 0.1), (1e6 / 3, NOW + 1e6 / 3)):
            with self.store() as (store, instance):
                for session_id, write in ways.items():
                    store.create(record(session_id), instance)
                    write(Touch(NOW - 1, session_timeout=timeout))
                    assert _record(store, session_id).session_timeout == timeout
                store.touch(dict.fromkeys(ways, Touch(NOW - 1)))
                records = {session_id: _record(store, session_id) for session_id in ways}
                assert records["s-1"] == record(session_timeout=timeout)
                store.detach(ways, instance)
                assert store.count_expired(ends) == store.count_expired(ends, max_age=1e7) == 0
                assert store.count_expired(ends + 0.001) == 4
                assert store.count_expired(NOW + 30, max_age=20.0) == 4
                assert sorted(store.delete_expired(ends + 0.001, 10)) == sorted(records.values())

    def test_what_was_given_another_timeout_elsewhere_is_kept(self) -> None:
        """Unless it has expired by that: only its last activity is as the caller knows it."""
        with self.store() as (store, instance):
            for session_id in ("longer", "shorter", "unknown"):
                store.create(record(session_id), instance)
                store.touch({session_id: Touch(NOW, session_timeout=5.0 if session_id == "shorter" else 100.0)})
            known = {"longer": KNOWN, "shorter": KNOWN}
            assert store.delete(known, instance, NOW + 5) == set()
            assert store.delete(known, instance, NOW + 70) == {"shorter"}
            assert store.delete({"longer": Known(NOW, 100.0), "unknown": Known(NOW)}, instance, NOW) == {
                "longer",
                "unknown",
            }

    def test_deleting_says_what_was_there(self) -> None:
        """Deleting again gives nothing; the others stay."""
        with self.store() as (store, instance):
            store.create(record("s-1"), instance)
            store.create(record("s-2"), instance)
            assert store.delete({"s-1": None, "gone": None}) == {"s-1"}
            assert store.delete({"s-1": None}) == set()
            assert [found.id for found in store.page(None, 10)] == ["s-2"]

    def test_of_many_that_delete_the_same_one_is_told(self) -> None:
        """However many records and by whichever way, each is given to exactly one."""
        with self.store() as (store, instance):
            ids = [f"s-{number}" for number in range(100)]
            for session_id in ids:
                store.create(record(session_id), instance)
            store.detach(ids, instance)

            def delete_some() -> set[str]:
                return store.delete(dict.fromkeys(ids[:30])) | {found.id for found in store.delete_expired(NOW + 61, 7)}

            given = [session_id for deleted in _at_once(delete_some) for session_id in deleted]
            while more := store.delete_expired(NOW + 61, 7):
                given += [found.id for found in more]
            assert sorted(given) == sorted(ids)

    def test_expired_is_idle_for_more_than_the_timeout_or_too_old(self) -> None:
        """At the very limit a record is kept; past it, by either limit, it is deleted and given as it was."""
        old = record("old", created_at=NOW - 100, last_active=NOW + 50, max_lifetime=150.0)
        with self.store() as (store, instance):
            for made in (record("idle"), record("patient", session_timeout=1000.0), old):
                store.create(made, instance)
            store.detach(["idle", "patient", "old"], instance)
            assert store.delete_expired(NOW + 50, 10) == []
            assert store.delete_expired(NOW + 50.001, 10) == [old]
            assert store.delete_expired(NOW + 60, 10) == []
            assert store.count_expired(NOW + 60.001) == 1
            assert store.delete_expired(NOW + 60.001, 10) == [record("idle")]
            assert [found.id for found in store.page(None, 10)] == ["patient"]

    def test_a_limit_and_an_age(self) -> None:
        """No more than the limit at a time; an age that is less than the timeout takes its place."""
        with self.store() as (store, instance):
            for number in range(5):
                store.create(record(f"s-{number}", last_active=NOW + number), instance)
            store.detach([f"s-{number}" for number in range(5)], instance)
            assert store.count_expired(NOW + 34, max_age=30.0) == 4
            assert store.count_expired(NOW + 34, max_age=300.0) == 0
            given = [len(store.delete_expired(NOW + 34, 3, max_age=30.0)) for _ in range(3)]
            assert given == [3, 1, 0]
            assert store.delete_expired(NOW + 600, 10, max_age=300.0) == [record("s-4", last_active=NOW + 4)]

    def test_what_an_instance_has_in_memory_is_not_deleted_as_expired(self) -> None:
        """However long ago it was active: only the attached instance knows what it has not written yet."""
        with self.store() as (store, instance):
            other = store.join(25.0, "other")
            store.create(record(), instance)
            store.attach("s-1", other)
            for leaver in (instance, other):
                assert store.delete_expired(NOW + 1e6, 10) == []
                assert store.count_expired(NOW + 1e6, max_age=1.0) == 0
                store.detach(["s-1"], leaver)
            assert store.count_expired(NOW + 1e6, max_age=1.0) == 1
            assert store.delete_expired(NOW + 1e6, 10) == [record()]

    def test_the_lag_is_that_of_the_others(self) -> None:
        """The longest write interval of the other attached instances; a new interval, and leaving, change it."""
        with self.store() as (store, instance):
            other = store.join(25.0, "other")
            store.create(record(), instance)
            assert store.load("s-1") == Found(record(), 10.0, ("instance",))
            assert store.load("s-1", instance) == Found(record(), 0.0)
            assert store.attach("s-1", other) == Found(record(), 10.0, ("instance",))
            assert store.attach("s-1", instance) == Found(record(), 25.0, ("other",))
            assert store.load("s-1") == Found(record(), 25.0, ("instance", "other"))
            store.set_write_interval(other, inf)
            assert store.load("s-1", instance) == Found(record(), inf, ("other",))
            store.set_write_interval(other, 5.0)
            assert store.load("s-1", instance) == Found(record(), 5.0, ("other",))
            store.leave(other)
            store.leave(other)
            assert store.load("s-1", instance) == Found(record(), 0.0)

    def test_a_lease_excludes(self) -> None:
        """No other instance has one at the same time. An instance may take its own again, or another's once it is
        released; without a lease, any instance may attach.
        """
        with self.store() as (store, instance):
            other = store.join(10.0, "other")
            store.create(record(), instance)
            for _ in range(2):
                assert store.attach("s-1", instance, lease=True) is not None
            _raised(SessionBusyError, lambda: store.attach("s-1", other, lease=True))
            assert store.attach("s-1", other) == Found(record(), inf, ("instance",))
            assert store.attach("s-1", instance) is not None
            _raised(SessionBusyError, lambda: store.attach("s-1", other, lease=True))
            store.release("s-1", instance)
            store.release("s-1", instance)
            assert store.attach("s-1", other, lease=True) is not None
            _raised(SessionBusyError, lambda: store.attach("s-1", instance, lease=True))
            store.release("s-1", other)
            assert store.attach("s-1", instance, lease=True) is not None

    def test_leases_end_with_what_they_belong_to(self) -> None:
        """Detaching ends a lease, and leaving ends all of an instance's."""
        with self.store() as (store, instance):
            other = store.join(10.0, "other")
            store.create(record(), instance)
            store.attach("s-1", instance, lease=True)
            store.detach(["s-1"], instance)
            assert store.attach("s-1", other, lease=True) is not None
            store.leave(other)
            store.leave(other)
            assert store.attach("s-1", instance, lease=True) == Found(record(), 0.0)

    def test_of_many_instances_one_gets_the_lease(self) -> None:
        """The others are told that it is taken."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            instances = iter([store.join(1.0, "other") for _ in range(THREADS)])
            outcomes = _at_once(lambda: _outcome(lambda: store.attach("s-1", next(instances), lease=True)))
            assert sorted(outcomes) == ["SessionBusyError"] * (THREADS - 1) + ["done"]

    def test_the_lag_of_what_is_on_lease_elsewhere_is_infinite(self) -> None:
        """A session that is checked out is active until it is given back."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            store.attach("s-1", instance, lease=True)
            assert store.load("s-1") == Found(record(), inf, ("instance",))
            assert store.load("s-1", instance) == Found(record(), 0.0)
            store.release("s-1", instance)
            assert store.load("s-1") == Found(record(), 10.0, ("instance",))

    def test_what_no_other_instance_used_is_deleted(self) -> None:
        """If its last activity is no later than is known, whatever the time; absent ids are not given."""
        with self.store() as (store, instance):
            store.create(record(), instance)
            store.attach("s-1", instance, lease=True)
            assert store.delete({"s-1": KNOWN, "gone": KNOWN}, instance, NOW) == {"s-1"}
            assert store.delete({"s-1": KNOWN}, instance, NOW) == set()

    def test_what_was_used_elsewhere_is_kept(self) -> None:
        """If it was active later, or is in memory elsewhere; the caller's instance is detached all the same."""
        with self.store() as (store, instance):
            other = store.join(10.0, "other")
            for session_id in ("touched", "held"):
                store.create(record(session_id), instance)
            store.touch({"touched": Touch(NOW + 1)})
            store.attach("held", other)
            known = {"touched": KNOWN, "held": KNOWN}
            assert store.delete(known, instance, NOW + 61) == set()
            assert store.load("touched", other) == Found(record("touched", last_active=NOW + 1), 0.0)
            assert store.load("held", other) == Found(record("held"), 0.0)
            assert store.delete(known, instance, NOW + 61.001) == {"touched"}
            assert store.delete(known, other, NOW) == {"held"}

    def test_deleting_some_in_any_case_and_some_unless_used(self) -> None:
        """Each id by its own value; without an instance, any that is attached keeps what is not to go in any case."""
        with self.store() as (store, instance):
            other = store.join(10.0, "other")
            for session_id in ("held", "also-held", "free"):
                store.create(record(session_id), other)
            store.detach(["free"], other)
            known = {"held": None, "also-held": KNOWN, "free": Known(NOW), "gone": None}
            assert store.delete(known) == {"held", "free"}
            assert store.delete({"also-held": KNOWN}, instance) == set()
            assert [found.id for found in store.page(None, 10)] == ["also-held"]
            assert store.delete({}) == set()

    def test_pages(self) -> None:
        """In the order of ids, each once, until an empty page."""
        with self.store() as (store, instance):
            ids = ["-", "A", "_", "a", *(f"s-{number}" for number in range(5))]
            for session_id in reversed(ids):
                store.create(record(session_id), instance)
            seen: list[str] = []
            while page := store.page(seen[-1] if seen else None, 4):
                assert len(page) <= 4
                seen += [found.id for found in page]
            assert seen == ids

    def test_closing(self) -> None:
        """Closing again does nothing; any other call raises."""
        store = self.new_store()
        instance = store.join(1.0, "other")
        store.close()
        store.close()
        calls: list[Callable[[], object]] = [
            lambda: store.join(1.0, "other"),
            lambda: store.create(record(), instance),
            lambda: store.load("s-1"),
            lambda: store.save("s-1", Changes(1, "{}", Touch(NOW))),
            lambda: store.release("s-1", instance, Changes(1, None, Touch(NOW))),
            lambda: store.touch({"s-1": Touch(NOW)}),
            lambda: store.delete({"s-1": None}),
            lambda: store.page(None, 1),
        ]
        for call in calls:
            _raised(StoreError, call)


def _record(store: Store, session_id: str = "s-1") -> SessionRecord:
    found = store.load(session_id)
    assert found is not None
    return found.record


def _found(found: Found | None) -> Found:
    assert found is not None
    return found


def _raised(kind: type[Any], call: Callable[[], object]) -> Any:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def _outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except (SessionExistsError, SessionConflictError, SessionBusyError) as error:
        return type(error).__name__
    return "done"


def _at_once(call: Callable[[], Any]) -> list[Any]:
    barrier = threading.Barrier(THREADS)

    def run() -> Any:
        barrier.wait(SECONDS)
        return call()

    with ThreadPoolExecutor(THREADS) as pool:
        return [future.result(SECONDS) for future in [pool.submit(run) for _ in range(THREADS)]]
