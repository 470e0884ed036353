"""Words for the generator of the `quickstart` data: one entry a domain, each phrase fit for every frame."""

from typing import NamedTuple


class Aspect(NamedTuple):
    """A part of a thing one can have an opinion on, with adjectives that only praise or only blame it."""

    name: str
    be: str
    good: tuple[str, ...]
    bad: tuple[str, ...]


class Domain(NamedTuple):
    """
    A kind of thing people review.

    `first` and `again` are what one does with it: the first time (infinitive and past) and once more.
    `verdicts`, `events`, `pleasures` and `endings` are pairs (positive, negative), except `endings`: how
    the experience stops, which is welcome or sad depending on the frame.
    """

    thing: str
    first: tuple[str, str]
    again: str
    aspects: tuple[Aspect, ...]
    verdicts: tuple[tuple[str, ...], tuple[str, ...]]
    events: tuple[tuple[str, ...], tuple[str, ...]]
    pleasures: tuple[tuple[str, ...], tuple[str, ...]]
    endings: tuple[str, ...]


def aspect(name: str, be: str, good: str, bad: str) -> Aspect:
    """An aspect whose adjectives are parted by spaces."""
    return Aspect(name, be, tuple(good.split()), tuple(bad.split()))


GENERAL = (
    ("wonderful", "excellent", "a joy", "a real treat", "a delight"),
    ("dreadful", "awful", "a disappointment", "a waste of time", "a complete mess"),
)

CHORES = (
    "clean the oven",
    "stand in the rain for three hours",
    "do my taxes twice",
    "sit through a four-hour meeting",
    "peel potatoes all night",
    "paint a fence in January",
    "scrub the bathroom floor",
    "spend a day at the dentist",
)

DOMAINS = (
    Domain(
        thing="film",
        first=("watch", "watched"),
        again="watch",
        aspects=(
            aspect("the plot", "was", "gripping clever original", "predictable confusing thin"),
            aspect("the acting", "was", "superb convincing moving", "wooden lifeless stiff"),
            aspect("the dialogue", "was", "witty sharp natural", "clumsy flat awkward"),
            aspect("the special effects", "were", "dazzling impressive", "cheap ugly laughable"),
            aspect("the ending", "was", "satisfying touching brilliant", "rushed silly tedious"),
        ),
        verdicts=(
            ("I would watch it again tomorrow", "I told all my friends to see it"),
            ("I walked out before the end", "I want those two hours back"),
        ),
        events=(
            ("I forgot to touch my popcorn", "the whole audience stood up and clapped"),
            ("half of the audience was asleep by the interval", "the man behind me snored throughout"),
        ),
        pleasures=(
            ("laughing until your ribs hurt", "sitting on the edge of your seat"),
            ("guessing every twist an hour in advance", "two hours of people mumbling in the dark"),
        ),
        endings=("the moment the lights came back on", "walking out of the cinema"),
    ),
    Domain(
        thing="restaurant",
        first=("try", "tried"),
        again="eat at",
        aspects=(
            aspect("the soup", "was", "delicious rich fragrant", "bland watery salty"),
            aspect("the waiters", "were", "friendly attentive charming", "rude careless grumpy"),
            aspect("the desserts", "were", "heavenly fresh memorable", "stale dry tasteless"),
            aspect("the dining room", "was", "cosy elegant inviting", "noisy cramped gloomy"),
            aspect("the bill", "was", "fair reasonable modest", "outrageous absurd excessive"),
        ),
        verdicts=(
            ("we have booked again for Friday", "we could not stop smiling on the way home"),
            ("we will not be going back", "we went home hungry"),
        ),
        events=(
            ("we ordered everything a second time", "my father asked the cook for the recipe"),
            ("we found a hair in the soup", "our main course arrived cold after an hour"),
        ),
        pleasures=(
            ("food that melts in your mouth", "being spoiled by the kitchen"),
            ("chewing on shoe leather", "waiting an hour for cold chips"),
        ),
        endings=("having to leave", "the walk back to the car"),
    ),
    Domain(
        thing="hotel",
        first=("book", "booked"),
        again="stay at",
        aspects=(
            aspect("the room", "was", "spotless bright comfortable", "filthy damp shabby"),
            aspect("the bed", "was", "soft comfortable heavenly", "lumpy uncomfortable dirty"),
            aspect("the staff", "were", "helpful kind welcoming", "unhelpful rude lazy"),
            aspect("the breakfast", "was", "generous delicious varied", "miserable stale meagre"),
            aspect("the view", "was", "breathtaking lovely splendid", "depressing bleak ugly"),
        ),
        verdicts=(
            ("we stayed two nights longer than planned", "we are coming back every summer"),
            ("we packed our bags after one night", "we warned everybody we know"),
        ),
        events=(
            ("the manager drove us to the station himself", "I slept better than I do at home"),
            ("a mouse ran over my pillow", "the water in the shower was brown"),
        ),
        pleasures=(
            ("being pampered from morning to night", "waking up to the sound of the sea"),
            ("sharing your bed with insects", "waking up to the sound of a drill"),
        ),
        endings=("checking out", "the day we had to leave"),
    ),
    Domain(
        thing="novel",
        first=("read", "read"),
        again="read",
        aspects=(
            aspect("the story", "was", "captivating original moving", "dull confusing predictable"),
            aspect("the characters", "were", "believable lovable vivid", "shallow tiresome lifeless"),
            aspect("the prose", "was", "elegant beautiful vivid", "clumsy pompous flat"),
            aspect("the opening chapter", "was", "gripping brilliant funny", "slow tedious muddled"),
            aspect("the final chapter", "was", "thrilling touching clever", "rushed silly disappointing"),
        ),
        verdicts=(
            ("I have bought a copy for my mother", "I could not put it down"),
            ("I gave up after sixty pages", "I threw it in the bin"),
        ),
        events=(
            ("I missed my stop twice because of it", "I read until four in the morning"),
            ("I used it to prop up a table", "I fell asleep on the second page every night"),
        ),
        pleasures=(
            ("staying up all night to find out more", "crying and laughing on the same page"),
            ("forty pages about a garden wall", "checking how many pages are left"),
        ),
        endings=("reaching the last page", "closing it for good"),
    ),
    Domain(
        thing="phone",
        first=("buy", "bought"),
        again="use",
        aspects=(
            aspect("the battery", "was", "reliable impressive excellent", "weak unreliable hopeless"),
            aspect("the screen", "was", "sharp bright gorgeous", "blurry dim grainy"),
            aspect("the camera", "was", "superb impressive fantastic", "useless mediocre awful"),
            aspect("the buttons", "were", "responsive solid handy", "flimsy stiff wobbly"),
            aspect("the sound", "was", "clear rich excellent", "tinny muffled harsh"),
        ),
        verdicts=(
            ("I bought a second one for my wife", "I would not swap it for any other"),
            ("I sent it back within a week", "I went back to my old one"),
        ),
        events=(
            ("it survived three falls and a swim", "I charged it once in four days"),
            ("it died on the first morning", "it called my boss at midnight by itself"),
        ),
        pleasures=(
            ("taking pictures that look like paintings", "forgetting where your charger is"),
            ("staring at a frozen screen", "looking for a power socket every hour"),
        ),
        endings=("giving it away", "handing it back to the shop"),
    ),
    Domain(
        thing="course",
        first=("take", "took"),
        again="take",
        aspects=(
            aspect("the teacher", "was", "inspiring patient brilliant", "impatient arrogant boring"),
            aspect("the lectures", "were", "lively clear fascinating", "dull chaotic tedious"),
            aspect("the exercises", "were", "useful fun rewarding", "pointless repetitive unclear"),
            aspect("the handouts", "were", "helpful clear thorough", "sloppy outdated useless"),
            aspect("the feedback", "was", "kind detailed valuable", "vague harsh worthless"),
        ),
        verdicts=(
            ("I signed up for the next one the same day", "I learned more than in a year of school"),
            ("I stopped going after two weeks", "I asked for a refund"),
        ),
        events=(
            ("nobody noticed that the hour was over", "even my brother did his homework"),
            ("the teacher read his own slides aloud", "we copied a textbook by hand for a month"),
        ),
        pleasures=(
            ("being asked what you think", "understanding things at the first try"),
            ("listening to a man talk to a wall", "being shouted at before breakfast"),
        ),
        endings=("the last day", "the end of the final class"),
    ),
)
