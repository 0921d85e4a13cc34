"""The 11:58 to Anywhere: make a stopped clock go."""

from __future__ import annotations

from ..story import Deed, Exit, Place, Story, Thing

STATION = Story(
    title="The 11:58 to Anywhere",
    blurb="The last train leaves at 11:58. The station clock stopped at 11:57, some time ago.",
    opening=(
        "You have a ticket for the 11:58, and you were early. That was on Thursday. The station clock says 11:57, as "
        "it has said ever since, and the conductor goes by the clock."
    ),
    start="platform",
    places={
        "platform": Place(
            "The platform",
            "One train, lit and ready, and one conductor with his whistle half raised. There is a bench. The hall is "
            "to the north, and above it is the clock: 11:57.",
            {"north": Exit("hall")},
            {
                "running": (
                    "One train, one conductor, and a clock that goes. It is time to board. The hall is to the north."
                ),
            },
        ),
        "hall": Place(
            "The hall",
            "A machine that sells sandwiches, and a window marked LOST PROPERTY, with a clerk in it. The waiting room "
            "is to the east, a narrow stair goes up to the clock, and the platform is to the south.",
            {"south": Exit("platform"), "east": Exit("waiting room"), "up": Exit("tower")},
        ),
        "waiting room": Place(
            "The waiting room",
            "A cold stove and a poster of the sea. Everybody who ever waited here has either left or become "
            "furniture. The hall is to the west.",
            {"west": Exit("hall")},
        ),
        "tower": Place(
            "Behind the clock",
            "The back of the great clock, all wheels and no time. In the largest wheel lives a mouse, in a nest of old "
            "timetables. Beside it is a square hole, the kind that wants a crank. The stair goes down.",
            {"down": Exit("hall")},
            {
                "moved": (
                    "The back of the great clock. The wheels are free, and a square hole wants a crank. The stair goes "
                    "down."
                ),
                "running": "Tick, says everything in here. Tock. The stair goes down.",
            },
        ),
    },
    things={
        "conductor": Thing(
            "conductor",
            "His buttons shine. He has the patience of a man with a rule book.",
            "platform",
            "man guard",
            "He does not go before 11:58 either.",
            alive=True,
        ),
        "train": Thing(
            "train",
            "“Anywhere”, it says on the front. There is a window seat.",
            "platform",
            "carriage seat",
            "It leaves at 11:58. Then it takes you.",
        ),
        "dial": Thing(
            "station clock",
            "11:57. Now and then the minute hand trembles, as if it were about to say something.",
            "platform",
            "dial hands",
            "It is up there, and you are down here. There is a stair in the hall.",
            later={"running": "11:58, and not a minute too soon."},
        ),
        "bench": Thing(
            "bench",
            "Hard, green, and with gaps that things fall into.",
            "platform",
            "gap gaps",
            "It is holding up the platform.",
        ),
        "coin": Thing("coin", "Small change, in every sense.", "", "money penny"),
        "machine": Thing(
            "sandwich machine",
            "One sandwich left: cheese. It takes coins, and its time.",
            "hall",
            "vending slot",
            "It is heavier than it is kind.",
            later={"bought": "Sold out."},
        ),
        "clerk": Thing(
            "clerk",
            "She has a ledger, a lamp, and behind her one thousand and one umbrellas. No: one thousand.",
            "hall",
            "woman window lady property",
            "She is property, but not lost.",
            alive=True,
            later={"traded": "She has her ledger, her lamp, and all one thousand and one umbrellas."},
        ),
        "umbrella": Thing("umbrella", "Tartan. On the handle: “No. 1001”.", "waiting room", "brolly tartan 1001"),
        "poster": Thing(
            "poster", "“Come to the sea”. It has been raining on it.", "waiting room", "sea", "It is glued on."
        ),
        "sandwich": Thing("cheese sandwich", "Mostly sandwich. Some cheese.", "", "bread"),
        "crank": Thing("crank", "Iron, with a square end. Handed in, says the tag, in 1974.", "", "iron handle"),
        "mouse": Thing(
            "mouse",
            "Small, and by its own lights a householder.",
            "tower",
            "nest",
            "It is quicker than you are, and it lives here.",
            alive=True,
            later={"moved": "It sits on the sill with the cheese, and watches the wheels with interest."},
        ),
        "clock": Thing(
            "clock",
            "Wheels as tall as you. A mouse lives in the largest one.",
            "tower",
            "wheel wheels hole gears",
            "It is the station's, and so is the building.",
            later={"moved": "The wheels are free. It is only run down.", "running": "It goes, and means it."},
        ),
    },
    deeds=(
        Deed(
            "talk",
            ("conductor",),
            "“11:58,” says the conductor, “and it is 11:57. I don't make the time. The clock does, up there, when it "
            "is wound. There was a crank once. Handed in as lost, I dare say.”",
            then="asked",
        ),
        Deed("talk", ("conductor",), "“All aboard!” says the conductor, who has waited for this.", needs=("running",)),
        Deed("talk", ("conductor",), "“11:57,” says the conductor. “Up the stair, from the hall, if you are handy.”"),
        Deed(
            "look",
            ("bench",),
            "You feel about in the gaps: a hairpin, a summer, and a coin. You keep the coin.",
            then="searched",
            brings=("coin",),
        ),
        Deed("look", ("bench",), "The hairpin is still there. So, a little faded, is the summer."),
        Deed("use", ("bench",), "You sit. Something in a gap of the bench goes clink. One might have a look."),
        Deed(
            "use",
            ("coin", "machine"),
            "The machine takes your coin, hums a little, and lets go of a cheese sandwich.",
            then="bought",
            brings=("sandwich",),
            spends=("coin",),
        ),
        Deed("use", ("machine",), "It wants a coin first."),
        Deed(
            "talk",
            ("clerk",),
            "“A crank? We have a crank. But I can't hand out a thing while the ledger is short: one thousand and one "
            "umbrellas came in, and here are one thousand. Bring me number 1001, and we can talk.”",
            then="clerk asked",
        ),
        Deed("talk", ("clerk",), "“The books are straight,” she says. “I could dance.”", needs=("traded",)),
        Deed("talk", ("clerk",), "“Number 1001,” says the clerk. “Tartan. People leave them where they wait.”"),
        Deed(
            "use",
            ("umbrella", "clerk"),
            "She reads the number, and then reads it again. “1001!” She makes a small, perfect tick in the ledger, and "
            "passes a crank out of the window. “It never was much of an umbrella,” she says.",
            then="traded",
            brings=("crank",),
            spends=("umbrella",),
        ),
        Deed(
            "use",
            ("sandwich", "mouse"),
            "You put the sandwich on the sill. The mouse leaves the wheel, inspects the bread, files it, and sits "
            "down to the cheese. The wheels are free.",
            then="moved",
            spends=("sandwich",),
        ),
        Deed("talk", ("mouse",), "The mouse says nothing, but in a way that means: not without cheese."),
        Deed("use", ("mouse",), "It would rather not. Unless, its whiskers say, there were something to eat."),
        Deed(
            "use",
            ("crank", "clock"),
            "You set the crank into the square hole and wind. Tick. The minute hand shivers, sighs, and drops: 11:58. "
            "From the platform comes a whistle that has been held back for a very long time.",
            needs=("moved",),
            then="running",
        ),
        Deed("use", ("crank", "clock"), "There is a mouse in the wheel. You could not look yourself in the face."),
        Deed("use", ("clock",), "It wants winding, and that takes a crank."),
        Deed(
            "use",
            ("train",),
            "You take the window seat. The conductor blows his whistle twice, once for you and once for himself, and "
            "the 11:58 leaves for Anywhere, on time. Behind you a mouse leans from the clock and waves a bit of "
            "cheese.",
            needs=("running",),
            then="aboard",
        ),
        Deed("use", ("train",), "The conductor coughs. It is 11:57, and the doors open at 11:58."),
    ),
    hints=(
        ("asked", "The conductor, on the platform, knows what he is waiting for. Talk to him."),
        ("clerk asked", "In the hall there is Lost Property. Talk to the clerk about the crank."),
        ("traded", "Somebody left an umbrella in the waiting room. The clerk would be glad of it."),
        ("searched", "Things fall into the gaps of a bench. Look at the one on the platform."),
        ("bought", "You have a coin, and in the hall there is a machine."),
        ("moved", "What would a mouse leave its home for? You have the sandwich: use it with the mouse."),
        ("running", "Use the crank with the clock."),
        ("aboard", "It is 11:58. Go to the platform and board the train."),
    ),
)
