"""A visitor, and the chats that are theirs."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sessionkit import ManagedSession, SessionCoordinator, SessionExpiredError, SessionNotFoundError

from . import words
from .adventure import Adventure, Reply
from .stories import STORIES
from .story import Story

CHAT_LIMIT = 8
"""How many chats a visitor may have."""

TRANSCRIPT_LIMIT = 120
"""How many entries of a chat's transcript are kept: the last ones."""


class TooManyChatsError(Exception):
    """All of a visitor's chats are live, and there are as many as there may be."""


class UnknownChatError(Exception):
    """There is no such chat, or it is somebody else's."""


class OutOfTurnError(Exception):
    """The chat has gone on since the page that the message comes from."""


class Glance(NamedTuple):
    """A chat as it is at this moment."""

    id: str
    title: str
    emblem: str
    ended: str
    """Why it ended, in a sentence; empty if it has not."""
    adventure: Adventure | None
    data: dict[str, Any]
    turn: int
    """How many messages there were."""
    timeout: float
    seconds_left: float
    ends_at: datetime

    @property
    def won(self) -> bool:
        """Whether its story was won."""
        return self.adventure is not None and self.adventure.won


class Visitor:
    """One visitor's chats. To know a chat's id opens nothing: it has to be in this visitor's own list.

    `session` is `flask.session`, which holds the list. `wait`: how long to wait for a chat that is busy, in seconds.
    """

    def __init__(
        self,
        session: MutableMapping[str, Any],
        chats: SessionCoordinator[Adventure],
        clock: Callable[[], float] | None,
        wait: float,
    ) -> None:
        self._session = session
        self._chats = chats
        self._clock = time.monotonic if clock is None else clock
        self._wall: Callable[[], float] = getattr(clock, "wall", time.time)
        self._wait = wait

    @property
    def current(self) -> str | None:
        """The id of the chat that was looked at last."""
        current: str | None = self._session.get("current")
        return current

    def glances(self) -> list[Glance]:
        """All of the visitor's chats, newest first."""
        return [self._glance(entry) for entry in reversed(self._entries)]

    def open(self, chat_id: str) -> Glance:
        """Look at a chat, and remember that it is the current one. Raises `UnknownChatError`."""
        glance = self._glance(self._entry(chat_id))
        if self.current != chat_id:
            self._session["current"] = chat_id
        return glance

    def begin(self, story_key: str) -> str:
        """Begin a chat, and return its id. Raises `TooManyChatsError`."""
        story = STORIES[story_key]
        entries = self._entries
        if len(entries) >= CHAT_LIMIT:
            oldest_over = next((entry for entry in entries if self._glance(entry).ended), None)
            if oldest_over is None:
                raise TooManyChatsError
            entries.remove(oldest_over)
        adventure = Adventure(story)
        data: dict[str, Any] = {"story": story_key, "transcript": [], "dropped": 0}
        _write_down(data, adventure, adventure.opening())
        chat = self._chats.create_session(data=data, resource=adventure)
        entry = {
            "id": chat.id,
            "story": story_key,
            "title": self._free_title(story),
            # A chat keeps the timeout that it began with, also when the next server has another one.
            "timeout": self._chats.config.session_timeout,
            "said_at": self._wall(),
        }
        self._session.update(chats=[*entries, entry], current=chat.id)
        return chat.id

    def say(self, chat_id: str, message: str, turn: int) -> None:
        """Say something in a chat. This, and nothing else, is activity there: it buys the chat another full timeout.

        `turn`: how many messages there were on the page that it was written on. Raises `OutOfTurnError` if there are
        more now, `SessionNotFoundError` if the chat has ended, and `UnknownChatError`.
        """
        entry = self._entry(chat_id)
        with self._chats.checkout(chat_id, timeout=self._wait) as chat:
            if turn != chat.metadata.message_count:
                if chat.data["transcript"][-2:][0] == {"who": "you", "text": message}:
                    # Sent twice: a double click, or a page that was sent again.
                    return
                raise OutOfTurnError
            adventure = _caught_up(chat.resource, chat.data)
            chat.data["transcript"].append({"who": "you", "text": message})
            _write_down(chat.data, adventure, adventure.answer(message))
            chat.record_message()
        entry["said_at"] = self._wall()

    def end(self, chat_id: str) -> None:
        """End a chat. It stays in the list until it is forgotten."""
        entry = self._entry(chat_id)
        self._chats.close_session(chat_id)
        entry["ended"] = words.CLOSED

    def forget(self, chat_id: str) -> str:
        """Take a chat that has ended from the list, and return the key of its story."""
        entry = self._entry(chat_id)
        if self._glance(entry).ended:
            self._session["chats"] = [other for other in self._entries if other is not entry]
            if self.current == chat_id:
                del self._session["current"]
        return str(entry["story"])

    @property
    def _entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._session.get("chats", [])
        return entries

    def _entry(self, chat_id: str) -> dict[str, Any]:
        for entry in self._entries:
            if entry["id"] == chat_id:
                return entry
        raise UnknownChatError

    def _glance(self, entry: dict[str, Any]) -> Glance:
        adventure, data, turn, left = None, {}, 0, 0.0
        if "ended" not in entry:
            try:
                chat, adventure = self._find(entry["id"])
                data, turn = chat.data, chat.metadata.message_count
                left = chat.session_timeout - (self._clock() - chat.metadata.last_active)
            except SessionNotFoundError as error:
                # The coordinator knows it for an hour; the visitor may want to know it tomorrow.
                entry["ended"] = self._ending(entry, error)
        ends_at = datetime.fromtimestamp(self._wall() + left, UTC)
        return Glance(
            entry["id"],
            entry["title"],
            entry["story"],
            entry.get("ended", ""),
            adventure,
            data,
            turn,
            entry["timeout"],
            left,
            ends_at,
        )

    def _find(self, chat_id: str) -> tuple[ManagedSession[Adventure], Adventure]:
        while True:
            chat = self._chats.get_session(chat_id)
            adventure: Adventure | None = chat.resource
            # There is none if its time ran out just now; the next look raises then.
            if adventure is not None:
                return chat, _caught_up(adventure, chat.data)

    def _ending(self, entry: dict[str, Any], error: SessionNotFoundError) -> str:
        if isinstance(error, SessionExpiredError):
            return words.ending(error)
        # Who has said nothing for that long was away, although nobody knows of it any more.
        away = self._wall() - entry["said_at"] > entry["timeout"]
        return words.away(entry["timeout"]) if away else words.UNKNOWN

    def _free_title(self, story: Story) -> str:
        titles = {entry["title"] for entry in self._entries}
        title, number = story.title, 1
        while title in titles:
            number += 1
            title = f"{story.title} ({number})"
        return title


def _caught_up(adventure: Adventure, data: dict[str, Any]) -> Adventure:
    # The data of a session come as they were saved last, in whichever process; its resource knows this one alone.
    if adventure.state != data["state"]:
        adventure.go_on_from(data["state"])
    return adventure


def _write_down(data: dict[str, Any], adventure: Adventure, reply: Reply) -> None:
    """Put what was said, and how the adventure stands, into what the store keeps."""
    transcript = [*data["transcript"], {"who": "story", "text": reply.text, "title": reply.title}]
    data["dropped"] += max(0, len(transcript) - TRANSCRIPT_LIMIT)
    data["transcript"] = transcript[-TRANSCRIPT_LIMIT:]
    data["state"] = adventure.state
