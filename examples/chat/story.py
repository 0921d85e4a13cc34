"""What a story is made of: places, things, and what can be done with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

HANDS = "hands"
"""The place of a thing that the player carries."""


class Exit(NamedTuple):
    """A way out of a place, which may have to be opened first."""

    to: str
    needs: str = ""
    """What must have happened first."""
    closed: str = ""
    """What one is told until then."""


class Place(NamedTuple):
    """Somewhere to be."""

    name: str
    text: str
    exits: Mapping[str, Exit]
    later: Mapping[str, str] = {}
    """What it looks like once something has happened; of several, the last."""


class Thing(NamedTuple):
    """Something to look at, or somebody to talk to."""

    name: str
    text: str
    at: str = ""
    """Where it is at first; nowhere, if it has yet to turn up."""
    words: str = ""
    """What else it may be called, besides the words of its name."""
    stays: str = ""
    """Why it cannot be taken; it can, if there is nothing to say."""
    alive: bool = False
    later: Mapping[str, str] = {}


class Deed(NamedTuple):
    """Something that can be done. Of those that fit, the first that may happen does."""

    verb: str
    things: tuple[str, ...]
    text: str
    at: str = ""
    """Where; anywhere, if nothing is said."""
    needs: tuple[str, ...] = ()
    """What must have happened first."""
    then: str = ""
    """What has happened by it: it happens once. Without this it changes nothing, and may happen again."""
    brings: tuple[str, ...] = ()
    """What the player has in hand by it."""
    spends: tuple[str, ...] = ()
    """What is gone by it."""


class Story(NamedTuple):
    """A world, how it begins, and how it is won."""

    title: str
    blurb: str
    opening: str
    start: str
    places: Mapping[str, Place]
    things: Mapping[str, Thing]
    deeds: tuple[Deed, ...]
    hints: tuple[tuple[str, str], ...]
    """What is to happen, in order, and what to tell somebody who is stuck before it. The last one wins."""

    @property
    def goal(self) -> str:
        """What must happen for the story to end well."""
        return self.hints[-1][0]
