"""What every command writes to, and how."""

from __future__ import annotations

import sys


def write(text: str) -> None:
    """Write to stdout at once; whatever its encoding has no character for is escaped."""
    encoding = sys.stdout.encoding
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()
