"""What the tests of the chat need: the application on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from flask import Flask

from examples.chat.adventure import Adventure
from examples.chat.app import create_app
from examples.chat.sessions import chats_in, visitors_in
from sessionkit import SessionCoordinator
from sessionkit.testing import ManualClock

TIMEOUT = timedelta(minutes=10)

WINNING = {
    "lighthouse": "n, talk to mrs. odd, take herring, use key, down, fill can, up, south, feed the gull, north, up, "
    "up, fill the lamp, light the lamp",
    "library": "talk to mr. quill, west, make tea, east, north, down, give the dragon tea, talk to the dragon, up, "
    "climb the ladder, down, give volume two to the dragon, up, south, stamp the book",
    "station": "talk to the conductor, look at the bench, n, use coin with machine, talk to the clerk, e, "
    "get umbrella, w, give the umbrella to the clerk, u, put the sandwich down, give the mouse the sandwich, "
    "wind the clock, d, s, board the train",
}
"""What to say to win each story."""


class Chatroom(NamedTuple):
    """The application, and what it stands on."""

    app: Flask
    visitors: SessionCoordinator
    chats: SessionCoordinator[Adventure]


@contextmanager
def chatroom(directory: Path, clock: ManualClock, *, https: bool = False) -> Iterator[Chatroom]:
    """The application on the stores in a directory, from its start to its end."""
    with visitors_in(directory, clock) as visitors, chats_in(directory, TIMEOUT, clock) as chats:
        app = create_app(visitors, chats, clock=clock, https=https, wait=0.05)
        yield Chatroom(app, visitors, chats)
