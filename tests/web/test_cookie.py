"""The cookie and its token: what goes out, what is let in, and what is not."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.sansio.http import parse_cookie

from sessionkit.web.cookie import SessionCookie, id_of, is_token, new_token

TOKEN = "A" * 42 + "_"


def test_a_token_has_256_random_bits() -> None:
    """43 characters of base64url, another one each time; the id is its SHA-256."""
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(is_token(token) and len(token) == 43 for token in tokens)
    assert id_of(TOKEN) == "35d87b6059ef53dfba5814ba65863ac5d69a4aad6851973ae4c10c342a46e549"


def test_the_cookie_is_safe_unless_told_otherwise() -> None:
    """The cookie has the prefix `__Host-`, and is `Secure`, `HttpOnly` and `SameSite=Lax`. It has the path `/`, no
    domain, and is kept until the browser is closed."""
    cookie = SessionCookie()
    assert cookie.name == "__Host-session"
    assert set(cookie.holding(TOKEN).split("; ")) == {
        f"__Host-session={TOKEN}",
        "Secure",
        "HttpOnly",
        "Path=/",
        "SameSite=Lax",
    }
    assert repr(cookie) == "<SessionCookie '__Host-session'>"


def test_what_can_be_told_otherwise() -> None:
    """Name, SameSite, path, domain and age; with a path or a domain, the prefix is the one that allows them."""
    cookie = SessionCookie("s", same_site="Strict", path="/shop", max_age=timedelta(days=1))
    value = cookie.holding(TOKEN)
    assert value.startswith(f"__Secure-s={TOKEN}; ")
    assert {"Path=/shop", "SameSite=Strict", "Max-Age=86400", "Secure", "HttpOnly"} <= set(value.split("; "))
    assert SessionCookie(domain="example.com").holding(TOKEN).startswith("__Secure-session=")
    assert "Domain=example.com" in SessionCookie(domain="example.com").holding(TOKEN)
    assert "Max-Age=1;" in SessionCookie(max_age=0.5).holding(TOKEN)
    until = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    dated = cookie.holding(TOKEN, until)
    assert "Expires=Fri, 02 Jan 2026 03:04:05 GMT" in dated
    assert "Max-Age" not in dated


def test_leaving_secure_out_drops_the_prefix_and_warns() -> None:
    """For development only, and it says so."""
    with pytest.warns(UserWarning, match="not Secure.*take over") as caught:
        cookie = SessionCookie(secure=False)
    assert caught[0].filename == __file__
    assert cookie.holding(TOKEN) == f"session={TOKEN}; HttpOnly; Path=/; SameSite=Lax"


def test_a_cookie_is_removed_where_it_was_set() -> None:
    """With the same name, path and domain, and no time left."""
    value = SessionCookie(path="/shop", domain="example.com", max_age=60).removal()
    assert value.startswith("__Secure-session=; ")
    assert {"Max-Age=0", "Path=/shop", "Domain=example.com", "Secure"} <= set(value.split("; "))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "a b"}, "'a b'"),
        ({"name": ""}, "''"),
        ({"name": "a\r\nSet-Cookie: x"}, "1 to 64"),
        ({"name": "__Host-session"}, "prefix is added"),
        ({"same_site": "lax"}, "'Lax'"),
        ({"same_site": "None", "secure": False}, "needs secure=True"),
        ({"path": "shop"}, "begin with '/'"),
        ({"path": "/;Secure"}, "no ';'"),
        ({"path": "/\n"}, "no ';'"),
        ({"domain": "a;b"}, "'a;b'"),
        ({"domain": ""}, "''"),
        ({"domain": "."}, "'.'"),
        ({"domain": "a..b"}, "'a..b'"),
        ({"domain": "a" * 64}, "aaa"),
        ({"max_age": 0}, "max_age"),
    ],
)
def test_what_no_cookie_may_have_is_refused(wrong: dict[str, Any], message: str) -> None:
    """At once, with what was given."""
    with pytest.raises(ValueError, match=message):
        SessionCookie(**wrong)


def test_secure_is_a_flag() -> None:
    """Not something that is merely true enough."""
    with pytest.raises(TypeError, match="secure"):
        SessionCookie(secure=0)  # type: ignore[arg-type]  # what a person may write


# ---- What clients send


@pytest.mark.parametrize(
    "header",
    [
        f"__Host-session={TOKEN}",
        f'__Host-session="{TOKEN}"',
        f"a=b;__Host-session={TOKEN};c",
        f"\x00\x01; =; ===; ; \xff\xfe=\xff; __Host-session={TOKEN}",
        f"__Host-session=short; __Host-session={TOKEN}",
        f"__Host-session={'A' * 4000}; __Host-session={TOKEN}",
        f"__Host-session=; __Host-session; __Host-session={TOKEN}",
        f'broken="\\777\xe9; __Host-session={TOKEN}',
        "; ".join(f"c{number}={'x' * 100}" for number in range(1000)) + f"; __Host-session={TOKEN}",
    ],
)
def test_one_malformed_cookie_does_not_hide_the_others(header: str) -> None:
    """Also several of the same name, bytes that are no UTF-8, and very many."""
    assert SessionCookie().token_in(header) == TOKEN


@pytest.mark.parametrize(
    "header",
    [
        "",
        "__Host-session",
        "__Host-session=",
        f"__Host-session={TOKEN}A",
        f"__Host-session={TOKEN[1:]}",
        f"__Host-session={TOKEN[1:]}\xe9",
        f"__Host-session={TOKEN[1:]}=",
        f"__host-session={TOKEN}",
        f"session={TOKEN}",
        f"__Host-session={'A' * 1_000_000}",
        f"__Host-session=../../{'A' * 37}",
        f"\xa0__Host-session={TOKEN}",
        f"\x85__Host-session={TOKEN}",
        f"a=b, __Host-session={TOKEN}",
    ],
)
def test_what_has_not_the_form_of_a_token_is_no_token(header: str) -> None:
    """Shorter, longer, of other characters, or of another name."""
    assert SessionCookie().token_in(header) is None


@pytest.mark.parametrize("piece", ['a={} x"', '__Host-session={}x"', '__Host-session="{}', ";__Host-session=", "="])
def test_a_long_header_costs_no_more_than_its_length(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Werkzeug's parser, whose time may grow with the square of what it gets, never gets much."""
    parsed: list[str] = []

    def watched(text: str) -> Any:
        parsed.append(text)
        return parse_cookie(text)

    monkeypatch.setattr("sessionkit.web.cookie.parse_cookie", watched)
    header = ";".join([piece.format(" " * size) for size in (10, 40, 1000, 100_000)] * 50)
    assert SessionCookie().token_in(header) is None
    assert sum(map(len, parsed)) < 1000


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_arbitrary_bytes_are_no_token_and_do_no_harm(before: bytes, after: bytes) -> None:
    """Whatever a client sends as cookies, nothing is raised; and a cookie of its own is found behind it all."""
    cookie = SessionCookie()
    junk = before.decode("latin-1")
    found = cookie.token_in(junk)
    assert found is None or is_token(found)
    # Unless it opens a quote, or has a token of its own, which comes first.
    if '"' not in junk and found is None:
        header = f"{junk}; {cookie.name}={TOKEN}; " + after.decode("latin-1")
        assert cookie.token_in(header) == TOKEN


def test_a_token_cannot_be_guessed_from_its_id() -> None:
    """The store, the log and the events have ids, and no id is a token, nor has one in it."""
    token = secrets.token_urlsafe(32)
    assert not is_token(id_of(token))
    assert token not in id_of(token)
