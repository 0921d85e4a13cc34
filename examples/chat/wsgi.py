"""The chat for a WSGI server with several processes: `gunicorn --workers 4 examples.chat.wsgi:app`.

All of them have the same chats. These are kept in the directory `chat-data`, or on the Redis server whose URL the
environment variable `SESSIONKIT_STORE` gives, for as many machines as there are:

    SESSIONKIT_STORE=redis://localhost:6379/0 gunicorn --workers 4 examples.chat.wsgi:app
"""

from __future__ import annotations

import atexit
import os
from pathlib import Path

from .app import create_app
from .sessions import chats_in, visitors_in

DIRECTORY = Path("chat-data")

if not (place := os.environ.get("SESSIONKIT_STORE")):
    DIRECTORY.mkdir(exist_ok=True)

visitors, chats = visitors_in(place or DIRECTORY), chats_in(place or DIRECTORY)
# The extension does this for the visitors.
chats.start_cleanup_task()
atexit.register(chats.close)

app = create_app(visitors, chats)
