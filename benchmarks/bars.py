"""The targets, and whether they are met: ratios within one run."""

from __future__ import annotations

from dataclasses import dataclass

from .contenders import FullScan, FullScanByHand, MokaPy, Sessionkit, SessionkitByHand, TTLCacheUnderLock
from .measure import Samples, Table, median, ratio


@dataclass(frozen=True)
class Bar:
    """One ratio, and what it may be at most, or at least."""

    what: str
    ratio: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit


def bars(tables: dict[str, Table]) -> list[Bar]:
    """All targets that these tables have the figures for.

    Where both sides were measured in turn, the ratio is the median over the rounds; else it is that of the medians.
    """
    found: list[Bar] = []
    ours, by_hand = Sessionkit.name, SessionkitByHand.name

    def samples(table: str, name: str, column: str) -> Samples:
        return tables[table].samples[name][column]

    def bar(
        what: str, our: tuple[str, str, str], their: tuple[str, str, str], limit: float, *, at_least: bool = False
    ) -> None:
        in_turn = our[0] == their[0] and our[2] == their[2]
        one, other = samples(*our), samples(*their)
        found.append(Bar(what, ratio(one, other) if in_turn else median(one) / median(other), limit, at_least))

    for size in tables["touch"].columns:
        touch = ("touch", ours, size)
        bar(f"touch / moka-py's get, at {size}", touch, ("touch", MokaPy.name, size), 1.0)
        bar(f"touch / sliding a TTLCache entry, at {size}", touch, ("touch", TTLCacheUnderLock.name, size), 0.25)
        bar(f"check out and give back / touch, at {size}", ("check_out", ours, size), touch, 4.0)
    for size in tables["touch"].columns[1:2]:
        create = ("create_and_close", ours, size)
        bar(
            f"create and close / set and delete on a TTLCache, at {size}",
            create,
            (create[0], TTLCacheUnderLock.name, size),
            1.0,
        )
    small, large = tables["clean_up"].columns[0], tables["clean_up"].columns[-1]
    nothing = ("clean_up", ours, large)
    bar(f"cleanup with nothing due, {large} / {small}", nothing, ("clean_up", ours, small), 1.2)
    bar(
        f"full scan / cleanup with nothing due, at {large}",
        ("clean_up", FullScan.name, large),
        nothing,
        1000,
        at_least=True,
    )
    due = tables["some_due"]
    if len(due.columns) > 1:
        few, many = due.columns[0], due.columns[-1]
        bar(f"cleanup with 1,000 due, {many} / {few}", ("some_due", by_hand, many), ("some_due", by_hand, few), 1.3)
    worst = median(samples("stall", ours, "max"))
    found.append(Bar("longest stall / the full scan's", worst / median(samples("stall", FullScan.name, "max")), 0.01))
    counting = median(samples("stall", "a thread that only counts", "max"))
    found.append(Bar("longest stall / beside a thread that only counts", worst / counting, 2.0))
    for how in tables["memory"].columns:
        bar(
            f"memory / TTLCache of a slotted object, {how}",
            ("memory", ours, how),
            ("memory", TTLCacheUnderLock.name, how),
            1.2,
        )
    one, many_threads = tables["threads"].columns[0], tables["threads"].columns[-1]
    bar(
        f"touches by {many_threads} threads / by one",
        ("threads", ours, many_threads),
        ("threads", ours, one),
        0.8,
        at_least=True,
    )
    column = tables["import"].columns[0]
    bar(
        "import / cachetools and threading alone",
        ("import", ours, column),
        ("import", "cachetools and threading", column),
        1.5,
    )
    column = tables["replay"].columns[0]
    bar(
        "speed of a replay / of the bare parsing loop",
        ("replay", "the bare parsing loop", column),
        ("replay", "sessionkit replay", column),
        0.5,
        at_least=True,
    )
    assert FullScanByHand.name == FullScan.name
    return found
