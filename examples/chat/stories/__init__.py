"""The stories that one can choose from."""

from __future__ import annotations

from .library import LIBRARY
from .lighthouse import LIGHTHOUSE
from .station import STATION

STORIES = {"lighthouse": LIGHTHOUSE, "library": LIBRARY, "station": STATION}
"""All of them, by the key that a chat remembers."""
