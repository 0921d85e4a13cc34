"""As much English as an adventure needs: which word means which verb, and how things are named."""

from __future__ import annotations

import re
from collections.abc import Iterable

_DIRECTION_OF = {"n": "north", "e": "east", "s": "south", "w": "west", "u": "up", "d": "down"}
DIRECTIONS = {**_DIRECTION_OF, **{name: name for name in _DIRECTION_OF.values()}}
"""What directions may be called, and their names."""

_SYNONYMS = {
    "look": "l see examine x inspect read search watch smell listen check study describe view find",
    "go": "walk run move head climb enter leave exit board return follow",
    "take": "get grab pick fetch steal borrow carry hold collect keep remove",
    "drop": "put discard throw lay",
    "use": "open close light fill pour wind turn push pull give show offer feed unlock lock ring press insert pay buy "
    "brew make boil stamp hand swap trade fix repair attach apply crank cast drink eat wake stroke pet tickle sit",
    "talk": "ask tell say speak greet hello hi hey chat answer question shout thank thanks",
    "inventory": "i inv pockets bag",
    "help": "commands verbs what how",
    "hint": "clue stuck lost",
    "wait": "z pause stay",
}
VERBS = {word: verb for verb, words in _SYNONYMS.items() for word in [verb, *words.split()]}
"""What verbs may be called, and which one is meant."""

_FILLERS = frozenset(
    "a about am an and around at for from i'm in into me my of off on onto out please some the to with".split()  # noqa: SIM905  as the rest
)


def words_in(text: str) -> list[str]:
    """The words that matter, in lower case."""
    words = re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return [word for word in words if word not in _FILLERS]


def the(name: str) -> str:
    """The name with its article, if it is not somebody's own."""
    return name if name[0].isupper() else f"the {name}"


def a(name: str) -> str:
    """The same, of something that was not spoken of before."""
    if name[0].isupper() or name.endswith("s"):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def capital(text: str) -> str:
    """The text as a sentence begins."""
    return text[0].upper() + text[1:]


def listed(parts: Iterable[str], word: str = "and") -> str:
    """One, two and three."""
    *most, last = parts
    return f"{', '.join(most)} {word} {last}" if most else last
