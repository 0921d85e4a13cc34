"""Session tokens: the secret that a client holds, and the id that stands for it everywhere else."""

from __future__ import annotations

import hashlib
import re
import secrets

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


def new_token() -> str:
    """A new secret of 256 random bits, as 43 of ASCII letters, digits, `_` and `-`."""
    return secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether a text has the form of a token. Whether it was ever issued, only the coordinator knows."""
    return _TOKEN.fullmatch(text) is not None


def id_of(token: str) -> str:
    """The id of the token's session: its SHA-256, in hexadecimal. There is no way back."""
    return hashlib.sha256(token.encode()).hexdigest()
