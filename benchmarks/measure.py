"""How it is measured: rounds of all contenders in turn, so that a noisy machine is as noisy for each."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Samples = list[float]


@dataclass
class Table:
    """One piece of work: seconds a call (or what `unit` says) by contender and column."""

    title: str
    columns: list[str]
    unit: str = "ns"
    remark: str = ""
    better: str = "lower"
    samples: dict[str, dict[str, Samples]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unmeasured: set[tuple[str, str]] = field(default_factory=set)
    """Contender and column, where setting up takes too long here."""

    def add(self, column: str, samples: Mapping[str, Samples]) -> None:
        """Note what was measured for one column."""
        for name, values in samples.items():
            self.samples.setdefault(name, {})[column] = values


def median(samples: Samples) -> float:
    """The middle one."""
    return statistics.median(samples)


ENOUGH = 5
"""With fewer samples, no spread is told."""


def spread(samples: Samples) -> float:
    """How far apart the middle half of at least `ENOUGH` samples is, as a part of their median."""
    quarters = statistics.quantiles(samples, n=4)
    return (quarters[2] - quarters[0]) / median(samples)


def ratio(ours: Samples, theirs: Samples) -> float:
    """The median of the ratios within each round: of what was measured in turn."""
    return statistics.median(our / their for our, their in zip(ours, theirs, strict=True))


def per_call(call: Callable[[str], object], arguments: Iterable[str], number: int) -> float:
    """Seconds a call, the loop included."""
    begin = time.perf_counter()
    for argument in arguments:
        call(argument)
    return (time.perf_counter() - begin) / number


def in_turn(rounds: int, timings: Mapping[str, Callable[[], float]]) -> dict[str, Samples]:
    """Run every timing once a round, in turn and after one round that does not count."""
    samples: dict[str, Samples] = {name: [] for name in timings}
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds + 1):
            # Whoever is first in a round may find the machine in another state than the last.
            names = list(timings)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds = timings[name]()
                if number:
                    samples[name].append(seconds)
    finally:
        gc.unfreeze()
    return samples
