"""Captions of pictures of shapes: a small grammar with synonyms, and its inverse.

    caption    = order of (objects, position?, background?)      "two blue squares on the left on grey"
    objects    = count size? colour? noun                        "a small red circle"

A part with ? may be left out, and the noun may be "shape". A caption has at most 63 bytes, so that the default of
`condition=text` does not cut it. Words and orders come in two lists: those of training captions, and withheld ones, which no
training caption has.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy
from numpy.typing import NDArray

from .shape_pictures import ATTRIBUTES

__all__ = ["DRAWS", "WORDINGS", "Phrase", "parse_caption", "said_values", "write_caption"]

Words = tuple[str, ...]
NOUNS: Mapping[str, tuple[Words, Words]] = {  # value: (words of training, withheld words), each singular/plural
    "circle": (("circle/circles", "disc/discs"), ("ball/balls",)),
    "square": (("square/squares", "box/boxes"), ("block/blocks",)),
    "triangle": (("triangle/triangles", "wedge/wedges"), ("pyramid/pyramids",)),
    "cross": (("cross/crosses", "plus/pluses"), ("star/stars",)),
}
ANY_NOUN = "shape/shapes"
LEXICON: Mapping[str, Mapping[str, tuple[Words, Words]]] = {
    "shape": NOUNS,
    "colour": {
        "red": (("red", "crimson"), ("scarlet",)),
        "green": (("green", "emerald"), ("jade",)),
        "blue": (("blue", "cobalt"), ("sapphire",)),
        "yellow": (("yellow", "gold"), ("lemon",)),
        "purple": (("purple", "violet"), ("plum",)),
        "cyan": (("cyan", "aqua"), ("teal",)),
    },
    "size": {"small": (("small", "little"), ("tiny",)), "large": (("large", "big"), ("huge",))},
    "count": {
        "one": (("a", "one"), ("a single",)),
        "two": (("two", "a pair of"), ("a couple of",)),
        "three": (("three", "a trio of"), ("a triad of",)),
    },
    "background": {
        "white": (("on white", "over white"), ("against white",)),
        "grey": (("on grey", "over gray"), ("against grey",)),
        "black": (("on black", "over black"), ("against black",)),
    },
    "position": {
        "left": (("on the left", "at the left"), ("to the left",)),
        "right": (("on the right", "at the right"), ("to the right",)),
        "top": (("at the top", "near the top"), ("high up",)),
        "bottom": (("at the bottom", "near the bottom"), ("low down",)),
        "middle": (("in the middle", "in the centre"), ("at the center",)),
    },
}
ORDERS = (
    "{objects} {position} {background}",
    "{objects} {background} {position}",
    "{background}, {objects} {position}",
)
WITHHELD_ORDERS = ("{position}, {objects} {background}", "{position} {background}, {objects}")
WORDINGS = ("plain", "trained", "order", "synonyms")
LEAVE_OUT = 0.3  # probability that a caption leaves an attribute out; the count is always said
DRAWS = 2 * len(ATTRIBUTES) + 1  # random numbers of one caption


class Phrase(NamedTuple):
    """Words of a caption, the attribute that they say, and its value."""

    text: str
    attribute: str
    value: str


def write_caption(
    combination: Sequence[int] | NDArray[numpy.int64],
    draws: Sequence[float] | NDArray[numpy.float64],
    wording: str = "trained",
    complete: bool = False,
) -> tuple[str, dict[str, str]]:
    """A caption of a combination, and the values that it says by attribute.

    Arguments:
        combination: index of the value of each attribute [6].
        draws: [DRAWS] uniform numbers in [0, 1): what is left out, which synonyms, which order.
        wording: plain = the first words in the first order; trained = any words and orders of training; order = withheld
            orders, which begin with the position; synonyms = withheld words for every value that is said.
        complete: whether nothing is left out.

    Raises:
        ValueError: an unknown wording.
    """
    if wording not in WORDINGS:
        raise ValueError(f"wording must be plain, trained, order or synonyms, got {wording!r}")
    said: dict[str, str] = {}
    words = dict.fromkeys(ATTRIBUTES, "") | {"shape": ANY_NOUN}
    for number, (attribute, values) in enumerate(ATTRIBUTES.items()):
        required = attribute == "count" or (attribute == "position" and wording == "order")
        if complete or required or draws[2 * number] >= LEAVE_OUT:
            value = values[int(combination[number])]
            known, withheld = LEXICON[attribute][value]
            choice = withheld if wording == "synonyms" else known[:1] if wording == "plain" else known
            said[attribute], words[attribute] = value, pick(choice, draws[2 * number + 1])
    orders = {"plain": ORDERS[:1], "order": WITHHELD_ORDERS}.get(wording, ORDERS)
    plural = ATTRIBUTES["count"][int(combination[list(ATTRIBUTES).index("count")])] != "one"
    noun = words["shape"].split("/")[plural]
    objects = " ".join(part for part in (words["size"], words["colour"], noun) if part)
    article = "an" if words["count"] == "a" and objects[0] in "aeiou" else words["count"]
    text = pick(orders, draws[-1]).format(
        objects=f"{article} {objects}", position=words["position"], background=words["background"]
    )
    return " ".join(text.split()).replace(" ,", ",").strip(", "), said


def pick(choices: Sequence[str], draw: float) -> str:
    """One of the choices, by a uniform number in [0, 1)."""
    return choices[int(draw * len(choices))]


def list_phrases() -> dict[str, tuple[str, str]]:
    """(attribute, value) of every phrase of the grammar; ("", "") for words that say nothing."""
    found = {word: ("", "") for word in ANY_NOUN.split("/")}
    for attribute, values in LEXICON.items():
        for value, lists in values.items():
            found |= {form: (attribute, value) for words in lists for word in words for form in word.split("/")}
    return found | {"an": ("count", "one")}


PHRASES = list_phrases()
TOKEN = re.compile("|".join(rf"{re.escape(phrase)}(?!\w)" for phrase in sorted(PHRASES, key=len, reverse=True)))


def parse_caption(text: str) -> list[Phrase]:
    """The phrases of a caption that say something, in any order and wording of the grammar, trained or withheld.

    Raises:
        ValueError: a word outside the grammar, or two values for one attribute.
    """
    found: dict[str, Phrase] = {}
    rest = " ".join(re.split(r"[\s,.;]+", text.lower())).strip()
    while rest:
        match = TOKEN.match(rest)
        if match is None:
            raise ValueError(f"the prompt {text!r} has {rest.split()[0]!r}, which is no word of dataset=shapes")
        attribute, value = PHRASES[match[0]]
        if attribute and found.setdefault(attribute, Phrase(match[0], attribute, value)).value != value:
            raise ValueError(f"the prompt {text!r} has two values of {attribute}: {found[attribute].value} and {value}")
        rest = rest[match.end() :].lstrip()
    return list(found.values())


def said_values(text: str) -> dict[str, str]:
    """The value of every attribute that a caption says.

    Raises:
        ValueError: as for `parse_caption`.
    """
    return {phrase.attribute: phrase.value for phrase in parse_caption(text)}
