"""The stories of the example chat, and the engine that plays them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.chat.adventure import ASIDES, HELP, Adventure
from examples.chat.grammar import DIRECTIONS, VERBS, listed
from examples.chat.stories import STORIES
from examples.chat.story import HANDS

from ..helpers.chatroom import WINNING

every_story = pytest.mark.parametrize("key", STORIES)


def played(key: str, *messages: str) -> Adventure:
    adventure = Adventure(STORIES[key])
    for message in messages:
        adventure.answer(message)
    return adventure


@every_story
def test_a_story_can_be_won(key: str) -> None:
    """There is a way to the good end, which is told only there, with the number of moves."""
    *messages, last = WINNING[key].split(", ")
    adventure = played(key, *messages)
    assert not adventure.won

    text = adventure.answer(last).text

    assert adventure.won
    assert text.endswith(f"The end. It took you {len(messages) + 1} moves.")
    assert adventure.suggestions() == []
    assert "over" in adventure.answer("look").text


@every_story
def test_hints_lead_to_the_end(key: str) -> None:
    """Every hint is told at some point on the way, and none of them twice after it was followed."""
    adventure = Adventure(STORIES[key])
    told = [adventure.answer("hint").text]
    for message in WINNING[key].split(", ")[:-1]:
        adventure.answer(message)
        told.append(adventure.answer("hint").text)

    in_order = list(dict.fromkeys(told))
    hints = [hint for _, hint in STORIES[key].hints]
    assert in_order == [hint for hint in hints if hint in in_order]
    assert in_order[-1] == hints[-1]


@every_story
def test_a_story_hangs_together(key: str) -> None:
    """Exits lead to places, deeds are about things that there are, and what is waited for is what some deed does."""
    story = STORIES[key]
    done = {deed.then for deed in story.deeds}
    places = {way.to for place in story.places.values() for way in place.exits.values()}
    things = {thing for deed in story.deeds for thing in (*deed.things, *deed.brings, *deed.spends)}
    texts = [*story.places.values(), *story.things.values()]
    awaited = {what for deed in story.deeds for what in deed.needs} | {what for text in texts for what in text.later}

    assert places == set(story.places)
    assert things <= set(story.things)
    assert awaited | {what for what, _ in story.hints} <= done
    assert {thing.at for thing in story.things.values()} <= {*story.places, ""}
    assert {deed.verb for deed in story.deeds} <= set(VERBS.values())


@every_story
def test_an_adventure_goes_on_from_its_state(key: str) -> None:
    """At any point of it, an adventure that is made from the state as JSON answers as the first one does."""
    adventure = Adventure(STORIES[key])
    for message in WINNING[key].split(", "):
        restored = Adventure(STORIES[key], json.loads(json.dumps(adventure.state)))
        assert restored.suggestions() == adventure.suggestions()
        assert restored.answer(message) == adventure.answer(message)
        assert restored.state == adventure.state


def test_an_adventure_can_be_set_to_another_state() -> None:
    """It goes on from there, and shares nothing with whom it got the state from."""
    far, near = played("lighthouse", "north", "take herring"), played("lighthouse")
    near.go_on_from(far.state)
    near.answer("drop herring")

    assert near.state != far.state
    assert "herring" in far.answer("inventory").text
    assert far.answer("look").title == near.answer("look").title == "The keeper's kitchen"


NAMES = sorted({word for story in STORIES.values() for thing in story.things.values() for word in thing.name.split()})
words = st.sampled_from([*VERBS, *ASIDES, *DIRECTIONS, *NAMES, "the", "with", "to"])


@every_story
@given(messages=st.lists(st.one_of(st.lists(words, min_size=1, max_size=5).map(" ".join), st.text()), max_size=20))
def test_whatever_is_said_there_is_an_answer(key: str, messages: list[str]) -> None:
    """Nothing that one can say raises; every answer has a text, and the state stays what JSON can say."""
    adventure = Adventure(STORIES[key])
    for message in messages:
        assert adventure.answer(message).text
    assert json.loads(json.dumps(adventure.state)) == adventure.state


@every_story
def test_what_is_suggested_is_understood(key: str) -> None:
    """On the whole way to the end, each suggestion leads to an answer that is not about being puzzled."""
    adventure = Adventure(STORIES[key])
    for message in WINNING[key].split(", "):
        for suggestion in adventure.suggestions():
            answer = Adventure(STORIES[key], adventure.state).answer(suggestion).text
            assert not any(puzzled in answer for puzzled in ("do not know", "There is no", "Not here", "what?")), (
                suggestion
            )
        adventure.answer(message)


@pytest.mark.parametrize(
    ("said", "part_of_answer"),
    [
        ("help", HELP),
        ("?", HELP),
        ("What can I do?", HELP),
        ("", "did not catch"),
        ("!!!", "did not catch"),
        ("привет", "did not catch"),
        ("go", "From here you can go south, down or up"),
        ("north", "There is no way north from here. You can go south, down or up."),
        ("down", "The cellar door is locked."),
        ("take", "Take what? You might say “look at Mrs. Odd”."),
        ("take moon", "There is no “moon” here that matters"),
        ("look at the herrign", "Did you mean the herring?"),
        ("look at gull", "The gull? Not here, as far as you can see."),
        ("gull", "The gull? Not here, as far as you can see."),
        ("herring", "of the kind that follows you about"),
        ("tkae the herring", "Did you mean “take the herring”?"),
        ("juggle the herring", "I do not know how to “juggle” that. You might say “look at the herring”."),
        ("juggle", "Say “help”"),
        ("use herring", "You cannot think what to do with the herring just now."),
        ("use herring with stove", "The herring and the stove: nothing comes of that."),
        ("take stove", "It is bolted down, and lit."),
        ("drop herring", "You do not have the herring."),
        ("talk to the stove", "It is a good listener"),
        ("hello", "She gives you an iron key."),
        ("ask Mrs. Odd about the gull", "She gives you an iron key."),
        ("say good evening", "She gives you an iron key."),
        ("i", "nothing but good intentions"),
        ("z", "You wait."),
        ("xyzzy", ASIDES["xyzzy"]),
    ],
)
def test_a_lost_player_is_helped(said: str, part_of_answer: str) -> None:
    """Whoever says what the story does not know is told what it does know."""
    assert part_of_answer in played("lighthouse", "north").answer(said).text


def test_one_may_say_less_than_all() -> None:
    """What is at hand and fits need not be named: the key's door, the can's barrel, the gull's herring."""
    adventure = played("lighthouse", "n", "hello", "take fish", "use key", "d")
    assert "the can is full" in adventure.answer("fill the can").text
    adventure.answer("u")
    adventure.answer("s")
    assert "You take them." in adventure.answer("feed bird").text


def test_a_deed_is_done_once() -> None:
    """What has been done is not done again, and what it brought is not brought twice."""
    adventure = played("station", "look at the bench", "n", "use coin")
    assert adventure.answer("inventory").text == "You carry a cheese sandwich."
    assert "It wants a coin first." in adventure.answer("use machine").text
    assert "done already" in played("library", "w", "make tea").answer("use kettle with mug").text.lower()


def test_things_are_taken_dropped_and_stay_there() -> None:
    """A thing goes where the player puts it, and is seen there."""
    adventure = played("library", "take card", "west", "drop card")
    assert "You see a mug and a card here." in adventure.answer("look").text.replace(
        "a card and a mug", "a mug and a card"
    )
    assert adventure.state["where"]["card"] == "tea room"
    adventure.answer("take card")
    assert adventure.state["where"]["card"] == HANDS
    assert "You have the card already." in adventure.answer("take card").text


def test_going_to_a_place_by_its_name() -> None:
    """A place next to this one can be gone to by its name."""
    assert played("station").answer("go to the hall").title == "The hall"
    assert played("station", "go to the hall").answer("enter waiting room").title == "The waiting room"


def test_a_list_in_words() -> None:
    """One, two and three are listed as one says it."""
    assert [listed(["a"]), listed(["a", "b"]), listed("abc", "or")] == ["a", "a and b", "a, b or c"]
