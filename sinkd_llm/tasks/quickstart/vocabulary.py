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


def _aspect(name: str, be: str, good: str, bad: str) -> Aspect:
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
            _aspect("the plot", "was", "gripping clever original", "predictable confusing thin"),
            _aspect("the acting", "was", "superb convincing moving", "wooden lifeless stiff"),
            _aspect("the dialogue", "was", "witty sharp natural", "clumsy flat awkward"),
            _aspect("the special effects", "were", "dazzling impressive", "cheap ugly laughable"),
            _aspect("the ending", "was", "satisfying touching brilliant", "rushed silly tedious"),
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
            _aspect("the soup", "was", "delicious rich fragrant", "bland watery salty"),
            _aspect("the waiters", "were", "friendly attentive charming", "rude careless grumpy"),
            _aspect("the desserts", "were", "heavenly fresh memorable", "stale dry tasteless"),
            _aspect("the dining room", "was", "cosy elegant inviting", "noisy cramped gloomy"),
            _aspect("the bill", "was", "fair reasonable modest", "outrageous absurd excessive"),
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
            _aspect("the room", "was", "spotless bright comfortable", "filthy damp shabby"),
            _aspect("the bed", "was", "soft comfortable heavenly", "lumpy uncomfortable dirty"),
            _aspect("the staff", "were", "helpful kind welcoming", "unhelpful rude lazy"),
            _aspect("the breakfast", "was", "generous delicious varied", "miserable stale meagre"),
            _aspect("the view", "was", "breathtaking lovely splendid", "depressing bleak ugly"),
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
            _aspect("the story", "was", "captivating original moving", "dull confusing predictable"),
            _aspect("the characters", "were", "believable lovable vivid", "shallow tiresome lifeless"),
            _aspect("the prose", "was", "elegant beautiful vivid", "clumsy pompous flat"),
            _aspect("the opening chapter", "was", "gripping brilliant funny", "slow tedious muddled"),
            _aspect("the final chapter", "was", "thrilling touching clever", "rushed silly disappointing"),
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
            _aspect("the battery", "was", "reliable impressive excellent", "weak unreliable hopeless"),
            _aspect("the screen", "was", "sharp bright gorgeous", "blurry dim grainy"),
            _aspect("the camera", "was", "superb impressive fantastic", "useless mediocre awful"),
            _aspect("the buttons", "were", "responsive solid handy", "flimsy stiff wobbly"),
            _aspect("the sound", "was", "clear rich excellent", "tinny muffled harsh"),
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
            _aspect("the teacher", "was", "inspiring patient brilliant", "impatient arrogant boring"),
            _aspect("the lectures", "were", "lively clear fascinating", "dull chaotic tedious"),
            _aspect("the exercises", "were", "useful fun rewarding", "pointless repetitive unclear"),
            _aspect("the handouts", "were", "helpful clear thorough", "sloppy outdated useless"),
            _aspect("the feedback", "was", "kind detailed valuable", "vague harsh worthless"),
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
    Domain(
        thing="concert",
        first=("attend", "attended"),
        again="attend",
        aspects=(
            _aspect("the singer", "was", "magnetic superb radiant", "tuneless shrill sloppy"),
            _aspect("the band", "was", "tight energetic brilliant", "sluggish clumsy joyless"),
            _aspect("the songs", "were", "beautiful catchy memorable", "forgettable repetitive dreary"),
            _aspect("the sound", "was", "crisp warm flawless", "muddy deafening distorted"),
            _aspect("the light show", "was", "dazzling magical stunning", "cheap tacky pathetic"),
        ),
        verdicts=(
            ("I have tickets for the next three shows", "I danced the whole night"),
            ("I went home after four songs", "I sold my ticket for the second night"),
        ),
        events=(
            ("strangers were hugging each other", "they had to play four encores"),
            ("the singer forgot the words three times", "the crowd had left before the encore"),
        ),
        pleasures=(
            ("singing along until you lose your voice", "goosebumps from the first note"),
            ("listening to a cat in a washing machine", "staring at the back of a pillar"),
        ),
        endings=("the last song", "going home"),
    ),
    Domain(
        thing="train journey",
        first=("make", "made"),
        again="make",
        aspects=(
            _aspect("the seats", "were", "comfortable roomy soft", "hard filthy cramped"),
            _aspect("the conductor", "was", "polite cheerful helpful", "grumpy rude unfriendly"),
            _aspect("the carriage", "was", "clean quiet airy", "smelly stuffy noisy"),
            _aspect("the scenery", "was", "gorgeous stunning peaceful", "dreary monotonous bleak"),
            _aspect("the coffee on board", "was", "excellent strong tasty", "undrinkable lukewarm vile"),
        ),
        verdicts=(
            ("I will never fly again", "I have already planned the next one"),
            ("I am going to take the car next time", "I wrote a long letter of complaint"),
        ),
        events=(
            ("I arrived more rested than I had left", "my children asked if we could stay on board"),
            ("we stood in a field for three hours", "the toilet door came off in my hand"),
        ),
        pleasures=(
            ("arriving to the minute", "watching mountains with your feet up"),
            ("standing for five hours next to a toilet", "missing every single connection"),
        ),
        endings=("getting off", "the moment we reached the terminus"),
    ),
    Domain(
        thing="video game",
        first=("play", "played"),
        again="play",
        aspects=(
            _aspect("the puzzles", "were", "ingenious clever rewarding", "tedious unfair pointless"),
            _aspect("the graphics", "were", "beautiful stunning charming", "ugly crude blurry"),
            _aspect("the controls", "were", "smooth precise intuitive", "sluggish awkward maddening"),
            _aspect("the story", "was", "gripping touching funny", "incoherent shallow dull"),
            _aspect("the music", "was", "lovely haunting catchy", "irritating monotonous shrill"),
        ),
        verdicts=(
            ("I finished it three times", "I bought copies for all my cousins"),
            ("I deleted it the same evening", "I traded it in for a sandwich"),
        ),
        events=(
            ("I looked up and it was morning", "my grandmother will not give the controller back"),
            ("it crashed before the first menu", "it lost my progress four times"),
        ),
        pleasures=(
            ("losing all track of time", "grinning after every level"),
            ("watching a loading screen", "doing the same errand ninety times"),
        ),
        endings=("switching it off", "the closing credits"),
    ),
    Domain(
        thing="museum",
        first=("visit", "visited"),
        again="visit",
        aspects=(
            _aspect("the paintings", "were", "magnificent striking beautiful", "mediocre drab uninspired"),
            _aspect("the guide", "was", "witty knowledgeable delightful", "boring clueless arrogant"),
            _aspect("the café", "was", "charming cosy pleasant", "dirty overpriced dismal"),
            _aspect("the garden", "was", "peaceful enchanting lovely", "neglected dreary shabby"),
            _aspect("the labels", "were", "clear informative amusing", "illegible confusing useless"),
        ),
        verdicts=(
            ("we stayed until they locked the doors", "I have bought a pass for the whole year"),
            ("we were outside again after ten minutes", "I would not send my worst enemy there"),
        ),
        events=(
            ("my teenage son put away his phone", "we went round three times"),
            ("the main hall was closed and nobody told us", "the guard was the liveliest exhibit"),
        ),
        pleasures=(
            ("standing in front of something with your mouth open", "learning without noticing it"),
            ("reading about gravel for an hour", "queueing in the dust for an empty room"),
        ),
        endings=("closing time", "finding the exit"),
    ),
    Domain(
        thing="podcast",
        first=("discover", "discovered"),
        again="listen to",
        aspects=(
            _aspect("the host", "was", "charming insightful funny", "smug annoying dull"),
            _aspect("the guests", "were", "fascinating brilliant delightful", "tiresome pompous unprepared"),
            _aspect("the jokes", "were", "hilarious clever fresh", "lame stale cringeworthy"),
            _aspect("the research", "was", "thorough impressive careful", "sloppy shoddy superficial"),
            _aspect("the editing", "was", "crisp elegant skilful", "choppy amateurish careless"),
        ),
        verdicts=(
            ("I have heard every episode twice", "I look forward to it all week"),
            ("I switched it off after five minutes", "I removed it from my list"),
        ),
        events=(
            ("I sat in the parked car until it was over", "I laughed so loudly that the bus turned round"),
            ("they spent ten minutes on a sneeze", "the guest hung up in the middle"),
        ),
        pleasures=(
            ("hearing clever people think aloud", "smiling at strangers on the bus"),
            ("listening to two men chew", "ninety minutes of advertisements"),
        ),
        endings=("the end of each episode", "switching it off"),
    ),
    Domain(
        thing="bicycle",
        first=("buy", "bought"),
        again="ride",
        aspects=(
            _aspect("the brakes", "were", "reliable smooth excellent", "useless squeaky dangerous"),
            _aspect("the saddle", "was", "comfortable soft sturdy", "painful wobbly cheap"),
            _aspect("the frame", "was", "light elegant solid", "heavy flimsy ugly"),
            _aspect("the gears", "were", "precise quiet dependable", "noisy jerky unreliable"),
            _aspect("the paintwork", "was", "gorgeous flawless stylish", "sloppy patchy hideous"),
        ),
        verdicts=(
            ("I ride it to work every day", "I would buy the same one again"),
            ("I sold it after a month", "I have gone back to walking"),
        ),
        events=(
            ("I passed a motorbike on the hill", "my neighbour ordered one the next day"),
            ("the chain fell off at the first corner", "I pushed it home from the shop"),
        ),
        pleasures=(
            ("flying up hills without effort", "overtaking everybody else"),
            ("walking home with oil on your hands", "falling off at traffic lights"),
        ),
        endings=("getting off", "locking it up in the cellar"),
    ),
)
