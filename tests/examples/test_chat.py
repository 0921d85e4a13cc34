"""The example chat: what its pages say and its forms do, as any client sees it."""

from __future__ import annotations

import html
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from examples.chat import words
from examples.chat.app import HEADERS, MESSAGE_LIMIT
from examples.chat.sessions import adventure_of
from examples.chat.visitor import CHAT_LIMIT, TRANSCRIPT_LIMIT, Visitor
from sessionkit import (
    CoordinatorClosedError,
    CoordinatorConfig,
    RemovalCause,
    SessionBusyError,
    SessionConflictError,
    SessionCoordinator,
    SessionError,
    SessionExpiredError,
    SessionLimitError,
    StoreError,
)
from sessionkit.stores import RedisStore, SQLiteStore
from sessionkit.testing import ManualClock

from ..helpers.chatroom import TIMEOUT, WINNING, Chatroom, chatroom
from ..helpers.redis_server import redis_server
from ..helpers.support import WAIT, in_thread

ROOT = Path(__file__).parents[2]
JETTY = "Wet planks, a rowing boat called Probably"
COOKIE = "candlelight"
AWAY = "This chat ended because you were away for 10 minutes."


@pytest.fixture
def clock() -> ManualClock:
    """The time of the whole application."""
    return ManualClock()


@pytest.fixture
def room(tmp_path: Path, clock: ManualClock) -> Iterator[Chatroom]:
    """The application, on stores of its own."""
    with chatroom(tmp_path, clock) as opened:
        yield opened


@pytest.fixture
def visitor(room: Chatroom) -> FlaskClient:
    """Somebody who has never been here."""
    return room.app.test_client()


def text_of(response: TestResponse) -> str:
    """What a page says, without its markup."""
    body = re.sub(r"(?s)<head>.*?</head>|<svg.*?</svg>|<[^>]+>", " ", response.text)
    return " ".join(html.unescape(body).split())


def give_cookie(visitor: FlaskClient, other: FlaskClient) -> None:
    """Have another client send the visitor's cookie, as the same browser does to another server."""
    cookie = visitor.get_cookie(COOKIE)
    assert cookie is not None
    other.set_cookie(COOKIE, cookie.value)


def begin(client: FlaskClient, story: str = "lighthouse") -> str:
    """Begin a chat, and give its address."""
    response = client.post("/chats", data={"story": story})
    assert response.status_code == 303
    return response.location


def turn_on(page: TestResponse) -> str:
    """What a form on the page says of how far the chat was."""
    found = re.search(r'name="turn" value="(\d+)"', page.text)
    assert found
    return found[1]


def say(client: FlaskClient, chat: str, message: str) -> TestResponse:
    """Say something as a browser does, with what the form has, and give the page that it leads to."""
    return client.post(chat, data={"message": message, "turn": turn_on(client.get(chat))}, follow_redirects=True)


# ---- Beginning and talking


def test_a_new_visitor_chooses_a_story(visitor: FlaskClient) -> None:
    """The first page offers every story and explains the candle; looking at it makes no session and sets no cookie."""
    page = visitor.get("/")
    for part in ("The Lamp at Grimble Point", "A Dragon, Overdue", "The 11:58 to Anywhere", "burns for 10 minutes"):
        assert part in text_of(page)
    assert "Set-Cookie" not in page.headers


def test_a_chat_begins(visitor: FlaskClient) -> None:
    """Whoever chooses a story is led to its first page, where one can speak, and so is who comes back to the start."""
    page = visitor.get(begin(visitor))
    assert JETTY in text_of(page)
    assert '<label for="message">' in page.text
    assert re.search(r'<input id="message"[^>]* autofocus', page.text)
    assert 'id="newest" aria-live="polite"' in page.text
    assert JETTY in text_of(visitor.get("/", follow_redirects=True))


def test_a_story_that_there_is_not(visitor: FlaskClient) -> None:
    """A form that names no story begins nothing."""
    assert visitor.post("/chats", data={"story": "moby-dick"}).status_code == 400
    assert visitor.post("/chats").status_code == 400
    assert "Your chats" not in visitor.get("/").text


def test_the_cookie(room: Chatroom, tmp_path: Path, clock: ManualClock) -> None:
    """It is kept for as long as the visitor's session, from scripts and other sites; Secure where there is HTTPS."""
    client = room.app.test_client()
    cookie = client.post("/chats", data={"story": "library"}).headers["Set-Cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(cookie.split("; "))
    for again in (cookie, client.get("/").headers["Set-Cookie"]):
        expires = re.search("Expires=([^;]+)", again)
        assert expires is not None
        assert parsedate_to_datetime(expires[1]) - datetime.now(UTC) > timedelta(days=29)
    assert "Secure" not in cookie
    with chatroom(tmp_path, clock, https=True) as behind_proxy:
        cookie = behind_proxy.app.test_client().post("/chats", data={"story": "library"}).headers["Set-Cookie"]
    assert cookie.startswith("__Host-candlelight=")
    assert "Secure" in cookie.split("; ")


def test_a_message_is_answered(visitor: FlaskClient, room: Chatroom) -> None:
    """The answer is on the page that a message leads to, which can be loaded again without saying it again."""
    chat = begin(visitor)
    response = visitor.post(chat, data={"message": "  look at\tthe gull ", "turn": "0"})
    assert (response.status_code, response.location) == (303, chat)
    for _ in range(2):
        page = text_of(visitor.get(chat))
        assert page.count("You: look at the gull") == 1
        assert "disappointed in them" in page
    (session,) = room.chats.list_sessions()
    assert session.metadata.message_count == 1


@pytest.mark.parametrize("story", WINNING)
def test_a_story_is_won(story: str, visitor: FlaskClient) -> None:
    """At the end of a story, the page offers another one instead of asking what to do, and says so in the list."""
    chat = begin(visitor, story)
    page = visitor.get(chat)
    for message in WINNING[story].split(", "):
        assert "What do you do?" in page.text
        page = say(visitor, chat, message)
    assert "What do you do?" not in page.text
    assert "The end. It took you" in text_of(page)
    assert "Choose another story" in text_of(page)
    assert "won, about 10 minutes left" in text_of(page)


def test_what_is_said_is_escaped(visitor: FlaskClient) -> None:
    """Markup in a message is shown as it was typed, and stays text."""
    chat = begin(visitor)
    for message in ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}"):
        page = say(visitor, chat, message)
        assert html.escape(message, quote=False) in page.text.replace("&#34;", '"').replace("&#39;", "'")
        assert "<script>" not in page.text
        assert "<img src=x" not in page.text


def test_buttons_say_what_one_may_say(visitor: FlaskClient) -> None:
    """Each suggestion is a button of a form that says it, so that nobody needs to type."""
    chat = begin(visitor)
    page = visitor.get(chat)
    suggestions = re.findall(r'<button name="message" value="([^"]+)"', page.text)
    assert suggestions == ["look", "talk to the gull", "go north", "inventory", "hint"]
    assert "The keeper's kitchen" in text_of(say(visitor, chat, "go north"))


# ---- Time


def test_only_saying_something_is_activity(visitor: FlaskClient, clock: ManualClock) -> None:
    """Looking at the page does not buy time; a message buys a full timeout."""
    chat = begin(visitor)
    clock.advance(timedelta(minutes=9))
    assert "about 1 minute left" in text_of(visitor.get(chat))
    say(visitor, chat, "look")
    clock.advance(TIMEOUT)
    page = visitor.get(chat)
    assert "less than a minute left" in text_of(page)
    assert AWAY not in text_of(page)
    clock.advance(0.001)
    assert AWAY in text_of(visitor.get(chat))


def test_time_left_is_said_in_words(visitor: FlaskClient, clock: ManualClock) -> None:
    """The page says how long there is, and until when; the script gets the seconds and the instant."""
    chat = begin(visitor)
    clock.advance(75)
    page = visitor.get(chat)
    assert "about 9 minutes left ends at" in text_of(page)
    assert 'role="timer" data-seconds-left="525.0" data-timeout="600.0"' in page.text
    assert 'datetime="2026-01-01T00:10:00+00:00"' in page.text


def test_a_chat_that_ended(visitor: FlaskClient, clock: ManualClock) -> None:
    """The page says why it ended and offers to begin again, what is said to it goes nowhere, and the list knows."""
    chat = begin(visitor)
    clock.advance(601)
    response = visitor.post(chat, data={"message": "look", "turn": "0"})
    assert (response.status_code, response.location) == (303, chat)
    page = text_of(visitor.get(chat))
    assert AWAY in page
    assert "The Lamp at Grimble Point ended" in page
    assert "Begin it again" in page
    assert "What do you do?" not in page


def test_beginning_again(visitor: FlaskClient, clock: ManualClock) -> None:
    """A chat that ended makes way for a new one with the same story."""
    chat = begin(visitor)
    clock.advance(601)
    response = visitor.post(f"{chat}/again")
    assert response.location != chat
    page = text_of(visitor.get(response.location))
    assert JETTY in page
    assert "Your chats (1)" in page
    assert visitor.get(chat).status_code == 404


def test_forgetting(visitor: FlaskClient, clock: ManualClock) -> None:
    """A chat that ended can be taken from the list; one that has not cannot."""
    chat = begin(visitor)
    visitor.post(f"{chat}/forget")
    assert JETTY in text_of(visitor.get(chat))
    clock.advance(601)
    assert visitor.post(f"{chat}/forget", follow_redirects=True).request.path == "/"
    assert visitor.get(chat).status_code == 404
    assert "Your chats" not in visitor.get("/").text


@pytest.mark.parametrize("away", [timedelta(minutes=11), timedelta(hours=2), timedelta(days=3)])
@pytest.mark.parametrize("restarted", [False, True])
def test_why_a_chat_ended_is_known_days_later(
    away: timedelta, restarted: bool, tmp_path: Path, clock: ManualClock
) -> None:
    """Whoever comes back the next day is told why too, whether or not the server was restarted meanwhile."""
    with chatroom(tmp_path, clock) as room:
        visitor = room.app.test_client()
        chat = begin(visitor)
        if not restarted:
            clock.advance(601)
            room.chats.cleanup_inactive_sessions()
            clock.advance(away)
            assert AWAY in text_of(visitor.get(chat))
    if restarted:
        clock.advance(away)
        with chatroom(tmp_path, clock) as room:
            again = room.app.test_client()
            give_cookie(visitor, again)
            assert AWAY in text_of(again.get(chat))


def test_ending_a_chat(visitor: FlaskClient, room: Chatroom, clock: ManualClock) -> None:
    """A visitor can end a chat; that is known the next day too, and ending it twice is no mistake."""
    chat = begin(visitor)
    for _ in range(2):
        assert visitor.post(f"{chat}/end").location == chat
    assert len(room.chats) == 0
    clock.advance(timedelta(days=1))
    assert words.CLOSED in text_of(visitor.get(chat))


def test_a_chat_of_which_nothing_is_known(visitor: FlaskClient, tmp_path: Path, clock: ManualClock) -> None:
    """If it is gone although its visitor was not away for so long, and nobody knows why, that is what is said."""
    chat = begin(visitor)
    clock.advance(540)
    say(visitor, chat, "look")
    with closing(sqlite3.connect(tmp_path / "chats.db")) as database, database:
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("DELETE FROM sessions")
    clock.advance(300)
    assert words.UNKNOWN in text_of(visitor.get(chat))


@pytest.mark.parametrize(
    ("cause", "limit", "said"),
    [
        (RemovalCause.IDLE, 600.0, AWAY),
        (RemovalCause.IDLE, 60.0, "This chat ended because you were away for 1 minute."),
        (RemovalCause.IDLE, 90.0, "This chat ended because you were away for 90 seconds."),
        (RemovalCause.IDLE, 7200.0, "This chat ended because you were away for 2 hours."),
        (RemovalCause.LIFETIME, 3600.0, "This chat ended because it was 1 hour old, and none gets older."),
        (RemovalCause.CAPACITY, 5.0, "This chat ended because there were too many at once."),
        (RemovalCause.SHUTDOWN, None, "This chat ended because the server was stopped."),
        (RemovalCause.CLOSED, None, "This chat was ended."),
        (RemovalCause.PASSIVATED, None, "This chat was ended."),
    ],
)
def test_each_ending_has_its_words(cause: RemovalCause, limit: float | None, said: str) -> None:
    """Whatever ended a chat is said in a plain sentence."""
    assert words.ending(SessionExpiredError("a", cause, 0.0, limit)) == said


# ---- Several chats, several visitors


def test_switching_between_chats(visitor: FlaskClient) -> None:
    """Several chats go on side by side, each with its own time and state; the start leads to the last one seen."""
    first, second = begin(visitor, "library"), begin(visitor, "station")
    say(visitor, first, "west")
    assert "The tea room" in text_of(visitor.get(first))
    assert "Look at me" not in text_of(visitor.get(second))
    assert visitor.get("/").location == second
    visitor.get(first)
    assert visitor.get("/").location == first
    listed = re.findall(r'<a href="(/chats/[^"]+)"( aria-current="page")?', visitor.get(first).text)
    assert listed == [(second, ""), (first, ' aria-current="page"')]


def test_two_chats_with_one_story_are_told_apart(visitor: FlaskClient) -> None:
    """The second chat with a story has a number in its title."""
    begin(visitor)
    assert "The Lamp at Grimble Point (2)" in text_of(visitor.get(begin(visitor)))


def test_another_visitor_cannot_reach_a_chat(visitor: FlaskClient, room: Chatroom) -> None:
    """Who knows the address of somebody else's chat can neither look at it, nor speak in it, nor end it."""
    chat = begin(visitor)
    stranger = room.app.test_client()
    begin(stranger)
    before = visitor.get(chat).text
    for client in (stranger, room.app.test_client()):
        responses = [
            client.get(chat),
            client.post(chat, data={"message": "north", "turn": "0"}),
            *(client.post(f"{chat}/{what}") for what in ("end", "forget", "again")),
        ]
        assert [response.status_code for response in responses] == [404] * 5
        assert not any(JETTY in response.text for response in responses)
    assert visitor.get(chat).text == before


def test_a_cookie_that_was_deleted(visitor: FlaskClient) -> None:
    """Without it, a visitor is a new one, and is told so where the chat was."""
    chat = begin(visitor)
    visitor.delete_cookie(COOKIE)
    page = visitor.get(chat)
    assert page.status_code == 404
    assert "it has forgotten your chats" in text_of(page)
    assert "Choose a story" in text_of(visitor.get("/"))


def test_chats_are_limited(visitor: FlaskClient, clock: ManualClock) -> None:
    """There are so many at once and no more; one that ended makes room, the oldest first."""
    chats = [begin(visitor) for _ in range(CHAT_LIMIT)]
    refused = visitor.post("/chats", data={"story": "library"})
    assert refused.status_code == 409
    assert "You have 8 chats going, and that is the limit. End one of them first." in text_of(refused)
    say(visitor, chats[0], "look")
    clock.advance(300)
    say(visitor, chats[0], "look")
    clock.advance(301)
    visitor.get(begin(visitor, "library"))
    assert [visitor.get(chat).status_code for chat in chats[:3]] == [200, 404, 200]


# ---- Mistakes


def test_an_empty_message(visitor: FlaskClient) -> None:
    """It is not said; the page asks for one."""
    chat = begin(visitor)
    for message in ("", "  \n "):
        page = visitor.post(chat, data={"message": message, "turn": "0"})
        assert page.status_code == 422
        assert "Say something first." in text_of(page)
    assert visitor.post(chat).status_code == 422


def test_a_message_that_is_too_long(visitor: FlaskClient) -> None:
    """It is not said, and not lost either: it can be made shorter. The longest that is allowed is allowed."""
    chat = begin(visitor)
    page = visitor.post(chat, data={"message": "x" * (MESSAGE_LIMIT + 1), "turn": "0"})
    assert page.status_code == 422
    assert "That has 501 characters, and 500 is the limit." in text_of(page)
    assert 'value="' + "x" * (MESSAGE_LIMIT + 1) in page.text
    assert 'aria-invalid="true"' in page.text
    assert "You: xxx" in text_of(say(visitor, chat, "x" * MESSAGE_LIMIT))


def test_a_message_that_is_far_too_long(visitor: FlaskClient) -> None:
    """What no form of ours sends is refused unread."""
    chat = begin(visitor)
    page = visitor.post(chat, data={"message": "x" * 100_000, "turn": "0"})
    assert page.status_code == 413
    assert "That was far too long." in text_of(page)


def test_what_is_sent_twice_is_said_once(visitor: FlaskClient) -> None:
    """A double click, or a page that is sent again, leads to the same answer."""
    chat = begin(visitor)
    for _ in range(2):
        page = visitor.post(chat, data={"message": "north", "turn": "0"}, follow_redirects=True)
        assert page.status_code == 200
        assert text_of(page).count("You: north") == 1


@pytest.mark.parametrize("turn", ["0", "7", "-1", "x", None])
def test_a_message_from_a_page_that_is_out_of_date(turn: str | None, visitor: FlaskClient) -> None:
    """What was written in another window, before the chat went on, is not said unseen; it can be said again."""
    chat = begin(visitor)
    say(visitor, chat, "north")
    data = {"message": "take herring", "turn": turn} if turn else {"message": "take herring"}
    page = visitor.post(chat, data=data)
    assert page.status_code == 409
    assert "This chat went on elsewhere" in text_of(page)
    assert 'value="take herring"' in page.text
    assert "Taken" not in text_of(page)


def test_pages_that_there_are_not(visitor: FlaskClient) -> None:
    """An address or a method that does not exist gets a page with a way back."""
    for response, status in (
        (visitor.get("/nope"), 404),
        (visitor.get("/chats/nope"), 404),
        (visitor.get("/chats"), 405),
        (visitor.post("/chats/nope/end"), 404),
    ):
        assert response.status_code == status
        assert 'href="/">To your chats' in response.text


def test_the_transcript_is_bounded(visitor: FlaskClient, room: Chatroom) -> None:
    """Only its last entries are kept, and the page says that there was more."""
    chat = begin(visitor)
    for number in range(TRANSCRIPT_LIMIT // 2 + 5):
        visitor.post(chat, data={"message": f"count-{number:03}", "turn": str(number)})
    page = text_of(visitor.get(chat))
    (session,) = room.chats.list_sessions()
    assert len(session.data["transcript"]) == TRANSCRIPT_LIMIT
    assert session.data["dropped"] == 11
    assert "no longer kept" in page
    assert "You: count-004" not in page
    assert "You: count-064" in page


# ---- What can fail


@pytest.mark.parametrize(
    "error", [SessionBusyError, SessionLimitError, SessionConflictError, StoreError, CoordinatorClosedError]
)
def test_what_cannot_be_had_now_is_503(
    error: type[SessionError], visitor: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the coordinator cannot do now gets a page that asks for patience, and tells the client how much."""

    def fail(*_: object) -> NoReturn:
        raise error("not today")

    chat = begin(visitor)
    monkeypatch.setattr(Visitor, "say", fail)
    page = visitor.post(chat, data={"message": "look", "turn": "0"})
    assert (page.status_code, page.headers["Retry-After"]) == (503, "5")
    assert "Nothing is lost; please try again in a few seconds." in text_of(page)


def test_a_chat_that_is_busy(visitor: FlaskClient, room: Chatroom) -> None:
    """While somebody else has the chat, it can be looked at, and what is said to it can be said again later."""
    chat = begin(visitor)

    def speak() -> tuple[int, int]:
        looked = visitor.get(chat)
        return looked.status_code, visitor.post(chat, data={"message": "north", "turn": "0"}).status_code

    with room.chats.checkout(chat.rpartition("/")[2]), in_thread(speak) as spoken:
        assert spoken.result(WAIT) == (200, 503)
    assert "The keeper's kitchen" in text_of(say(visitor, chat, "north"))


def test_a_store_that_fails(visitor: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing can be saved, the visitor is told so; what was said is there, and saved with what is said next."""
    chat = begin(visitor)

    def fail(*_: object) -> NoReturn:
        raise StoreError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(SQLiteStore, "save", fail)
        broken.setattr(SQLiteStore, "release", fail)
        page = visitor.post(chat, data={"message": "north", "turn": "0"})
    assert page.status_code == 503
    assert "please try again in a few seconds" in text_of(page)
    assert "You: north" in text_of(visitor.get(chat))
    assert "Taken: the herring." in text_of(say(visitor, chat, "take herring"))


def test_a_visitor_who_cannot_be_found_now(
    visitor: FlaskClient, room: Chatroom, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that cannot be read makes nobody a new visitor: it gets the page that asks for patience."""
    chat = begin(visitor)

    def fail(*_: object, **__: object) -> NoReturn:
        raise StoreError("the disk is gone")

    with chatroom(tmp_path, clock) as restarted:
        client = restarted.app.test_client()
        give_cookie(visitor, client)
        with monkeypatch.context() as broken:
            broken.setattr(SQLiteStore, "attach", fail)
            page = client.get(chat)
        assert page.status_code == 503
        assert "Nothing is lost" in text_of(page)
        assert JETTY in text_of(client.get(chat))


def test_every_response_has_the_headers(visitor: FlaskClient) -> None:
    """Pages, redirects, files and errors all carry the content security policy; no page is kept by a browser."""
    chat = begin(visitor)
    for path in ("/", "/new", chat, "/static/chat.css", "/nope"):
        with visitor.get(path) as response:
            assert HEADERS.items() <= dict(response.headers).items()
            assert ("no-store" in response.headers["Cache-Control"]) is not path.startswith("/static")
    assert "script-src 'self'" in HEADERS["Content-Security-Policy"]


def test_pages_are_fit_for_that_policy(visitor: FlaskClient) -> None:
    """There is no script, style or handler within the pages, and nothing from elsewhere."""
    begin(visitor)
    for page in (visitor.get("/new"), visitor.get("/", follow_redirects=True), visitor.get("/nope")):
        assert not re.search(r"<style|\bstyle=|\bon\w+=|<script>|https?://", page.text)


# ---- Memory and store


def test_nothing_is_lost_by_a_restart(tmp_path: Path, clock: ManualClock) -> None:
    """After a restart the transcript is there, the story goes on where it was, and so does the time."""
    with chatroom(tmp_path, clock) as room:
        visitor = room.app.test_client()
        chat = begin(visitor)
        say(visitor, chat, "north")
        before = say(visitor, chat, "take herring").text
    with chatroom(tmp_path, clock) as room:
        again = room.app.test_client()
        give_cookie(visitor, again)
        assert again.get(chat).text == before
        clock.advance(300)
        assert "about 5 minutes left" in text_of(again.get(chat))
        assert "You carry a herring." in text_of(say(again, chat, "inventory"))


def test_a_chat_that_left_memory_comes_back(
    visitor: FlaskClient, room: Chatroom, tmp_path: Path, clock: ManualClock
) -> None:
    """A chat that had to make room in memory is live again when it is spoken in."""
    chat = begin(visitor)
    say(visitor, chat, "north")
    session_id = chat.rpartition("/")[2]
    room.chats.close()
    config = CoordinatorConfig(session_timeout=TIMEOUT, max_active_sessions=1, on_full="passivate")
    store = SQLiteStore(tmp_path / "chats.db")
    with SessionCoordinator(config, clock=clock, store=store, resource_factory=adventure_of) as chats:
        first = chats.get_session(session_id).resource
        other = chats.create_session(data={"story": "library"})
        assert [session.id for session in chats.list_sessions()] == [other.id]
        with chats.checkout(session_id) as held:
            assert held.resource is not first
            assert held.resource.answer("look").title == "The keeper's kitchen"


def test_two_servers_tell_one_story(visitor: FlaskClient, tmp_path: Path, clock: ManualClock) -> None:
    """Where two processes serve the same stores, each goes on from what was said last, wherever that was."""
    chat = begin(visitor)
    with chatroom(tmp_path, clock) as elsewhere:
        other = elsewhere.app.test_client()
        give_cookie(visitor, other)
        for client, message in (
            (other, "north"),
            (visitor, "take herring"),
            (other, "south"),
            (visitor, "feed the gull"),
        ):
            pages = [text_of(say(client, chat, message)), text_of(visitor.get(chat)), text_of(other.get(chat))]
            assert pages[0] == pages[1] == pages[2]
    assert "You take them." in pages[0]


def test_a_chat_that_ends_while_it_is_looked_at(
    visitor: FlaskClient, room: Chatroom, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the time runs out, and cleanup runs, just when the page is made, it says that the chat has ended."""
    chat = begin(visitor)
    find = room.chats.get_session

    def find_late(session_id: str) -> object:
        found = find(session_id)
        clock.advance(601)
        room.chats.cleanup_inactive_sessions()
        return found

    monkeypatch.setattr(room.chats, "get_session", find_late)
    assert AWAY in text_of(visitor.get(chat))


# ---- The command


@contextmanager
def served(directory: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The chat as `make chat` serves it, and its address, as it is printed."""
    command = [sys.executable, "-m", "examples.chat", "--port", "0", "--directory", str(directory), *arguments]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603  our own
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.match(r"Candlelight is at (http://127\.0\.0\.1:\d+)/ ", line)
            assert address, line or process.communicate(timeout=WAIT)[1]
            yield process, address[1]
        finally:
            process.kill()


def talk(opener: OpenerDirector, address: str, **form: str) -> str:
    with opener.open(address, urlencode(form).encode() if form else None, timeout=WAIT) as response:
        return html.unescape(response.read().decode())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command(number: signal.Signals, tmp_path: Path) -> None:
    """It prints its address, serves, ends cleanly when it is told to, and has lost nothing when it is started again."""
    opener = build_opener(HTTPCookieProcessor(CookieJar()))
    directory = tmp_path / "new" / "chat-data"
    with served(directory) as (process, address):
        assert JETTY in talk(opener, f"{address}/chats", story="lighthouse")
        chat = opener.open(address).url.removeprefix(address)
        assert "The keeper's kitchen" in talk(opener, address + chat, message="north", turn="0")
        process.send_signal(number)
        _, errors = process.communicate(timeout=WAIT)
    assert (process.returncode, errors) == (0, "")
    with served(directory, "--timeout", "5") as (process, address):
        page = talk(opener, address)
        assert "The keeper's kitchen" in page
        assert "about 10 minutes left" in page


def test_the_command_on_a_redis_server(tmp_path: Path) -> None:
    """With --store or SESSIONKIT_STORE, chats are on a Redis server, from where several commands tell one story."""
    opener = build_opener(HTTPCookieProcessor(CookieJar()))
    directory = tmp_path / "chat-data"
    with redis_server() as redis, patch.dict(os.environ, SESSIONKIT_STORE=redis.url):
        with served(directory) as (_, address), served(directory, "--store", redis.url) as (_, other):
            assert JETTY in talk(opener, f"{address}/chats", story="lighthouse")
            chat = opener.open(address).url.removeprefix(address)
            assert "The keeper's kitchen" in talk(opener, other + chat, message="north", turn="0")
            assert "Taken: the herring." in talk(opener, address + chat, message="take herring", turn="1")
        for what in ("visitors", "chats"):
            with closing(RedisStore(redis.url, f"candlelight-{what}")) as store:
                assert len(store.page(None, 10)) == 1
    assert not directory.exists()


def refused(*arguments: str, directory: Path) -> tuple[int, str]:
    done = subprocess.run(  # noqa: S603  our own
        [sys.executable, "-m", "examples.chat", *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        timeout=WAIT,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Whoever has another server there is told so, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, errors = refused("--port", port, directory=tmp_path)
    assert status == 1
    assert f"Cannot serve at 127.0.0.1, port {port}: Address already in use.\n" in errors
    assert "--port 8001" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--port", "70000"], "must be from 0 to 65535, not 70000"),
        (["--timeout", "0"], "must be more than 0, and 1440 (a day) at most, not 0"),
        (["--timeout", "nan"], "must be more than 0, and 1440 (a day) at most, not nan"),
        (["--timeout", "soon"], "invalid"),
        (["--port", "0", "--directory", "/dev/null/chats"], "Cannot keep chats in /dev/null/chats: "),
        (
            ["--port", "0", "--store", "redis://:secret@127.0.0.1:1"],
            "Cannot keep chats on a Redis server: the session store",
        ),
        (
            ["--port", "0", "--store", "rdis://:secret@127.0.0.1"],
            "Cannot keep chats on a Redis server: this is no URL of",
        ),
    ],
)
def test_options_that_cannot_be(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    """Each gets a line that says what is wrong with it, and no traceback."""
    status, errors = refused(*arguments, directory=tmp_path)
    assert status in (1, 2)
    assert complaint in errors
    assert "Traceback" not in errors
    assert "secret" not in errors


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    """A store that is damaged is left alone, and named."""
    (tmp_path / "chats.db").write_bytes(b"no store" * 1000)
    status, errors = refused("--port", "0", "--directory", str(tmp_path), directory=tmp_path)
    assert status == 1
    assert "chats.db" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "chats.db").read_bytes() == b"no store" * 1000
