"""The Flask application: pages and forms. Nothing here needs a script."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from flask import Flask, abort, redirect, render_template, request, session, url_for
from werkzeug.exceptions import HTTPException, NotFound, ServiceUnavailable
from werkzeug.wrappers import Response

from sessionkit import SessionCoordinator, SessionError, SessionNotFoundError
from sessionkit.flask import SessionCookie, init_app

from . import words
from .adventure import Adventure
from .sessions import VISITOR_TIMEOUT
from .stories import STORIES
from .visitor import CHAT_LIMIT, OutOfTurnError, TooManyChatsError, UnknownChatError, Visitor

MESSAGE_LIMIT = 500
"""How many characters a message may have."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}

EXPLANATIONS = {
    404: "There is no such page, or it is not yours. If your browser has forgotten its cookies, it has forgotten "
    "your chats with them.",
    413: f"That was far too long. A message may have {MESSAGE_LIMIT} characters.",
    503: "Your chats cannot be had at this moment. Nothing is lost; please try again in a few seconds.",
}


def create_app(
    visitors: SessionCoordinator,
    chats: SessionCoordinator[Adventure],
    *,
    clock: Callable[[], float] | None = None,
    https: bool = False,
    wait: float = 5.0,
) -> Flask:
    """The chat, on two coordinators, which are on the same clock.

    `https`: whether browsers come by HTTPS, through a proxy. `wait`: how long to wait for a chat or a visitor that
    another request is busy with, in seconds.
    """
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
    app.config["PERMANENT_SESSION_LIFETIME"] = VISITOR_TIMEOUT
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True}
    # The cookie is SameSite=Lax: no other site's form can post here with it. That is the protection against CSRF.
    init_app(app, visitors, cookie=_cookie(https), timeout=wait)
    app.jinja_env.globals.update(
        stories=STORIES,
        timeout=chats.config.session_timeout,
        chat_limit=CHAT_LIMIT,
        duration=words.duration,
        time_left=words.time_left,
        at_hour=_at_hour,
    )

    def visitor() -> Visitor:
        return Visitor(session, chats, clock, wait)

    def chat_page(chat_id: str, *, draft: str = "", problem: str = "") -> str:
        me = visitor()
        return render_template("chat.html", glance=me.open(chat_id), glances=me.glances(), draft=draft, problem=problem)

    def stories_page(problem: str = "") -> str:
        return render_template("stories.html", glances=visitor().glances(), problem=problem)

    @app.get("/")
    def home() -> str | Response:
        current = visitor().current
        return redirect(url_for("show", chat_id=current)) if current else stories_page()

    @app.get("/new")
    def new() -> str:
        return stories_page()

    @app.post("/chats")
    def begin() -> Response:
        story = request.form.get("story", "")
        if story not in STORIES:
            abort(400)
        chat_id = visitor().begin(story)
        # The browser keeps the cookie for as long as the visitor is known here, from each page on.
        session.permanent = True
        return _see(chat_id)

    @app.get("/chats/<chat_id>")
    def show(chat_id: str) -> str:
        return chat_page(chat_id)

    @app.post("/chats/<chat_id>")
    def say(chat_id: str) -> Response | tuple[str, int]:
        message = " ".join(request.form.get("message", "").split())
        if not message:
            return chat_page(chat_id, problem="Say something first."), 422
        if len(message) > MESSAGE_LIMIT:
            problem = f"That has {len(message)} characters, and {MESSAGE_LIMIT} is the limit. Please say it shorter."
            return chat_page(chat_id, draft=message, problem=problem), 422
        try:
            visitor().say(chat_id, message, request.form.get("turn", -1, type=int))
        except SessionNotFoundError:
            # The page tells why.
            pass
        except OutOfTurnError:
            problem = "This chat went on elsewhere, perhaps in another window. Here is where it stands; say it again?"
            return chat_page(chat_id, draft=message, problem=problem), 409
        return _see(chat_id)

    @app.post("/chats/<chat_id>/end")
    def end(chat_id: str) -> Response:
        with suppress(SessionNotFoundError):
            visitor().end(chat_id)
        return _see(chat_id)

    @app.post("/chats/<chat_id>/forget")
    def forget(chat_id: str) -> Response:
        visitor().forget(chat_id)
        return redirect(url_for("home"), 303)

    @app.post("/chats/<chat_id>/again")
    def again(chat_id: str) -> Response:
        me = visitor()
        return _see(me.begin(me.forget(chat_id)))

    @app.errorhandler(TooManyChatsError)
    def refuse(_error: TooManyChatsError) -> tuple[str, int]:
        return stories_page(f"You have {CHAT_LIMIT} chats going, and that is the limit. End one of them first."), 409

    @app.errorhandler(SessionError)
    @app.errorhandler(UnknownChatError)
    @app.errorhandler(HTTPException)
    def explain(error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            error = ServiceUnavailable(retry_after=5) if isinstance(error, SessionError) else NotFound()
        response = error.get_response()
        text = EXPLANATIONS.get(error.code or 500, "That did not work.")
        # This page has no list of chats: it may be just that which cannot be had.
        response.data = render_template("error.html", name=error.name, text=text)
        return response

    @app.after_request
    def add_headers(response: Any) -> Any:
        response.headers.update(HEADERS)
        if request.endpoint != "static":
            # Whoever goes back sees how the chat stands, not how it stood.
            response.headers["Cache-Control"] = "no-store"
        return response

    return app


def _see(chat_id: str) -> Response:
    # Reloading what comes then sends nothing again.
    return redirect(url_for("show", chat_id=chat_id), 303)


def _cookie(https: bool) -> SessionCookie:
    # Over plain HTTP, Chromium and Firefox keep a Secure cookie from 127.0.0.1, Safari does not, and from another
    # machine none does: visitors would lose their chats at once. Hence it is Secure where it can be, and the warning
    # about the other case would tell nobody anything new.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return SessionCookie("candlelight", secure=https)


def _at_hour(moment: datetime) -> str:
    # In the server's time zone; the script, where there is one, puts it in the visitor's.
    return f"{moment.astimezone():%H:%M}"
