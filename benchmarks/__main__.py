"""`python -m benchmarks` measures everything and writes docs/performance.md; `--quick` measures less, only prints."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from . import report, work
from .bars import bars
from .measure import Table

DOCS = Path(__file__).parent.parent / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sessions and rounds; writes nothing")
    quick = parser.parse_args().quick
    scale = work.QUICK if quick else work.FULL
    began = time.perf_counter()
    print(report.machine())
    tables: dict[str, Table] = {}

    def show(name: str, table: Table) -> None:
        tables[name] = table
        print(report.markdown(table), flush=True)

    for name, table in zip(
        ("touch", "look", "check_out", "create_and_close", "clean_up"), work.everyday(scale), strict=True
    ):
        show(name, table)
    for name, table in zip(("some_due", "all_due"), work.cleaning(scale), strict=True):
        show(name, table)
    show("moved_on", work.cleaning_after_touches(scale))
    show("stall", work.stall(scale))
    show("threads", work.throughput(scale))
    show("memory", work.memory(scale))
    show("import", work.importing(scale))
    show("replay", work.replaying(scale))
    summaries = [report.who_is_ahead(tables)]
    if not quick:
        # The targets are for the full sizes.
        summaries.insert(0, report.bars_in_markdown(bars(tables)))
    for summary in summaries:
        print(summary)
    print(f"{time.perf_counter() - began:.0f} seconds.")
    if not quick:
        images = "\n\n".join(report.charts(tables, DOCS)) + "\n"
        parts = [report.machine(), *summaries, images, *map(report.markdown, tables.values())]
        report.write_into(DOCS / "performance.md", "\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
