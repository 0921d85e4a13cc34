"""What a reader sees: tables, bars, charts."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from .bars import Bar
from .contenders import CONTENDERS
from .measure import ENOUGH, Samples, Table, median, ratio, spread
from .work import COUNTING, SLEEPING

SCALES = {"ns": 1e9, "µs": 1e6, "ms": 1e3, "bytes": 1.0, "M/s": 1.0}
"""By how much samples, which are in seconds where they are times, are multiplied for a unit."""


def rounded(value: float) -> str:
    """A figure with three digits that count, or all before the point."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f}"


def figure(samples: Samples, unit: str) -> str:
    """The median in the unit, and half the width of the middle half where there are enough samples."""
    value = rounded(median(samples) * SCALES[unit])
    return f"{value} ±{spread(samples) * 50:.0f}%" if len(samples) >= ENOUGH else value


def markdown(table: Table) -> str:
    """The table, with ratios to its first row in brackets."""
    first = next(iter(table.samples))
    rounds = max(len(samples) for row in table.samples.values() for samples in row.values())
    counted = "Measured once" if rounds == 1 else f"Medians of {rounds}"
    scale = f"{table.unit}, {table.better} is better; in brackets, times {first}. {counted}. {table.remark}"
    lines = [f"### {table.title}", "", scale.strip(), ""]
    lines.append(f"| | {' | '.join(table.columns)} |")
    lines.append(f"|---|{'---:|' * len(table.columns)}")
    for name, by_column in table.samples.items():
        note = table.notes.get(name)
        cells = [f"{name}{f' ({note})' if note else ''}"]
        for column in table.columns:
            samples, base = by_column.get(column), table.samples[first].get(column)
            if samples is None:
                cells.append("not measured" if (name, column) in table.unmeasured else "-")
            elif name == first or base is None:
                cells.append(figure(samples, table.unit))
            else:
                cells.append(f"{figure(samples, table.unit)} ({rounded(ratio(samples, base))}x)")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bars_in_markdown(found: list[Bar]) -> str:
    """Each target with its ratio, and those that are missed first of all."""
    missed = [bar.what for bar in found if not bar.met]
    summary = f"{len(found) - len(missed)} of {len(found)} are met." + (
        f" Missed: {'; '.join(missed)}." if missed else ""
    )
    lines = ["### Targets", "", summary, "", "| | ratio | target | |", "|---|---:|---:|---|"]
    for bar in found:
        target = f"{'at least' if bar.at_least else 'at most'} {bar.limit:g}"
        lines.append(f"| {bar.what} | {rounded(bar.ratio)} | {target} | {'met' if bar.met else '**missed**'} |")
    return "\n".join(lines) + "\n"


LESS = 0.95
"""Who takes less than this part of sessionkit's figure is told of as ahead of it."""


def who_is_ahead(tables: Mapping[str, Table]) -> str:
    """In which table who is ahead of sessionkit, and by how much in each column."""
    lines = ["### Where others are ahead", ""]
    for name, table in tables.items():
        if name in ("import", "replay", "moved_on"):
            continue
        (ours_is, ours), *others = table.samples.items()
        ahead = []
        for other, theirs in others:
            ratios = {
                column: ratio(theirs[column], ours[column])
                for column in table.columns
                if column in theirs and column in ours
            }
            if (
                other in (COUNTING, SLEEPING)
                or other.startswith(ours_is)
                or all((part if table.better == "lower" else 1 / part) >= LESS for part in ratios.values())
            ):
                continue
            ahead.append(f"{other} ({', '.join(rounded(part) + 'x' for part in ratios.values())})")
        if ahead:
            lines.append(f"* **{table.title}**: {', '.join(ahead)}.")
    return "\n".join([*lines, "", "In brackets, each column of the table in turn, times sessionkit."]) + "\n"


def processor() -> str:
    """The model of this machine's processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> str:
    """On what it was measured."""
    versions = ", ".join(dict.fromkeys(kind.title() for kind in CONTENDERS if kind.package))
    return (
        f"CPython {platform.python_version()}, {platform.system()} on {os.cpu_count()} cores of {processor()}; "
        f"{versions}.\n"
    )


def charts(tables: Mapping[str, Table], folder: Path) -> list[str]:
    """Draw the main figures as SVG files; their images in markdown."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "sessionkit", "font.size": 9, "svg.fonttype": "none"})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    images = []
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("touch", "create_and_close", "clean_up", "all_due", "stall"):
        table = tables[name]
        columns = ["p50", "p99", "p99.9", "max"] if name == "stall" else table.columns
        rows = [row for row in table.samples if any(column in table.samples[row] for column in columns)]
        chart, axes = plt.subplots(figsize=(8, 0.9 + 0.3 * len(rows)), layout="constrained")
        for number, column in enumerate(columns):
            # Dots: on a logarithmic axis the length of a bar says nothing.
            places = [place for place, row in enumerate(rows) if column in table.samples[row]]
            axes.scatter(
                [median(table.samples[rows[place]][column]) * SCALES[table.unit] for place in places],
                places,
                36,
                label=column if name == "stall" else f"{column} sessions",
                color=plt.get_cmap("viridis")(0.1 + number / len(columns) * 0.8),
                zorder=3,
            )
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.grid(color="0.9", zorder=0)
        axes.set_xlabel(f"{table.unit}, logarithmic: further left is better; CPython {version}")
        axes.set_title(table.title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        path = folder / f"performance-{name.replace('_', '-')}-{version}.svg"
        chart.savefig(path, metadata={"Date": None})
        plt.close(chart)
        # Lines that end in spaces are nobody's friend.
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
        images.append(
            f"![{table.title}, in {table.unit} by contender: the table of that name has the figures]({path.name})"
        )
    return images


def write_into(document: Path, text: str) -> None:
    """Put the text between the marks for this version of Python, which are made at the end if they are not there."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    begin, end = f"<!-- begin {version} -->", f"<!-- end {version} -->"
    before = document.read_text()
    if begin not in before:
        before += f"\n## CPython {version}\n\n{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    document.write_text(f"{head}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}")
