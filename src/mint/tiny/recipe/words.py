"""The small world the model lives in: its words, its names and a table of facts.

Pure data and one generator of made-up words.  Must not know which questions are asked about it.
"""

from random import Random
from typing import Final


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES: Final = _words(
    "Tom Ann Ben Sue Max Eva Leo Mia Sam Ida Jack Lily Paul Rosa Nick Emma Omar Nina Hugo Clara Adam Lucy "
    "Ravi Mei Ivan Zoe Felix Anna Peter Maria Karl Julia Amir Sara Otto Elsa Dan Kate Luis Vera"
)

COLOURS: Final = _words("red blue green yellow black white brown pink grey orange purple")

OBJECTS: Final = _words(
    "ball kite book cup hat box lamp pen coat chair table key bag bell boat bottle bowl brush bucket button "
    "candle car card clock comb cushion desk door drum fan flag fork glove hammer jacket jar kettle knife "
    "ladder letter map mirror mug needle oven pan pencil piano pillow plate pot purse ring rope ruler scarf "
    "shirt shoe sock sofa spoon stone ticket towel toy train truck umbrella vase watch wheel whistle"
)

FOODS: Final = _words(
    "apple banana bread butter cake carrot cheese cherry corn egg fish grape honey jam lemon melon milk "
    "mushroom nut olive onion orange pasta peach pear pepper pie plum potato rice salad salt soup sugar tea "
    "tomato water"
)

PLACES: Final = _words(
    "garden kitchen park school house forest field market station harbour library museum bridge river lake "
    "beach mountain village city farm shop street tower valley castle island road office church square"
)

ADJECTIVES: Final = _words(
    "big small old new warm cold happy sad quick slow tall short bright dark clean dirty soft hard loud "
    "quiet strong weak heavy light dry wet kind brave clever gentle lazy polite proud shy tired wise"
)

VERBS: Final = _words(
    "found lost bought sold washed painted carried opened closed liked cleaned dropped fixed hid kept made "
    "moved needed picked pushed pulled saw shared took threw touched used wanted watched"
)

NATURE: Final = _words(
    "sun moon star sky cloud rain snow wind storm tree leaf flower grass root seed sand hill fire ice sea "
    "wave wood winter summer spring autumn morning evening night day week month year hour"
)

PEOPLE: Final = _words(
    "baker doctor driver farmer nurse painter pilot sailor singer teacher writer friend brother sister "
    "mother father uncle aunt child neighbour king queen"
)

SOUNDS: Final = {
    "cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "sheep": "baa", "pig": "oink",
    "lion": "roar", "snake": "hiss", "bee": "buzz", "owl": "hoot", "mouse": "squeak", "horse": "neigh",
}  # fmt: skip

LEGS: Final = {
    "cow": 4, "dog": 4, "cat": 4, "horse": 4, "sheep": 4, "pig": 4, "lion": 4, "tiger": 4, "bear": 4,
    "mouse": 4, "rabbit": 4, "fox": 4, "wolf": 4, "goat": 4, "frog": 4, "zebra": 4, "camel": 4, "monkey": 4,
    "duck": 2, "owl": 2, "hen": 2, "eagle": 2, "swan": 2, "parrot": 2, "penguin": 2, "goose": 2,
    "bee": 6, "ant": 6, "beetle": 6, "fly": 6, "spider": 8, "snake": 0, "worm": 0, "whale": 0, "shark": 0,
}  # fmt: skip

ANIMALS: Final = tuple(LEGS)

COLOUR_OF: Final = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "the sky": "blue",
    "a lemon": "yellow", "a banana": "yellow", "a tomato": "red", "a carrot": "orange", "milk": "white",
    "the sun": "yellow", "a frog": "green", "a swan": "white", "chocolate": "brown", "a cherry": "red",
    "a plum": "purple", "an elephant": "grey", "a leaf": "green", "the sea": "blue", "a pig": "pink",
    "a bear": "brown",
}  # fmt: skip

OPPOSITES: Final = {
    "hot": "cold", "big": "small", "up": "down", "left": "right", "day": "night", "old": "new", "wet": "dry",
    "fast": "slow", "open": "closed", "full": "empty", "light": "dark", "hard": "soft", "happy": "sad",
    "loud": "quiet", "tall": "short", "early": "late", "in": "out", "first": "last", "good": "bad",
    "clean": "dirty", "strong": "weak", "rich": "poor", "long": "brief", "near": "far", "high": "low",
}  # fmt: skip

DAYS: Final = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

MONTHS: Final = _words("January February March April May June July August September October November December")

NUMBER_WORDS: Final = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)

# One word means one spelling: duplicates between the lists ("orange", "light") are kept once.
COMMON: Final = tuple(sorted({*COLOURS, *OBJECTS, *FOODS, *PLACES, *ADJECTIVES, *NATURE, *PEOPLE, *ANIMALS}))

_ONSETS: Final = _words("b bl br c ch d dr f fl g gl gr h j k l m n p pl pr qu r s sh sl st t th tr v w y z")
_VOWELS: Final = _words("a e i o u ai ea ee oo ou")
_CODAS: Final = ["", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "sh", "x", "ck"]


def made_up_word(rng: Random) -> str:
    """Return a pronounceable word of one to three syllables that means nothing."""
    syllables = rng.choices((1, 2, 3), weights=(2, 5, 2))[0]
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))
