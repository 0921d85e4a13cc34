"""The world of a story as it stands: where everything is, and what has happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .grammar import the, words_in
from .story import HANDS, Exit, Story, Thing


class World:
    """Where everything is, and what has happened. `state` is what it takes to go on later."""

    def __init__(self, story: Story, state: Mapping[str, Any] | None = None) -> None:
        self._story = story
        self._here = story.start
        self._where = {key: thing.at for key, thing in story.things.items()}
        self._happened: list[str] = []
        self._moves = 0
        if state is not None:
            self.go_on_from(state)

    def go_on_from(self, state: Mapping[str, Any]) -> None:
        """Take the game up where it was left."""
        self._here = state["here"]
        self._where = dict(state["where"])
        self._happened = list(state["happened"])
        self._moves = state["moves"]

    @property
    def state(self) -> dict[str, Any]:
        """The game as JSON can say it."""
        return {
            "here": self._here,
            "where": dict(self._where),
            "happened": list(self._happened),
            "moves": self._moves,
        }

    @property
    def won(self) -> bool:
        """Whether the story has come to its good end."""
        return self._story.goal in self._happened

    @property
    def _exits(self) -> Mapping[str, Exit]:
        return self._story.places[self._here].exits

    def _thing(self, key: str) -> Thing:
        return self._story.things[key]

    def _the(self, key: str) -> str:
        return the(self._thing(key).name)

    def _words_for(self, key: str) -> set[str]:
        return {*words_in(self._thing(key).name), *words_in(self._thing(key).words)}

    def _near(self) -> list[str]:
        return [key for key, place in self._where.items() if place in (HANDS, self._here)]

    def _mentioned(self, words: list[str]) -> list[str]:
        """The things that are spoken of, in the order of the words."""
        near = self._near()
        meant = {key: self._words_for(key) & set(words) for key, place in self._where.items() if place}

        def is_meant_less(key: str) -> bool:
            # “book two” is not the other book; and what is here goes before what is not.
            return any(
                meant[key] < meant[other] or (meant[key] == meant[other] and key not in near and other in near)
                for other in meant
            )

        found = [key for key in meant if meant[key] and not is_meant_less(key)]
        return sorted(found, key=lambda key: min(map(words.index, meant[key])))

    def _now(self, text: str, later: Mapping[str, str]) -> str:
        return next((then for what, then in reversed(list(later.items())) if what in self._happened), text)
