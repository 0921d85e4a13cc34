"""The Lamp at Grimble Point: light a lighthouse."""

from __future__ import annotations

from ..story import Deed, Exit, Place, Story, Thing

LIGHTHOUSE = Story(
    title="The Lamp at Grimble Point",
    blurb="The lighthouse is dark, the mail boat is on its way, and there is a gull with opinions.",
    opening=(
        "Your first evening as assistant keeper of the lighthouse at Grimble Point. Fog is coming in, the mail boat is "
        "due at nine, and the lamp is out. The advertisement had called the post “quiet”."
    ),
    start="jetty",
    places={
        "jetty": Place(
            "The jetty",
            "Wet planks, a rowing boat called Probably, and a gull that sits on a biscuit tin as if it had paid for "
            "it. The lighthouse door stands open to the north.",
            {"north": Exit("kitchen")},
            {"fed": "Wet planks, and a rowing boat called Probably. The gull is busy. The door is to the north."},
        ),
        "kitchen": Place(
            "The keeper's kitchen",
            "A warm stove, and beside it Mrs. Odd, the keeper, one leg in plaster and the other in a temper. In the "
            "floor there is a cellar door; a stair goes up and does not look like stopping. The jetty is to the "
            "south.",
            {
                "south": Exit("jetty"),
                "down": Exit("cellar", "unlocked", "The cellar door is locked. It looks open to a key, though."),
                "up": Exit("stair"),
            },
        ),
        "cellar": Place(
            "The cellar",
            "Cool, dark, and smelling of lamp oil, most of which is in a large barrel with a tap. The kitchen is up.",
            {"up": Exit("kitchen")},
        ),
        "stair": Place(
            "The stair",
            "Step ninety-nine, says a small brass plate, and beneath it somebody has scratched: “halfway, and no, it "
            "does not get better”. Through the window there is fog, and in the fog a ship's bell.",
            {"up": Exit("lamp room"), "down": Exit("kitchen")},
        ),
        "lamp room": Place(
            "The lamp room",
            "Glass on all sides, and fog behind the glass. In the middle stands the great lamp, as cold as a landlord. "
            "The stair goes down.",
            {"down": Exit("stair")},
            {"filled": "Glass on all sides, and fog behind it. The great lamp is full of oil and wants only a flame."},
        ),
    },
    things={
        "gull": Thing(
            "gull",
            "A large gull with small eyes, on a biscuit tin. The tin rattles when it shifts. It looks at your hands, "
            "and is disappointed in them.",
            "jetty",
            "bird seagull",
            "You reach for the gull. The gull reaches for you. You agree to leave it at that.",
            alive=True,
            later={"fed": "It has the herring, and the look of somebody who is not to be disturbed at dinner."},
        ),
        "tin": Thing(
            "biscuit tin",
            "“Assorted”, it says. It has a gull on it, and something in it that rattles like a box of matches.",
            "jetty",
            "biscuits box lid",
            "There is a gull on it. You would have to interest the gull in something else.",
            later={"fed": "Empty now. It never had any biscuits."},
        ),
        "boat": Thing(
            "rowing boat",
            "Probably floats. That is her whole name, and her whole record.",
            "jetty",
            "probably",
            "You are needed on land.",
        ),
        "odd": Thing(
            "Mrs. Odd",
            "Keeper for forty years. The plaster has been signed by the doctor, the postman, and a gull.",
            "kitchen",
            "keeper woman lady",
            "She is nobody's to take.",
            alive=True,
        ),
        "stove": Thing("stove", "Warm, and quite enough to do.", "kitchen", "fire", "It is bolted down, and lit."),
        "door": Thing(
            "cellar door",
            "Oak, iron and a keyhole.",
            "kitchen",
            "hatch trapdoor lock keyhole",
            "It is part of the floor.",
            later={"unlocked": "Open. Cool air and a smell of oil come up."},
        ),
        "herring": Thing(
            "herring", "A smoked herring, of the kind that follows you about.", "kitchen", "fish kipper smoked food"
        ),
        "key": Thing("iron key", "As long as your hand, and on its tag: “down”.", "", "iron"),
        "can": Thing("oil can", "It holds a gallon.", "cellar", "gallon", later={"drawn": "Full to the brim."}),
        "barrel": Thing("barrel", "Lamp oil, the best. The tap works.", "cellar", "tap", "It would take six of you."),
        "plate": Thing(
            "brass plate", "“99”. The one at the top says “199, sorry”.", "stair", "99", "It is screwed on."
        ),
        "bell": Thing(
            "ship's bell", "Somewhere out there, and not very far.", "stair", "ship fog window", "It is out at sea."
        ),
        "lamp": Thing(
            "great lamp",
            "Brass, and as tall as you. It is as dry as a sermon.",
            "lamp room",
            "light wick",
            "The mail boat would have something to say to that.",
            later={"filled": "It is full. The wick waits."},
        ),
        "matches": Thing("matches", "A dry box, after all that.", "", "match"),
    },
    deeds=(
        Deed(
            "talk",
            ("odd",),
            "“There you are. I'd go up myself, but for the leg. Oil's in the cellar, matches are in the biscuit tin, "
            "and the tin's wherever that gull has dragged it. Get the lamp lit before nine.” She gives you an iron "
            "key.",
            then="asked",
            brings=("key",),
        ),
        Deed(
            "talk",
            ("odd",),
            "“Oil from the cellar, matches from the gull, and up to the lamp with both. That gull likes herring. It "
            "likes little else.”",
        ),
        Deed("talk", ("gull",), "“Ark,” says the gull. You feel that you have lost the argument."),
        Deed(
            "use",
            ("gull", "herring"),
            "You hold out the herring. The gull weighs it against the tin, and the herring wins. In the tin, where "
            "biscuits have never been, there are matches. You take them.",
            then="fed",
            brings=("matches",),
            spends=("herring",),
        ),
        Deed("use", ("tin",), "It is empty, now that you have the matches.", needs=("fed",)),
        Deed("use", ("tin",), "There is a gull on the lid. Somebody would have to interest it in something else."),
        Deed(
            "use",
            ("key", "door"),
            "The key turns, and the cellar door opens with the noise that cellar doors practise for. You can go down.",
            then="unlocked",
        ),
        Deed("use", ("door",), "Locked. Mrs. Odd watches you find that out."),
        Deed(
            "use",
            ("can", "barrel"),
            "You hold the can under the tap. Glug, says the barrel, and the can is full.",
            then="drawn",
            brings=("can",),
        ),
        Deed("use", ("barrel",), "Oil runs over your shoes. It would go better with a can."),
        Deed(
            "use",
            ("can", "lamp"),
            "You pour the oil into the great lamp. It takes all of it, and seems in a better mood.",
            needs=("drawn",),
            then="filled",
        ),
        Deed("use", ("can", "lamp"), "The can is empty, and the lamp is not impressed."),
        Deed(
            "use",
            ("matches", "lamp"),
            "The wick catches, and then the whole tower is full of light. It goes out over the water like an arm, "
            "once around and again, and out in the fog a ship's horn says thank you. From the kitchen, faintly: "
            "“About time!” On the railing, the gull looks as if it had been its idea.",
            needs=("filled",),
            then="lit",
        ),
        Deed(
            "use", ("matches", "lamp"), "The wick glows, sulks and goes out. A lamp needs oil before it needs a flame."
        ),
        Deed("use", ("lamp",), "It needs oil, and then a flame. You look for a switch all the same, and find none."),
    ),
    hints=(
        ("asked", "Somebody in the kitchen knows where everything is. Talk to her."),
        ("unlocked", "You were given a key, and in the kitchen floor there is a door."),
        (
            "fed",
            "The matches are in the tin, and the gull is on the tin. What does a gull like better? Try the kitchen.",
        ),
        ("drawn", "The oil is in the cellar: use the can with the barrel."),
        ("filled", "Carry the can to the top of the tower, and use it with the lamp."),
        ("lit", "The lamp is full. You have matches. The rest is history."),
    ),
)
