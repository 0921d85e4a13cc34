"""A Dragon, Overdue: get a library book back."""

from __future__ import annotations

from ..story import Deed, Exit, Place, Story, Thing

LIBRARY = Story(
    title="A Dragon, Overdue",
    blurb="A library book has been out for 312 years. You are to get it back, politely.",
    opening=(
        "Monday, your first at the library of Lower Wyvern. On your desk there is one card: “Knitting for Beginners. "
        "Borrowed by: the dragon downstairs. Due back: 312 years ago. Please see to it.”"
    ),
    start="desk",
    places={
        "desk": Place(
            "The front desk",
            "A long oak desk with a stamp on it, and behind it Mr. Quill, the head librarian, who whispers even when "
            "he laughs. The stacks are to the north, the tea room is to the west.",
            {"north": Exit("stacks"), "west": Exit("tea room")},
        ),
        "tea room": Place(
            "The tea room",
            "A kettle, a tap, and a shelf of mugs, each with somebody's name on it. The desk is back east.",
            {"east": Exit("desk")},
            {"brewed": "A kettle, still humming, and a shelf of mugs. The desk is back east."},
        ),
        "stacks": Place(
            "The stacks",
            "Shelves up into the dark. A ladder on wheels leans there, and very high up something is filed under K. A "
            "spiral stair goes down, and warm air comes up it. The desk is to the south.",
            {"south": Exit("desk"), "down": Exit("lair")},
        ),
        "lair": Place(
            "Special collections",
            "A vault full of wool. In the middle of it sleeps a dragon, around its neck the beginning of a scarf, the "
            "rest of which goes three times around the room. The stair goes up.",
            {"up": Exit("stacks")},
            {
                "woken": "A vault full of wool, and a dragon that looks at you over its spectacles. The stair goes up.",
                "returned": "A vault full of wool, and a dragon in a finished scarf. The stair goes up.",
            },
        ),
    },
    things={
        "quill": Thing(
            "Mr. Quill", "He is mostly cardigan.", "desk", "librarian head", "He is on loan to nobody.", alive=True
        ),
        "stamp": Thing(
            "stamp",
            "“RETURNED”, back to front. The ink is as new: it is not used much.",
            "desk",
            "",
            "It is on a chain, since the incident. Bring here what you want to stamp.",
        ),
        "card": Thing("card", "“312 years” is underlined. Twice.", "desk", "note"),
        "kettle": Thing("kettle", "Copper, and ready to boil.", "tea room", "tap water", "It belongs to everybody."),
        "mug": Thing(
            "mug",
            "As big as a bucket, and on it: “World's Best Dragon”. Somebody was hoping.",
            "tea room",
            "cup bucket tea",
            later={"brewed": "A bucket of strong tea. It steams."},
        ),
        "ladder": Thing("ladder", "It rolls, and it squeaks.", "stacks", "wheels shelf shelves", "It is on rails."),
        "two": Thing("volume two", "“Knitting for Beginners, volume two: How to Stop”.", "", "book two second vol"),
        "dragon": Thing(
            "dragon",
            "Red, long, and asleep on Special Collections. It smells of wool and struck matches.",
            "lair",
            "beast wyrm",
            "You consider it, and then you consider your arms.",
            alive=True,
            later={"woken": "Awake, in reading spectacles, with a needle in each claw. It looks tired of its scarf."},
        ),
        "scarf": Thing(
            "scarf",
            "Forty yards of it, without a dropped stitch, and without an end.",
            "lair",
            "wool knitting needles",
            "It is still on the needles, and the needles are in the dragon.",
            later={"returned": "It has an end now, with tassels."},
        ),
        "one": Thing(
            "Knitting for Beginners", "Volume one. Slightly singed, and much loved.", "", "book knitting one beginners"
        ),
    },
    deeds=(
        Deed(
            "talk",
            ("quill",),
            "“The dragon?” he whispers. “Never wake it without tea. Strong. And I should not mention the fine: it has "
            "reached eleven thousand pounds.”",
            then="asked",
        ),
        Deed("talk", ("quill",), "“Tea first,” whispers Mr. Quill, “and bring the book here to be stamped.”"),
        Deed(
            "use",
            ("kettle", "mug"),
            "You fill the kettle, boil it, and make tea in the biggest mug there is. It could float a spoon.",
            then="brewed",
            brings=("mug",),
        ),
        Deed("use", ("kettle",), "It boils. Tea would want a mug, though."),
        Deed(
            "use",
            ("mug", "dragon"),
            "You hold the mug under its nose. A nostril opens, then an eye, then the other one. “Milk,” says the "
            "dragon, “in first. But thank you.” It drinks it all, and puts its spectacles on.",
            needs=("brewed",),
            then="woken",
            spends=("mug",),
        ),
        Deed("use", ("mug", "dragon"), "An empty mug wakes nobody."),
        Deed(
            "talk",
            ("dragon",),
            "“I know, I know. But chapter nine ends with “now continue as above”. It has been as above for three "
            "hundred years! Nobody says how one stops. Is there no second volume?”",
            needs=("woken",),
            then="told",
        ),
        Deed(
            "talk",
            ("dragon",),
            "“Volume two,” says the dragon. “K, on the top shelf, unless they have moved it.”",
            needs=("woken",),
        ),
        Deed("talk", ("dragon",), "“Zzzz,” says the dragon. A bit of wool catches fire, and goes out again."),
        Deed(
            "use",
            ("ladder",),
            "You climb to the top shelf. K: Kettles, Kings, Knees, Knitting. There is a second volume, “How to Stop”, "
            "and nobody has ever borrowed it. You take it down with you.",
            needs=("told",),
            then="found",
            brings=("two",),
        ),
        Deed(
            "use",
            ("ladder",),
            "You climb to the top shelf, under K. Dust, and a great many books. If you knew which one you wanted, this "
            "would be the place.",
        ),
        Deed(
            "use",
            ("two", "dragon"),
            "The dragon reads with its lips moving. “Cast … off,” it says. “Oh. Is that all?” The needles click, and "
            "the scarf, after three hundred and twelve years, ends. It gives you “Knitting for Beginners”, and both "
            "of you pretend that there is something in its eye.",
            then="returned",
            brings=("one",),
            spends=("two",),
        ),
        Deed(
            "use",
            ("one", "stamp"),
            "RETURNED. It sounds through the whole library. Mr. Quill laughs, aloud, for the first time since he was "
            "hired. As to the fine, somebody has left a sack of gold at the desk, and a very long scarf in your size.",
            at="desk",
            then="stamped",
        ),
        Deed("use", ("stamp",), "You stamp the desk: RETURNED. It had never been away."),
    ),
    hints=(
        ("asked", "Mr. Quill, at the front desk, has dealt with the dragon before. Talk to him."),
        ("brewed", "Make tea: take the mug in the tea room, and use the kettle with it."),
        ("woken", "Carry the tea down to the dragon: through the stacks, down the spiral stair."),
        ("told", "The dragon is awake. Talk to it, and find out why it has kept the book."),
        ("found", "There is a second volume, high up in the stacks. Use the ladder."),
        ("returned", "Give volume two to the dragon."),
        ("stamped", "Take the book to the front desk, and stamp it."),
    ),
)
