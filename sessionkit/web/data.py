"""`RequestData`: what one request sees of the data of its session."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from json import loads
from typing import Any, NamedTuple

from .. import InvalidSessionError
from ..util.jsontext import encode, encode_checked, says


class Form:
    """How the values that an application sees stand in a session's data: as they are. A framework may have another."""

    def dump(self, key: str, value: Any, session_id: str) -> Any:
        """The value as it stands in the data. Raises `InvalidSessionError` for one that would come back as another."""
        del key, session_id
        return value

    def load(self, key: str, text: str) -> Any:
        """The value as the application sees it; `text` has it by its key, as it stands in the data."""
        return loads(text)[key]


class _Opened(NamedTuple):
    """A value that the application has read or written."""

    stored: Any
    """What the session's data have for it."""
    text: str | None
    """That as JSON text; None if the value cannot be stored."""
    value: Any
    """What the application has: if that is a dict or a list, the application may change it at any time."""
    is_ours: bool = True
    """Whether this request has put there what the data have."""
    is_same: bool = False
    """Whether the value was what the data have when it was opened."""


_ABSENT = object()
_REMOVED = _Opened(_ABSENT, None, None)
_CONTAINERS = (dict, list)


class RequestData(MutableMapping[str, Any]):
    """A dict on the data of a session, whose values are the request's own.

    What is set or removed is set or removed in the data at once. The dicts and lists that it gives, and is given, are
    no part of the data: `flush` writes what was changed in them. So no request changes what another one has, and two
    that share a session lose only what both change by the same key.
    """

    def __init__(self, data: dict[str, Any], form: Form) -> None:
        self._data = data
        self._form = form
        self._opened: dict[str, _Opened] = {}
        self.commit()

    # ---- The dict. Each method that changes it makes one call of the data's own, so that no other request that shares
    # the session comes in between.

    def __getitem__(self, key: str) -> Any:
        return self._open(key, self._data[key])

    def __setitem__(self, key: str, value: Any) -> None:
        self.update({key: value})

    def __delitem__(self, key: str) -> None:
        del self._data[key]
        self._opened[key] = _REMOVED

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._data)

    def __len__(self) -> int:
        return len(self._data)

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def update(self, changes: dict[str, Any]) -> None:  # type: ignore[override]  # from a dict, and nothing else
        """As a dict's `update`."""
        opened = {key: self._closed(key, value) for key, value in changes.items()}
        self._data.update({key: known.stored for key, known in opened.items()})
        self._opened.update(opened)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As a dict's `setdefault`."""
        known = self._closed(key, default)
        stored = self._data.setdefault(key, known.stored)
        if stored is known.stored:
            self._opened[key] = known
        return self._open(key, stored)

    def pop(self, key: str, *default: Any) -> Any:
        """As a dict's `pop`."""
        stored = self._data.pop(key, _ABSENT)
        if stored is _ABSENT:
            nothing: dict[str, Any] = {}
            return nothing.pop(key, *default)
        return self._take_out(key, stored)

    def popitem(self) -> tuple[str, Any]:
        """As a dict's `popitem`: the last that came in goes out first."""
        key, stored = self._data.popitem()
        return key, self._take_out(key, stored)

    def clear(self) -> None:
        """As a dict's `clear`."""
        self._opened.update(dict.fromkeys(self._data.copy(), _REMOVED))
        self._data.clear()

    def copy(self) -> dict[str, Any]:
        """A dict of what there is now, one level deep."""
        return {key: self._open(key, stored) for key, stored in self._data.copy().items()}

    def _take_out(self, key: str, stored: Any) -> Any:
        value = self._open(key, stored)
        self._opened[key] = _REMOVED
        return value

    # ---- Between the application and the session

    def flush(self, session_id: str) -> None:
        """Write to the session's data what the application has changed in dicts and lists.

        Raises `InvalidSessionError`, with the path, if there is a value that cannot be stored.
        """
        changed: dict[str, _Opened] = {}
        for key, known in list(self._opened.items()):
            if known is not _REMOVED and _may_have_changed(key, known) and self._is_current(key, known):
                text, stored = self._encode(key, known.value, session_id)
                if text != known.text:
                    changed[key] = _Opened(stored, text, known.value)
        self._data.update({key: known.stored for key, known in changed.items()})
        self._opened.update(changed)

    def commit(self) -> None:
        """From now on, `revert` goes back to what is there now."""
        self._former = self._data.copy()

    def revert(self) -> None:
        """Undo what this request has set, removed or changed since the last `commit`."""
        for key, known in self._opened.items():
            if known.is_ours and self._is_current(key, known):
                if key in self._former:
                    self._data[key] = self._former[key]
                else:
                    self._data.pop(key, None)
        self._opened.clear()

    def storable(self) -> dict[str, Any]:
        """What was set, as it stands in the data; without what cannot be stored."""
        return {key: known.stored for key, known in self._opened.items() if known.text is not None}

    def adopt(self, former: RequestData) -> None:
        """The application goes on with the values that it has from `former`, if the data have the same for them."""
        for key, known in former._opened.items():
            if known.text is not None:
                self._opened[key] = known
            elif known is not _REMOVED:
                self[key] = known.value

    def snapshot(self) -> RequestData:
        """The same as it is now, which does not change with the session any more."""
        snapshot = RequestData(self._data.copy(), self._form)
        snapshot._opened = self._opened.copy()
        return snapshot

    def _open(self, key: str, stored: Any) -> Any:
        """The application's own value for what the data have."""
        known = self._opened.get(key)
        if known is not None and known.stored is stored:
            return known.value
        if type(stored) not in _CONTAINERS:
            return stored
        text = _text_of(key, stored)
        if text is None:
            return stored
        if known is not None and known.text == text:
            # The same was put there anew, as when the session was read from the store again.
            self._opened[key] = known._replace(stored=stored)
            return known.value
        value = self._form.load(key, text)
        fresh = _Opened(stored, text, value, is_ours=False, is_same=value == stored)
        # Another thread of this request may have opened it: they have the same.
        known = self._opened.setdefault(key, fresh)
        if known.stored is not stored:
            known = self._opened[key] = fresh
        return known.value

    def _is_current(self, key: str, known: _Opened) -> bool:
        """Whether the data have it still: what another request has put there, or removed, is not to be undone."""
        stored = self._data.get(key, _ABSENT)
        return stored is known.stored or (known.text is not None and _text_of(key, stored) == known.text)

    def _closed(self, key: str, value: Any) -> _Opened:
        """A value that the application sets, with what the data get for it."""
        try:
            text, stored = self._encode(key, value, "")
        except InvalidSessionError:
            # Until `flush` it may become one that can be stored.
            return _Opened(value, None, value)
        return _Opened(stored, text, value)

    def _encode(self, key: str, value: Any, session_id: str) -> tuple[str, Any]:
        text, copy = encode_checked({key: self._form.dump(key, value, session_id)}, session_id)
        return text, copy[key]


def _text_of(key: str, stored: Any) -> str | None:
    """A value in the data as JSON text; None if there is none: it was put there by no request."""
    try:
        return encode({key: stored})
    except (TypeError, ValueError, RecursionError):
        return None


def _may_have_changed(key: str, known: _Opened) -> bool:
    if known.text is None:
        return True
    if type(known.value) in (str, int, float, bool, type(None)):
        return False
    return not (known.is_same and says(known.text, {key: known.value}, {key: known.stored}))
