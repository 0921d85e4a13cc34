"""The engine: a story as it is being played, which answers what its player says."""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

from .grammar import DIRECTIONS, VERBS, a, capital, listed, the, words_in
from .story import HANDS, Deed
from .world import World

HELP = (
    "Tell me what you do, in a few plain words:\n\n"
    "“look”, or “look at” something; “go north”, or just “n”; “take” something; “use” one thing “with” another; "
    "“talk to” somebody; “inventory”, for what you carry.\n\n"
    "If you are stuck, say “hint”."
)

ASIDES = {
    "dance": "You dance. Nobody asked, and everybody is a little better for it.",
    "sing": "You sing a verse of something. Far away, a dog disagrees.",
    "jump": "You jump. Gravity has been informed, and has dealt with it.",
    "sleep": "Not now. If you stay away for long enough, the candle will do the sleeping for both of you.",
    "xyzzy": "Nothing happens. Nothing ever does, and still people try.",
    "quit": "“End chat” is on this page. Or simply walk away: the candle will understand.",
    "save": "There is no need: every word is kept as it is said.",
    "undo": "What is said is said. Stories are like that.",
    "yes": "That is the spirit. Which way was that, though?",
    "no": "No it is.",
    "who": "I tell the story. You are the one who is in it.",
    "why": "For the story's sake, mostly.",
}


class Reply(NamedTuple):
    """What the story answers: paragraphs, and the name of the place if one has come there."""

    text: str
    title: str = ""


class Adventure(World):
    """One game, live, for one thread at a time."""

    def opening(self) -> Reply:
        """How the story begins."""
        here = self._look_around()
        return Reply(f"{self._story.opening}\n\n{here.text}", here.title)

    def answer(self, message: str) -> Reply:
        """Do what the player says, and tell what comes of it."""
        words = words_in(message)
        if self.won:
            return Reply("The story is over, and it ended well. Begin another one whenever you like.")
        if message.strip() == "?":
            return self._help()
        if not words:
            return Reply("I did not catch that. Say “help” for what you can say.")
        self._moves += 1
        return self._do(words[0], words[1:], message)

    def suggestions(self) -> list[str]:
        """What one may well say now; nothing of it gives the story away."""
        if self.won:
            return []
        near = self._near()
        people = [key for key in near if self._thing(key).alive]
        loose = [key for key in near if not self._thing(key).stays and self._where[key] != HANDS]
        return [
            "look",
            *(f"talk to {the(self._thing(key).name)}" for key in people),
            *(f"take {self._thing(key).name}" for key in loose[:2]),
            *(f"go {direction}" for direction in self._exits),
            "inventory",
            "hint",
        ]

    # ---- What is said

    def _do(self, first: str, rest: list[str], message: str) -> Reply:
        verb = VERBS.get(first)
        direction = next((DIRECTIONS[word] for word in [first, *rest] if word in DIRECTIONS), None)
        if first in ASIDES:
            return Reply(ASIDES[first])
        if direction is not None and (verb == "go" or first in DIRECTIONS):
            return self._go(direction)
        rest = [word for word in rest if word not in DIRECTIONS]
        match verb:
            case None:
                return self._puzzled(first, rest, message)
            case "go":
                return self._go_to(rest)
            case "help":
                return self._help()
            case "hint":
                return Reply(next(hint for what, hint in self._story.hints if what not in self._happened))
            case "inventory":
                return self._inventory()
            case "wait":
                return Reply("You wait. Nothing comes of it, but the candle is a new one.")
            case "look" if not rest:
                return self._look_around()
            case _:
                return self._act(verb, first, rest)

    def _act(self, verb: str, said: str, rest: list[str]) -> Reply:
        near = self._near()
        things = self._mentioned(rest)
        if verb == "talk":
            # What one talks about is up to them; with one alone, there is no question with whom.
            people = [key for key in near if self._thing(key).alive]
            things = [key for key in things if key in people][:1] or things or people
            if not things:
                return Reply("There is nobody here but you and me.")
        if not things:
            return self._unknown(rest) if rest else Reply(f"{capital(said)} what? {self._for_example(near)}")
        if unseen := [key for key in things if key not in near]:
            return Reply(f"{capital(self._the(unseen[0]))}? Not here, as far as you can see.")
        if deed := self._deed(verb, set(things)):
            return self._perform(deed)
        act = {"look": self._examine, "take": self._take, "drop": self._drop, "talk": self._talk, "use": self._use}
        return Reply(act[verb](things))

    # ---- What is done

    def _deed(self, verb: str, things: set[str]) -> Deed | None:
        near = set(self._near())
        fitting = [
            deed
            for deed in self._story.deeds
            # What one means by “use the key” is plain where the door is at hand.
            if deed.verb == verb and deed.at in ("", self._here) and things <= set(deed.things) <= near
        ]
        possible = [deed for deed in fitting if set(deed.needs) <= set(self._happened)]
        fresh = [deed for deed in possible if deed.then not in self._happened]
        if possible and not fresh:
            return Deed(verb, (), "That is done already, and done well.")
        # What leads on goes before what does not, and what was said before what can be guessed.
        return min(fresh, key=lambda deed: (not deed.then, set(deed.things) != things), default=None)

    def _perform(self, deed: Deed) -> Reply:
        if deed.then:
            self._happened.append(deed.then)
            self._where.update(dict.fromkeys(deed.spends, ""))
            self._where.update(dict.fromkeys(deed.brings, HANDS))
        return Reply(f"{deed.text}\n\nThe end. It took you {self._moves} moves." if self.won else deed.text)

    def _go(self, direction: str) -> Reply:
        way = self._exits.get(direction)
        if way is None:
            return Reply(f"There is no way {direction} from here. You can go {listed(self._exits, 'or')}.")
        if way.needs and way.needs not in self._happened:
            return Reply(way.closed)
        self._here = way.to
        return self._look_around()

    def _go_to(self, words: list[str]) -> Reply:
        for direction, way in self._exits.items():
            if set(words) & set(words_in(self._story.places[way.to].name)):
                return self._go(direction)
        things = {key for key in self._mentioned(words) if key in self._near()}
        if things and (deed := self._deed("use", things)):
            return self._perform(deed)
        if len(self._exits) == 1 and not words:
            return self._go(*self._exits)
        return Reply(f"Go where? From here you can go {listed(self._exits, 'or')}.")

    def _take(self, things: list[str]) -> str:
        thing = self._thing(things[0])
        if self._where[things[0]] == HANDS:
            return f"You have {the(thing.name)} already. Your pockets are better kept than you think."
        if thing.stays:
            return thing.stays
        self._where[things[0]] = HANDS
        return f"Taken: {the(thing.name)}."

    def _drop(self, things: list[str]) -> str:
        if self._where[things[0]] != HANDS:
            return f"You do not have {self._the(things[0])}."
        self._where[things[0]] = self._here
        return f"You put {self._the(things[0])} down. It will wait; it has no other plans."

    def _talk(self, things: list[str]) -> str:
        if self._thing(things[0]).alive:
            return f"{capital(self._the(things[0]))} has nothing to say to that."
        return f"You talk to {self._the(things[0])}. It is a good listener, and has little to add."

    def _use(self, things: list[str]) -> str:
        if len(things) > 1:
            return f"{capital(listed(map(self._the, things)))}: nothing comes of that."
        return f"You cannot think what to do with {self._the(things[0])} just now. With something else, perhaps?"

    # ---- What is told

    def _look_around(self) -> Reply:
        place = self._story.places[self._here]
        parts = [self._now(place.text, place.later)]
        loose = [key for key in self._near() if self._where[key] != HANDS and not self._thing(key).stays]
        if loose:
            parts.append(f"You see {listed(a(self._thing(key).name) for key in loose)} here.")
        return Reply("\n\n".join(parts), place.name)

    def _examine(self, things: list[str]) -> str:
        thing = self._thing(things[0])
        return self._now(thing.text, thing.later)

    def _inventory(self) -> Reply:
        held = [a(self._thing(key).name) for key, place in self._where.items() if place == HANDS]
        return Reply(f"You carry {listed(held)}." if held else "You carry nothing but good intentions.")

    def _help(self) -> Reply:
        return Reply(f"{HELP} Here, for one, you might say “{self.suggestions()[1]}”.")

    def _puzzled(self, word: str, rest: list[str], message: str) -> Reply:
        mentioned = self._mentioned([word, *rest])
        if mentioned and word in self._words_for(mentioned[0]):
            return self._act("look", "look", [word])
        things = [key for key in mentioned if key in self._near()]
        if close := get_close_matches(word, [verb for verb in VERBS if len(verb) > 2], 1, 0.7):
            return Reply(f"I do not know how to “{word}”. Did you mean “{message.lower().replace(word, close[0], 1)}”?")
        if things:
            return Reply(f"I do not know how to “{word}” that. {self._for_example(things)}")
        return Reply(f"I do not know how to “{word}”. Say “help” for what you can do, or “hint” if you are stuck.")

    def _unknown(self, words: list[str]) -> Reply:
        near = {word: key for key in self._near() for word in self._words_for(key)}
        said = " ".join(words)
        for word in words:
            if close := get_close_matches(word, near, 1, 0.7):
                return Reply(f"There is no “{said}” here. Did you mean {self._the(near[close[0]])}?")
        return Reply(f"There is no “{said}” here that matters to the story. Say “look” to see what there is.")

    def _for_example(self, near: list[str]) -> str:
        if not near:
            return "There is nothing at hand."
        return f"You might say “look at {self._the(near[0])}”."
