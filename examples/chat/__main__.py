"""Serve the chat: `python -m examples.chat`, or `make chat`.

It keeps the chats in a directory, or on the Redis server whose URL `--store` or the environment variable
`SESSIONKIT_STORE` gives, from where several of these can serve them, on many machines. For several processes on one
machine there is `wsgi`.
"""
# ruff: noqa: T201  it prints the address

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

import waitress

from sessionkit import StoreError

from .app import create_app
from .sessions import chats_in, visitors_in


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; then save what is unsaved, and give 0."""
    options = _options()
    try:
        listener = _listen(options.host, options.port)
    except OSError as error:
        # Without the address, which Python says in a form of its own.
        reason = str(error.strerror).partition(" (while")[0]
        _complain(f"Cannot serve at {options.host}, port {options.port}: {reason}.")
        _complain("Choose another port, such as --port 8001, or --port 0 for one that is free.")
        return 1
    with listener:
        try:
            if not options.store:
                options.directory.mkdir(parents=True, exist_ok=True)
            _serve(listener, options)
        except (OSError, StoreError, ImportError, ValueError) as error:
            _complain(f"Cannot keep chats {_place(options)}: {error}")
            _complain(f"Choose another one with {'--store' if options.store else '--directory'}.")
            return 1
    return 0


def _serve(listener: socket.socket, options: argparse.Namespace) -> None:
    place, timeout = options.store or options.directory, timedelta(minutes=options.timeout)
    with visitors_in(place) as visitors, chats_in(place, timeout) as chats:
        # A server that is not there is noticed now, and not by the first visitor.
        chats.store.page(None, 1)
        app = create_app(visitors, chats, https=options.https)
        server = waitress.create_server(app, sockets=[listener], threads=8, max_request_body_size=1024 * 1024)
        for number in _ENDINGS:
            signal.signal(number, _stop)
        print(f"Candlelight is at {_address(listener)} (Ctrl-C ends it; chats are kept {_place(options)})", flush=True)
        # Comes back when it was interrupted, and its threads have finished what they were at.
        server.run()


_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def _stop(*_: object) -> None:
    # Once is enough: what comes now is saving. It all happens in the server's threads; the main one, which this
    # interrupts, only waits for them.
    for number in _ENDINGS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit()


def _place(options: argparse.Namespace) -> str:
    # The URL is not shown: it may have a password.
    return "on a Redis server" if options.store else f"in {options.directory}"


def _complain(what: str) -> None:
    print(what, file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m examples.chat", description="Serve Candlelight, a chat with stories.")
    parser.add_argument("--port", type=_port, default=8000, help="0 for one that is free (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=_minutes, default=10, help="minutes until a chat ends whose visitor is away (default: 10)"
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("chat-data"), help="where to keep the chats (default: %(default)s)"
    )
    parser.add_argument(
        "--store",
        default=os.environ.get("SESSIONKIT_STORE"),
        metavar="URL",
        help="keep them on a Redis server instead, such as redis://localhost:6379/0 (default: $SESSIONKIT_STORE)",
    )
    parser.add_argument("--https", action="store_true", help="a proxy serves this by HTTPS: make the cookie Secure")
    return parser.parse_args()


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, not {text}")
    return port


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= 60 * 24:
        raise argparse.ArgumentTypeError(f"must be more than 0, and 1440 (a day) at most, not {text}")
    return minutes


def _listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


if __name__ == "__main__":
    sys.exit(main())
