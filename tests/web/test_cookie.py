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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("__Host-shop", {}),
        ("__Secure-shop", {}),
        ("__Secure-shop", {"path": "/shop"}),
        ("__Secure-shop", {"domain": "example.com"}),
    ],
)
def test_a_name_that_has_a_prefix_is_used_as_it_is(name: str, options: dict[str, Any]) -> None:
    """It gets no second one, and is found again."""
    cookie = SessionCookie(name, **options)
    assert cookie.name == name
    assert cookie.holding(TOKEN).startswith(f"{name}={TOKEN}; ")
    assert list(cookie.tokens_in(f"{name}={TOKEN}")) == [TOKEN]


@pytest.mark.parametrize(
    ("given_domain", "sent"),
    [
        (".example.com", "example.com"),
        ("example.com:8000", "example.com"),
        (".example.com:8000", "example.com"),
        ("localhost", "localhost"),
        ("my_host.example", "my_host.example"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_a_domain_is_taken_as_browsers_take_it(given_domain: str, sent: str) -> None:
    """Without a leading dot or a port, and in ASCII."""
    cookie = SessionCookie(domain=given_domain)
    assert f"; Domain={sent}; " in cookie.holding(TOKEN)
    assert f"; Domain={sent}; " in cookie.removal()


def test_a_partitioned_cookie() -> None:
    """Says so, when it is set and when it is removed; others do not."""
    cookie = SessionCookie(same_site="None", partitioned=True)
    for value in (cookie.holding(TOKEN), cookie.removal()):
        assert {"Partitioned", "Secure", "SameSite=None"} <= set(value.split("; "))
    assert "Partitioned" not in SessionCookie().holding(TOKEN)


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
        ({"name": "__session"}, "prefix is added"),
        ({"name": "__host-session"}, "prefix is added"),
        ({"name": "__Host-session", "path": "/shop"}, "'/', and no domain"),
        ({"name": "__Host-session", "domain": "example.com"}, "'/', and no domain"),
        ({"name": "__Host-session", "secure": False}, "needs secure=True"),
        ({"name": "__Secure-session", "secure": False}, "needs secure=True"),
        ({"partitioned": True, "secure": False}, "needs secure=True"),
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
        ({"domain": ":8000"}, "':8000'"),
        ({"domain": "[::1]:8000"}, "::1"),
        ({"max_age": 0}, "max_age"),
    ],
)
def test_what_no_cookie_may_have_is_refused(wrong: dict[str, Any], message: str) -> None:
    """At once, with what was given."""
    with pytest.raises(ValueError, match=message):
        SessionCookie(**wrong)


def test_secure_is_a_flag() -> None:
    """Not something that is merely true enough; and a domain is a string."""
    with pytest.raises(TypeError, match="secure"):
        SessionCookie(secure=0)  # type: ignore[arg-type]  # what a person may write
    with pytest.raises(TypeError, match="partitioned"):
        SessionCookie(partitioned="yes")  # type: ignore[arg-type]  # what a person may write
    with pytest.raises(TypeError):
        SessionCookie(domain=5)  # type: ignore[arg-type]  # what a person may write


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
    assert SessionCookie().tokens_in(header) == {TOKEN: None}


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
        f"__Host-session={TOKEN}.",
        f"__Host-session={TOKEN}.-1",
        f"__Host-session={TOKEN}.1.2",
        f"__Host-session={TOKEN}.{'9' * 16}",
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
    assert SessionCookie().tokens_in(header) == {}


def test_several_tokens_are_found_in_their_order() -> None:
    """Each once, with what its cookie says of the session's age, and 10 at most; others do not count."""
    tokens = [new_token() for _ in range(11)]
    cookie = SessionCookie()
    first, second, *rest = tokens
    header = "; ".join(f"{cookie.name}={value}" for value in (f"{second}.1500", "short", first, f"{second}.7", first))
    assert list(cookie.tokens_in(header).items()) == [(second, 1.5), (first, None)]
    header += "".join(f"; {cookie.name}=short; {cookie.name}2={token}" for token in rest)
    assert list(cookie.tokens_in(header)) == [second, first]
    header += "".join(f"; {cookie.name}={token}" for token in rest)
    assert list(cookie.tokens_in(header)) == [second, first, *rest[:8]]


def test_the_age_comes_back_as_it_was_sent() -> None:
    """In milliseconds; the id is that of the token alone."""
    cookie = SessionCookie(max_age=60)
    value = cookie.holding(TOKEN, age=7.0625).partition(";")[0]
    assert value == f"__Host-session={TOKEN}.7062"
    assert cookie.tokens_in(value) == {TOKEN: 7.062}
    assert cookie.tokens_in(cookie.holding(TOKEN, age=-5.0).partition(";")[0]) == {TOKEN: 0.0}
    assert id_of(value.partition("=")[2]) == id_of(TOKEN)


@pytest.mark.parametrize("piece", ['a={} x"', '__Host-session={}x"', '__Host-session="{}', ";__Host-session=", "="])
def test_a_long_header_costs_no_more_than_its_length(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Werkzeug's parser, whose time may grow with the square of what it gets, never gets much."""
    parsed: list[str] = []

    def watched(text: str) -> Any:
        parsed.append(text)
        return parse_cookie(text)

    monkeypatch.setattr("sessionkit.web.cookie.parse_cookie", watched)
    header = ";".join([piece.format(" " * size) for size in (10, 40, 1000, 100_000)] * 50)
    assert SessionCookie().tokens_in(header) == {}
    assert sum(map(len, parsed)) < 1000


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_arbitrary_bytes_are_no_token_and_do_no_harm(before: bytes, after: bytes) -> None:
    """Whatever a client sends as cookies, nothing is raised; and a cookie of its own is found behind it all."""
    cookie = SessionCookie()
    junk = before.decode("latin-1")
    found = cookie.tokens_in(junk)
    assert all(map(is_token, found))
    # Unless it opens a quote.
    if '"' not in junk:
        header = f"{junk}; {cookie.name}={TOKEN}; " + after.decode("latin-1")
        assert list(cookie.tokens_in(header))[: len(found) + 1] == [*found, TOKEN]


def test_a_token_cannot_be_guessed_from_its_id() -> None:
    """The store, the log and the events have ids, and no id is a token, nor has one in it."""
    token = secrets.token_urlsafe(32)
    assert not is_token(id_of(token))
    assert token not in id_of(token)
