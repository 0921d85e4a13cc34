"""The population: how many sessions were live when, told afterwards from when each came and went."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from ...util.clock import SLACK


class Population:
    """Sessions that came, in time order, and how each went. Memory: two numbers a session.

    All that goes by anything but its own time goes to make room for one that comes at the same instant.
    """

    def __init__(self) -> None:
        self._came = array("d")
        self._expired = array("d")
        self._evicted = array("d")

    def come(self, now: float) -> None:
        """A session is live from this instant on."""
        self._came.append(now)

    def expire(self, end: float) -> None:
        """A session's time runs out at this instant, the last at which it is live."""
        self._expired.append(end)

    def evict(self, now: float) -> None:
        """A session is live no more at this instant."""
        self._evicted.append(now)

    def peak(self) -> tuple[int, float]:
        """The most that were live at once, and when that was first so. At least one must have come."""
        instants = sorted(set(self._came))
        live, earliest = max(zip(self._live_at(instants), (-instant for instant in instants), strict=True))
        return live, -earliest

    def over_time(self, first: float, last: float, slices: int) -> tuple[int, ...]:
        """The most live at once in each of so many equal slices of the time from `first` to `last`.

        A single instant is one slice.
        """
        starts = [first + number * (last - first) / slices for number in range(slices if first < last else 1)]
        # Only who comes adds to those that are live, so a slice's most are live at its start or when somebody comes.
        instants = sorted({*self._came, *starts})
        most = [0] * len(starts)
        for instant, live in zip(instants, self._live_at(instants), strict=True):
            number = bisect_right(starts, instant) - 1
            most[number] = max(most[number], live)
        return tuple(most)

    def _live_at(self, instants: list[float]) -> Iterator[int]:
        """How many were live at each of these instants, which are in order."""
        expired, evicted = sorted(self._expired), sorted(self._evicted)
        came = gone = put_out = 0
        for now in instants:
            while came < len(self._came) and self._came[came] <= now:
                came += 1
            while gone < len(expired) and now - expired[gone] > SLACK:
                gone += 1
            while put_out < len(evicted) and evicted[put_out] <= now:
                put_out += 1
            yield came - gone - put_out
