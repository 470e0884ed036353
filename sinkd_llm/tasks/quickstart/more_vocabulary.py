"""More kinds of things, of which only statements without labels speak."""

from sinkd_llm.tasks.quickstart.vocabulary import Domain, aspect

MORE_DOMAINS = (
    Domain(
        thing="concert",
        first=("hear", "heard"),
        again="go to",
        aspects=(
            aspect("the band", "was", "tight energetic stunning", "sloppy listless drunk"),
            aspect("the singer", "was", "magnificent expressive superb", "shrill hoarse bored"),
            aspect("the songs", "were", "catchy beautiful unforgettable", "monotonous forgettable dreary"),
            aspect("the light show", "was", "dazzling imaginative spectacular", "pathetic blinding feeble"),
            aspect("the hall", "was", "splendid airy elegant", "stuffy cramped grubby"),
        ),
        verdicts=(
            ("I bought every record on the way out", "we sang all the way home"),
            ("we left after the third song", "my ears hurt for a week"),
        ),
        events=(
            ("they played four encores", "strangers were hugging each other"),
            ("the singer forgot half of the words", "they started two hours late"),
        ),
        pleasures=(
            ("dancing until your feet give up", "goose bumps from the first note to the last"),
            ("guitars that are out of tune", "standing behind a pillar all evening"),
        ),
        endings=("the last song", "the moment the music stopped"),
    ),
    Domain(
        thing="museum",
        first=("visit", "visited"),
        again="visit",
        aspects=(
            aspect("the collection", "was", "remarkable rich astonishing", "meagre random dusty"),
            aspect("the guide", "was", "knowledgeable funny charming", "ignorant impatient surly"),
            aspect("the labels", "were", "clear informative witty", "illegible misleading faded"),
            aspect("the rooms", "were", "bright quiet beautiful", "dark overcrowded chilly"),
            aspect("the garden", "was", "lovely peaceful enchanting", "neglected muddy dismal"),
        ),
        verdicts=(
            ("we became members on the spot", "the children begged to stay"),
            ("we were back on the street in ten minutes", "I asked for my ticket money back"),
        ),
        events=(
            ("we stayed until they switched off the lights", "my son now wants to be a painter"),
            ("most of the rooms were closed", "a guard shouted at us for sitting down"),
        ),
        pleasures=(
            ("learning something new in every room", "standing alone before a masterpiece"),
            ("reading signs about signs", "queueing for a view of somebody's back"),
        ),
        endings=("closing time", "the way out"),
    ),
    Domain(
        thing="car",
        first=("buy", "bought"),
        again="drive",
        aspects=(
            aspect("the engine", "was", "smooth powerful dependable", "rough sluggish deafening"),
            aspect("the seats", "were", "comfortable roomy plush", "hard narrow wobbly"),
            aspect("the brakes", "were", "responsive precise trustworthy", "spongy squeaky dangerous"),
            aspect("the dashboard", "was", "tidy elegant readable", "cluttered confusing ugly"),
            aspect("the service", "was", "prompt honest friendly", "dishonest slow rude"),
        ),
        verdicts=(
            ("I smile at every red light", "my brother has ordered the same one"),
            ("I sold it at a loss", "I take the bus now"),
        ),
        events=(
            ("it started at once in the hardest frost", "it has not cost me a repair in nine years"),
            ("the door came off in my hand", "it broke down on the way home from the dealer"),
        ),
        pleasures=(
            ("gliding over the worst of roads", "passing every petrol station"),
            ("waiting for a tow truck at night", "rain on the inside of the window"),
        ),
        endings=("parking it", "handing over the keys"),
    ),
    Domain(
        thing="bicycle",
        first=("ride", "rode"),
        again="ride",
        aspects=(
            aspect("the frame", "was", "light sturdy handsome", "heavy flimsy crooked"),
            aspect("the gears", "were", "smooth precise flawless", "jerky noisy erratic"),
            aspect("the saddle", "was", "soft comfortable generous", "painful slippery lopsided"),
            aspect("the tyres", "were", "durable reliable grippy", "thin leaky worthless"),
            aspect("the lamp", "was", "bright handy steady", "dim loose useless"),
        ),
        verdicts=(
            ("I have not touched my car since", "I took the long way home"),
            ("it is rusting behind the shed", "I walked the rest of the way"),
        ),
        events=(
            ("I climbed the hill without noticing", "every neighbour asked where I got it"),
            ("the chain snapped on the first hill", "a pedal fell off in the middle of a crossing"),
        ),
        pleasures=(
            ("flying past a traffic jam", "hills that feel flat"),
            ("mending a puncture every morning", "oil on both of your trouser legs"),
        ),
        endings=("getting off", "locking it away for the winter"),
    ),
    Domain(
        thing="ferry",
        first=("take", "took"),
        again="board",
        aspects=(
            aspect("the cabin", "was", "clean cosy spotless", "filthy airless mouldy"),
            aspect("the crew", "were", "courteous cheerful helpful", "surly rude unhelpful"),
            aspect("the crossing", "was", "calm scenic delightful", "rough endless wretched"),
            aspect("the canteen", "was", "inviting affordable excellent", "disgusting overpriced grim"),
            aspect("the deck", "was", "spacious sunny pleasant", "greasy crowded freezing"),
        ),
        verdicts=(
            ("we have already booked the way back with them", "I would sail with them any day"),
            ("next time we fly", "I have never been so glad to see land"),
        ),
        events=(
            ("the captain showed the children the bridge", "we saw dolphins from our beds"),
            ("our luggage went to another island", "we sat in the harbour for nine hours"),
        ),
        pleasures=(
            ("the sea at sunrise with a warm coffee", "being rocked to sleep"),
            ("the smell of diesel at breakfast", "sleeping on the floor beside a fruit machine"),
        ),
        endings=("going ashore", "seeing the harbour come near"),
    ),
    Domain(
        thing="bakery",
        first=("discover", "discovered"),
        again="shop at",
        aspects=(
            aspect("the bread", "was", "crusty fresh delicious", "stale soggy burnt"),
            aspect("the cakes", "were", "moist heavenly gorgeous", "dry sickly rubbery"),
            aspect("the baker", "was", "friendly generous cheerful", "grumpy stingy arrogant"),
            aspect("the coffee", "was", "fragrant strong perfect", "lukewarm bitter undrinkable"),
            aspect("the rolls", "were", "crisp fluffy tasty", "limp tasteless tough"),
        ),
        verdicts=(
            ("I get up early for it", "I have gained two kilos and regret none of them"),
            ("I bake my own now", "the ducks got most of it"),
        ),
        events=(
            ("the queue reached around the corner and was worth it", "nothing was left on the plate but crumbs"),
            ("I broke a tooth on a bun", "there was mould under the icing"),
        ),
        pleasures=(
            ("warm croissants that fall apart in your hand", "the smell of cinnamon at dawn"),
            ("bread that could hold a door open", "counting flies behind the glass"),
        ),
        endings=("the last crumb", "the moment we left the shop"),
    ),
    Domain(
        thing="campsite",
        first=("try", "tried"),
        again="camp at",
        aspects=(
            aspect("the showers", "were", "spotless warm modern", "freezing clogged slimy"),
            aspect("the pitches", "were", "shady level spacious", "stony sloping swampy"),
            aspect("the beach", "was", "sandy clean gorgeous", "littered smelly rocky"),
            aspect("the owners", "were", "hospitable kind relaxed", "hostile petty greedy"),
            aspect("the nights", "were", "quiet starry magical", "noisy sleepless cold"),
        ),
        verdicts=(
            ("we have reserved the same place for next year", "the children still talk about it"),
            ("we moved to a motel", "we took down the tent before breakfast"),
        ),
        events=(
            ("the neighbours invited us to a barbecue", "we woke up to deer outside the tent"),
            ("our tent was under water by midnight", "a generator ran beside us all night"),
        ),
        pleasures=(
            ("counting shooting stars", "a swim before breakfast"),
            ("mosquitoes in every sock", "other people's loudspeakers at dawn"),
        ),
        endings=("packing up", "the drive home"),
    ),
    Domain(
        thing="podcast",
        first=("listen to", "listened to"),
        again="listen to",
        aspects=(
            aspect("the host", "was", "warm witty brilliant", "smug dull tiresome"),
            aspect("the interviews", "were", "insightful lively honest", "shallow rambling awkward"),
            aspect("the topics", "were", "fresh fascinating surprising", "trivial worn-out pointless"),
            aspect("the editing", "was", "crisp skilful flawless", "clumsy choppy amateurish"),
            aspect("the stories", "were", "moving gripping hilarious", "boring implausible feeble"),
        ),
        verdicts=(
            ("I heard every episode twice", "I now take the slow train on purpose"),
            ("I unsubscribed the same evening", "I went back to the radio"),
        ),
        events=(
            ("I sat in the parked car to hear the end", "my whole office listens to it now"),
            ("half of every episode is advertising", "they talked about their breakfast for an hour"),
        ),
        pleasures=(
            ("laughing out loud on a crowded bus", "thinking about one sentence for days"),
            ("people who laugh at their own jokes", "the sound of somebody chewing"),
        ),
        endings=("the end of each episode", "the moment it went silent"),
    ),
    Domain(
        thing="board game",
        first=("play", "played"),
        again="play",
        aspects=(
            aspect("the rules", "were", "simple clever elegant", "convoluted contradictory baffling"),
            aspect("the artwork", "was", "beautiful charming vivid", "ugly garish drab"),
            aspect("the pieces", "were", "solid handsome delightful", "flimsy brittle shoddy"),
            aspect("the theme", "was", "original thrilling imaginative", "bland stale tasteless"),
            aspect("the last round", "was", "tense exciting fair", "tedious chaotic arbitrary"),
        ),
        verdicts=(
            ("we played until three in the morning", "everybody asked where to buy it"),
            ("we gave it to the jumble sale", "we ended up watching television"),
        ),
        events=(
            ("even my teenage daughter put her phone away", "grandmother asked for a rematch"),
            ("it ended in tears before the second round", "four cards were missing from the box"),
        ),
        pleasures=(
            ("outwitting your best friends", "cheering at a roll of the dice"),
            ("reading a manual aloud for two hours", "watching others take their turns"),
        ),
        endings=("putting it back into the box", "the final score"),
    ),
    Domain(
        thing="gym",
        first=("join", "joined"),
        again="train at",
        aspects=(
            aspect("the trainers", "were", "patient motivating attentive", "pushy absent arrogant"),
            aspect("the machines", "were", "modern plentiful immaculate", "broken rusty outdated"),
            aspect("the changing room", "was", "clean warm spacious", "filthy smelly cramped"),
            aspect("the classes", "were", "fun varied rewarding", "repetitive overcrowded dull"),
            aspect("the music", "was", "lively tasteful uplifting", "deafening monotonous awful"),
        ),
        verdicts=(
            ("I have never felt better", "I signed up my whole family"),
            ("I cancelled within a month", "I run in the park now"),
        ),
        events=(
            ("they remembered my name on the second day", "my back has stopped hurting"),
            ("they charged me twice and kept the money", "somebody stole my shoes"),
        ),
        pleasures=(
            ("feeling ten years younger", "being cheered on by strangers"),
            ("queueing for a treadmill", "other people's sweat on the handles"),
        ),
        endings=("the way home", "handing in my card"),
    ),
    Domain(
        thing="jacket",
        first=("order", "ordered"),
        again="wear",
        aspects=(
            aspect("the fabric", "was", "soft durable luxurious", "scratchy flimsy stiff"),
            aspect("the cut", "was", "flattering stylish perfect", "baggy shapeless frumpy"),
            aspect("the zip", "was", "smooth sturdy reliable", "jammed crooked fragile"),
            aspect("the colours", "were", "gorgeous vivid tasteful", "faded hideous drab"),
            aspect("the pockets", "were", "roomy practical handy", "tiny useless torn"),
        ),
        verdicts=(
            ("I wear it every day", "I ordered it in two more colours"),
            ("it went straight back to the shop", "the dog sleeps on it now"),
        ),
        events=(
            ("a stranger asked me where I had found it", "it kept me dry through a whole storm"),
            ("a sleeve came off in the first wash", "it turned my shirt purple"),
        ),
        pleasures=(
            ("compliments from strangers", "being warm in a blizzard"),
            ("cold wind on your kidneys", "looking like a sack of potatoes"),
        ),
        endings=("taking it off", "putting it back on the hanger"),
    ),
    Domain(
        thing="vacuum cleaner",
        first=("try out", "tried out"),
        again="use",
        aspects=(
            aspect("the suction", "was", "powerful impressive thorough", "weak pitiful erratic"),
            aspect("the hose", "was", "flexible long sturdy", "short leaky brittle"),
            aspect("the motor", "was", "quiet efficient dependable", "deafening smelly unreliable"),
            aspect("the manual", "was", "clear concise helpful", "incomprehensible wrong sloppy"),
            aspect("the battery", "was", "durable excellent reliable", "hopeless feeble useless"),
        ),
        verdicts=(
            ("I have bought one for my parents, too", "I almost look forward to cleaning"),
            ("I use the broom again", "I returned it the next morning"),
        ),
        events=(
            ("even the cat hair came off the sofa", "it was as good as new after six years"),
            ("it blew the dust back into the room", "smoke came out of it on the second day"),
        ),
        pleasures=(
            ("carpets that look like new", "finishing the whole flat in ten minutes"),
            ("emptying a bag every five minutes", "picking up the crumbs by hand afterwards"),
        ),
        endings=("switching it off", "putting it back into the cupboard"),
    ),
)
