"""Prints how many bytes a session takes in one contender: `python -m benchmarks.memory Sessionkit resident 100000`."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from pathlib import Path

from . import contenders
from .work import ids_of


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def main(kind: str, how: str, number: int) -> None:
    contender = getattr(contenders, kind)()
    contender.put("first")
    ids = ids_of(number)
    gc.collect()
    if how == "traced":
        tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0] if how == "traced" else resident()
    contender.fill(ids)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0] if how == "traced" else resident()
    print((after - before) / number)
    contender.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
