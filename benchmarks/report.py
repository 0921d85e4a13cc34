"""What a reader sees: tables, bars, charts."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from .bars import Bar
from .contenders import CONTENDERS
from .measure import Samples, Table, median, ratio, spread

SCALES = {"ns": 1e9, "us": 1e6, "ms": 1e3, "bytes": 1.0, "M/s": 1.0}
"""By how much samples, which are in seconds where they are times, are multiplied for a unit."""


def figure(samples: Samples, unit: str) -> str:
    """The median in the unit, and how wide the middle half is."""
    value = median(samples) * SCALES[unit]
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} ±{spread(samples) * 50:.0f}%"


def markdown(table: Table) -> str:
    """The table, with ratios to its first row in brackets."""
    first = next(iter(table.samples))
    lines = [f"### {table.title}", "", f"{table.unit}; in brackets, times {first}. {table.remark}".strip(), ""]
    lines.append(f"| | {' | '.join(table.columns)} |")
    lines.append(f"|---|{'---:|' * len(table.columns)}")
    for name, by_column in table.samples.items():
        note = table.notes.get(name)
        cells = [f"{name}{f' ({note})' if note else ''}"]
        for column in table.columns:
            samples, base = by_column.get(column), table.samples[first].get(column)
            if samples is None:
                cells.append("-")
            elif name == first or base is None:
                cells.append(figure(samples, table.unit))
            else:
                cells.append(f"{figure(samples, table.unit)} ({ratio(samples, base):.3g}x)")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def bars_in_markdown(found: list[Bar]) -> str:
    """Each bar with its ratio."""
    lines = ["### The bars", "", "| | ratio | asked | |", "|---|---:|---:|---|"]
    for bar in found:
        asked = f"{'at least' if bar.at_least else 'at most'} {bar.limit:g}"
        lines.append(f"| {bar.what} | {bar.ratio:.3g} | {asked} | {'met' if bar.met else '**not met**'} |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """On what it was measured."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    versions = ", ".join(dict.fromkeys(kind.title() for kind in CONTENDERS if kind.package))
    return (
        f"CPython {platform.python_version()}, {platform.system()} on {os.cpu_count()} cores of {processor}; "
        f"{versions}.\n"
    )


def charts(tables: dict[str, Table], folder: Path) -> list[Path]:
    """Draw the main figures as SVG files."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "sessionkit", "font.size": 9, "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    paths = []
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("touch", "clean_up", "stall"):
        table = tables[name]
        columns = ["p50", "p99", "p99.9", "max"] if name == "stall" else table.columns
        rows = [row for row in table.samples if any(column in table.samples[row] for column in columns)]
        chart, axes = plt.subplots(figsize=(8, 0.5 + 0.42 * len(rows)), layout="constrained")
        height = 0.8 / len(columns)
        for number, column in enumerate(columns):
            places = [row - 0.4 + height * (number + 0.5) for row in range(len(rows))]
            values = [
                median(table.samples[row][column]) * SCALES[table.unit] if column in table.samples[row] else 0
                for row in rows
            ]
            label = column if name == "stall" else f"{column} sessions"
            axes.barh(
                places,
                values,
                height * 0.9,
                label=label,
                color=plt.get_cmap("viridis")(0.15 + number / len(columns) * 0.75),
            )
        axes.set_yticks(range(len(rows)), rows)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlabel(f"{table.unit}, logarithmic; CPython {version}")
        axes.set_title(table.title, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        path = folder / f"performance-{name.replace('_', '-')}-{version}.svg"
        chart.savefig(path, metadata={"Date": None})
        plt.close(chart)
        # Lines that end in spaces are nobody's friend.
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
        paths.append(path)
    return paths


def write_into(document: Path, text: str) -> None:
    """Put the text between the marks for this version of Python, which are made at the end if they are not there."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    begin, end = f"<!-- begin {version} -->", f"<!-- end {version} -->"
    before = document.read_text()
    if begin not in before:
        before += f"\n## CPython {version}\n\n{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    document.write_text(f"{head}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}")
