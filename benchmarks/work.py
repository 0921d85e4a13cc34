"""The work that is timed."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .contenders import (
    BY_HAND,
    CONTENDERS,
    TIMEOUT,
    Contender,
    FullScan,
    InOrder,
    LiveSession,
    MokaPy,
    Sessionkit,
    SessionkitByHand,
    TTLCacheUnderLock,
)
from .measure import Samples, Table, in_turn, per_call


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    sizes: tuple[int, ...]
    rounds: int
    repeats: int
    """How often is measured what takes long to set up."""
    stalled: int
    """How many sessions expire while another thread goes on touching."""
    lines: int
    """How many lines are replayed."""


FULL = Scale((1_000, 100_000, 1_000_000), 15, 3, 1_000_000, 1_000_000)
QUICK = Scale((1_000, 20_000), 3, 1, 100_000, 30_000)

CALLS = 20_000
"""Calls a round, at most."""
ROUND_SECONDS = 0.1
"""A round of a slow contender has fewer calls, to last about as long as this."""


def ids_of(number: int) -> list[str]:
    """Ids as long as those that `secrets.token_urlsafe(32)` gives."""
    return [f"{index:043d}" for index in range(number)]


def name_of(size: int) -> str:
    """A size as a column's name."""
    return f"{size:,}"


@contextmanager
def filled(kinds: Sequence[type[Contender]], ids: Sequence[str]) -> Iterator[dict[str, Contender]]:
    """Contenders by name, each with the sessions in it."""
    contenders = {kind.name: kind() for kind in kinds if len(ids) <= kind.largest}
    try:
        for contender in contenders.values():
            contender.fill(ids)
        yield contenders
    finally:
        for contender in contenders.values():
            contender.close()
        contenders.clear()
        gc.collect()


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep what there is out of the garbage collector's rounds, which come when they like."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def everyday(scale: Scale) -> list[Table]:
    """Touch, look, check out and give back, create and close; at each size, with random access."""
    columns = [name_of(size) for size in scale.sizes]
    tables = {
        "touch": Table("Touch", columns),
        "look": Table("Look, without touching", columns),
        "check_out": Table(
            "Check out and give back",
            columns,
            remark="CherryPy keeps other requests of the session out, and no more; nobody else has anything like it.",
        ),
        "create_and_close": Table("Create and close", columns, remark="For the others: set and delete."),
        "clean_up": Table("Cleanup with nothing due", columns, "µs"),
    }
    for kind in CONTENDERS:
        tables["touch"].notes[kind.name] = kind.note
        for table in (tables["touch"], tables["look"], tables["create_and_close"], tables["clean_up"]):
            # A row for those that cannot, too.
            table.samples[kind.name] = {}
    for size in scale.sizes:
        ids = ids_of(size)
        with filled(CONTENDERS, ids) as contenders:
            for table in tables.values():
                missing = [kind.name for kind in CONTENDERS if kind.name not in contenders]
                table.unmeasured |= {(name, name_of(size)) for name in missing}
            for work, table in tables.items():
                timings: dict[str, Callable[[], float]] = {}
                for name, contender in contenders.items():
                    call = getattr(contender, work)
                    if call is not None:
                        timings[name] = _cleaning(call) if work == "clean_up" else _random_calls(call, ids, work)
                table.add(name_of(size), in_turn(scale.rounds, timings))
    return list(tables.values())


def _random_calls(call: Callable[[str], object], ids: Sequence[str], work: str) -> Callable[[], float]:
    # New sessions have ids of their own; the others are met in random order, each round in another one.
    known = [f"new-{index:039d}" for index in range(CALLS)] if work == "create_and_close" else ids
    began = time.perf_counter()
    for argument in known[:50]:
        call(argument)
    number = max(100, min(CALLS, int(ROUND_SECONDS / ((time.perf_counter() - began) / min(50, len(known))))))
    source = random.Random(3)  # noqa: S311  no secret

    def one_round() -> float:
        arguments = [known[source.randrange(len(known))] for _ in range(number)]
        return per_call(call, arguments, number)

    return one_round


def _cleaning(clean_up: Callable[[], object]) -> Callable[[], float]:
    began = time.perf_counter()
    clean_up()
    number = max(1, min(2_000, int(ROUND_SECONDS / 5 / (time.perf_counter() - began))))

    def one_round() -> float:
        begin = time.perf_counter()
        for _ in range(number):
            clean_up()
        return (time.perf_counter() - begin) / number

    return one_round


DUE = 1_000


def cleaning(scale: Scale) -> list[Table]:
    """Cleanup with 1,000 due, and with all due."""
    by_hand = "On clocks that are set by hand, for which sessionkit takes the lock."
    some_due = Table(f"Cleanup with {DUE:,} due", [], "µs", remark=by_hand)
    all_due = Table("Cleanup with all due, for each session", [], remark=by_hand)
    for size in (10_000, *scale.sizes[1:]):
        rounds = min(scale.rounds, 7)
        cohorts = rounds + 1
        some_due.columns.append(name_of(size))
        samples: dict[str, Samples] = {}
        with filled(BY_HAND, []) as contenders:
            ids = ids_of(size + cohorts * DUE)
            for contender in contenders.values():
                _fill_in_cohorts(contender, ids, cohorts)

            def one_round(contender: Contender, turn: list[int]) -> float:
                cohort = turn.pop(0)
                assert contender.set_clock
                assert contender.clean_up
                contender.set_clock(cohort + TIMEOUT + 0.5)
                begin = time.perf_counter()
                contender.clean_up()
                return time.perf_counter() - begin

            turns = {name: list(range(cohorts)) for name in contenders}
            timings = {
                name: lambda contender=contender, turn=turns[name]: one_round(contender, turn)
                for name, contender in contenders.items()
            }
            samples = in_turn(rounds, timings)
        some_due.add(name_of(size), samples)
    for size in scale.sizes:
        all_due.columns.append(name_of(size))
        all_samples: dict[str, Samples] = {}
        for _ in range(scale.repeats):
            for kind in BY_HAND:
                with filled([kind], ids_of(size)) as contenders:
                    contender = contenders[kind.name]
                    assert contender.set_clock
                    assert contender.clean_up
                    contender.set_clock(2 * TIMEOUT)
                    with no_collection():
                        begin = time.perf_counter()
                        contender.clean_up()
                        all_samples.setdefault(kind.name, []).append((time.perf_counter() - begin) / size)
        all_due.add(name_of(size), all_samples)
    return [some_due, all_due]


def _fill_in_cohorts(contender: Contender, ids: Sequence[str], cohorts: int) -> None:
    """One cohort of sessions a second, and all the rest later."""
    assert contender.set_clock
    for cohort in range(cohorts):
        contender.set_clock(cohort)
        contender.fill(ids[cohort * DUE : (cohort + 1) * DUE])
    contender.set_clock(cohorts + 100)
    contender.fill(ids[cohorts * DUE :])


def cleaning_after_touches(scale: Scale) -> Table:
    """What a cleanup does when sessions have been touched without the lock since they were filed."""
    size = scale.sizes[-1]
    table = Table("Cleanup when every session has moved on since it was filed, for each session", [name_of(size)])
    table.remark = "No session is due; each is filed anew, which happens at most once a timeout."
    samples: Samples = []
    for _ in range(scale.repeats):
        with filled([SessionkitByHand], ids_of(size)) as contenders:
            contender = contenders[SessionkitByHand.name]
            assert isinstance(contender, SessionkitByHand)
            contender.set_clock(TIMEOUT)
            for session in contender.coordinator.list_sessions():
                session.touch()
            contender.set_clock(2 * TIMEOUT)
            with no_collection():
                begin = time.perf_counter()
                contender.coordinator.cleanup_inactive_sessions()
                samples.append((time.perf_counter() - begin) / size)
    table.add(name_of(size), {SessionkitByHand.name: samples})
    return table


COUNTING = "a thread that only counts"
SLEEPING = "a thread that only sleeps"

PERIOD = 0.001
"""Seconds between two touches that are due."""


def stall(scale: Scale) -> Table:
    """How late another thread's touches are, timed from when each was due, while sessions expire."""
    columns = ["p50", "p99", "p99.9", "max", "cleanup"]
    table = Table(f"Another thread's touch while {scale.stalled:,} sessions expire", columns, "ms")
    table.remark = (
        "One thread cleans up; another one has a touch to do every millisecond. The figures say how late these were "
        "done; the last column, how long the cleanup took. Of fewer than a thousand touches there is no p99.9. In the "
        "last two rows the other thread only counts, or sleeps: what is late there, the interpreter makes late, or the "
        "machine."
    )
    ids = ids_of(scale.stalled)

    def kit() -> tuple[Callable[[], object], Callable[[], object]]:
        contender = Sessionkit()
        contender.fill(ids)
        contender.put("touched")
        return lambda: contender.coordinator.cleanup_inactive_sessions(max_age=0.5), lambda: contender.touch("touched")

    def creating() -> tuple[Callable[[], object], Callable[[], object]]:
        contender = Sessionkit()
        contender.fill(ids)
        work = contender.create_and_close
        assert work
        return lambda: contender.coordinator.cleanup_inactive_sessions(max_age=0.5), lambda: work("created")

    def in_order() -> tuple[Callable[[], object], Callable[[], object]]:
        contender = InOrder()
        contender.fill(ids)
        contender.put("touched")
        assert contender.clean_up
        clean_up: Any = contender.clean_up
        return lambda: clean_up(0.5), lambda: contender.touch("touched")

    def scan() -> tuple[Callable[[], object], Callable[[], object]]:
        contender = FullScan()
        contender.fill(ids)
        contender.put("touched")
        assert contender.clean_up
        clean_up: Any = contender.clean_up
        return lambda: clean_up(0.5), lambda: contender.touch("touched")

    def ttl() -> tuple[Callable[[], object], Callable[[], object]]:
        import cachetools

        # A clock that jumps, or setting the touched one would expire the others before it is their time.
        now = [0.0]
        lock, cache = threading.RLock(), cachetools.TTLCache[str, Any](float("inf"), TIMEOUT, lambda: now[0])
        for session_id in ids:
            cache[session_id] = LiveSession(session_id, 0.0)

        def expire() -> None:
            with lock:
                now[0] = 2 * TIMEOUT
                cache.expire()

        def touch() -> None:
            with lock:
                cache["touched"] = None

        return expire, touch

    def count() -> tuple[Callable[[], object], Callable[[], object]]:
        contender = Sessionkit()
        contender.put("touched")

        def counting() -> None:
            stop, number = time.perf_counter() + scale.repeats, 0
            while time.perf_counter() < stop:
                number += 1

        return counting, lambda: contender.touch("touched")

    def sleep() -> tuple[Callable[[], object], Callable[[], object]]:
        return lambda: time.sleep(scale.repeats), count()[1]

    kinds = {
        Sessionkit.name: kit,
        "sessionkit, create and close": creating,
        InOrder.name: in_order,
        FullScan.name: scan,
        TTLCacheUnderLock.name: ttl,
        COUNTING: count,
        SLEEPING: sleep,
    }
    found: dict[str, dict[str, Samples]] = {name: {column: [] for column in columns} for name in kinds}
    for _ in range(scale.repeats):
        for name, make in kinds.items():
            work, touch = make()
            with no_collection():
                delays, duration = _delays(work, touch)
            del work, touch
            gc.collect()
            delays.sort()
            for column, part in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1)):
                if part != 0.999 or len(delays) >= 1000:
                    found[name][column].append(delays[min(int(len(delays) * part), len(delays) - 1)])
            if name not in (COUNTING, SLEEPING):
                found[name]["cleanup"].append(duration)
    for name, by_column in found.items():
        table.samples[name] = {column: values for column, values in by_column.items() if len(values) == scale.repeats}
    return table


def _delays(work: Callable[[], object], touch: Callable[[], object]) -> tuple[list[float], float]:
    """Do the work in a thread, and touch beside it every period; how late each touch was done, and how long it took."""
    delays: list[float] = []
    ready = threading.Event()
    span: list[float] = []

    def run() -> None:
        ready.wait()
        span.append(time.perf_counter())
        work()
        span.append(time.perf_counter())

    worker = threading.Thread(target=run)
    worker.start()
    # Long enough for what was put in to be idle for half a second, but for what is touched.
    settled = time.perf_counter() + 0.7
    due = time.perf_counter()
    # Also those touches that were due before the end and come after it.
    while len(span) < 2 or due + PERIOD < span[1]:
        due += PERIOD
        early = due - time.perf_counter()
        # Whoever is late does not wait: what was held up is touched at once, as in a queue of requests.
        if early > 0:
            time.sleep(early)
        touch()
        if ready.is_set():
            delays.append(time.perf_counter() - due)
        elif due > settled:
            ready.set()
    worker.join()
    return delays, span[1] - span[0]


THREADS = (1, 2, 4, 8, 16)


def throughput(scale: Scale) -> Table:
    """Touches a second, over all threads."""
    table = Table("Touches by several threads at once", [str(number) for number in THREADS], "M/s", better="higher")
    size = scale.sizes[1]
    table.remark = f"{name_of(size)} sessions, random access; millions of touches a second over all threads."
    ids = ids_of(size)
    total = 400_000 if scale is FULL else 100_000
    with filled([Sessionkit, TTLCacheUnderLock, FullScan, MokaPy], ids) as contenders:
        for number in THREADS:
            timings = {
                name: lambda contender=contender, number=number: _by_threads(contender, ids, number, total)
                for name, contender in contenders.items()
            }
            samples = in_turn(2 * scale.repeats + 1, timings)
            rates = {name: [total / seconds / 1e6 for seconds in values] for name, values in samples.items()}
            table.add(str(number), rates)
    return table


def _by_threads(contender: Contender, ids: Sequence[str], number: int, total: int) -> float:
    source = random.Random(5)  # noqa: S311  no secret
    parts = [[ids[source.randrange(len(ids))] for _ in range(total // number)] for _ in range(number)]
    barrier = threading.Barrier(number + 1)

    def touch_all(part: list[str], touch: Callable[[str], object]) -> None:
        barrier.wait()
        for session_id in part:
            touch(session_id)
        barrier.wait()

    threads = [threading.Thread(target=touch_all, args=(part, contender.touch)) for part in parts]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - begin
    for thread in threads:
        thread.join()
    return seconds


def memory(scale: Scale) -> Table:
    """Bytes a session, each contender in a process of its own."""
    numbers = {"traced": scale.sizes[1], "resident": scale.sizes[-1]}
    told = {"traced": "traced by Python", "resident": "of the process"}
    table = Table("Memory for each session", [f"{told[how]}, {number:,}" for how, number in numbers.items()], "bytes")
    table.remark = (
        "The id is not counted. What Rust allocates is seen in the process only. The caches hold a slotted object with "
        "the fields of a session; CherryPy an empty dict, Beaker and Django what they make of one."
    )
    for kind in CONTENDERS:
        for column, (how, number) in zip(table.columns, numbers.items(), strict=True):
            if number > kind.largest:
                table.unmeasured.add((kind.name, column))
                continue
            # Once is enough: it comes out the same each time.
            table.samples.setdefault(kind.name, {})[column] = [
                _run("benchmarks.memory", kind.__name__, how, str(number))
            ]
    return table


def importing(scale: Scale) -> Table:
    """The first import in a fresh interpreter."""
    table = Table("First import", ["in a fresh interpreter"], "ms")
    programs = {
        "sessionkit": "import sessionkit",
        "cachetools and threading": "import cachetools, threading",
    }
    timings = {
        name: lambda program=program: _run(
            "-c", f"import time; begin = time.perf_counter(); {program}; print(time.perf_counter() - begin)"
        )
        for name, program in programs.items()
    }
    table.add(table.columns[0], in_turn(scale.repeats * 10, timings))
    return table


def _run(*arguments: str) -> float:
    command = [sys.executable, *(("-m",) if arguments[0] != "-c" else ()), *arguments]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)  # noqa: S603  our own


def replaying(scale: Scale) -> Table:
    """A replay, beside the loop that only reads and parses the same lines."""
    from examples.make_access_log import lines as lines_for
    from sessionkit import CoordinatorConfig
    from sessionkit.cli.replay.accesslog import AccessLog
    from sessionkit.cli.replay.simulation import replay

    # A visit is about seven lines.
    lines = lines_for(scale.lines // 7)
    table = Table("Replay of an access log, for each line", [f"{round(len(lines), -3):,} lines"], "µs")

    def parse() -> float:
        begin = time.perf_counter()
        for _ in AccessLog(lines):
            pass
        return (time.perf_counter() - begin) / len(lines)

    def drive() -> float:
        begin = time.perf_counter()
        replay(AccessLog(lines), CoordinatorConfig(session_timeout=1800, max_active_sessions=None))
        return (time.perf_counter() - begin) / len(lines)

    table.add(table.columns[0], in_turn(scale.repeats, {"sessionkit replay": drive, "the bare parsing loop": parse}))
    return table
