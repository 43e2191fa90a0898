"""A generated parallel corpus that a tiny model learns within a minute or two on a CPU.

English and German sentences of one pattern, translated by rule::

    my sister finds twenty-four old books today
    heute findet meine Schwester vierundzwanzig alte Bücher

A model has to learn a dictionary of some 80 words, the move of the adverb to the front with the
verb behind it, and numbers whose ones come before the tens. About 1.5 million sentences exist, and
no sentence is in two splits, so a model cannot pass by learning them by heart. By hand::

    python tests/data/toy.py FOLDER [--train 2000] [--held-out 100] [--seed 1]
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

Pair = tuple[str, str]

_SUBJECTS = [
    ("the man", "der Mann"),
    ("the woman", "die Frau"),
    ("my sister", "meine Schwester"),
    ("your brother", "dein Bruder"),
    ("our teacher", "unser Lehrer"),
    ("the doctor", "der Arzt"),
    ("a child", "ein Kind"),
    ("the queen", "die Königin"),
]
_VERBS = [
    ("sees", "sieht"),
    ("buys", "kauft"),
    ("finds", "findet"),
    ("counts", "zählt"),
    ("draws", "zeichnet"),
    ("sells", "verkauft"),
    ("needs", "braucht"),
    ("paints", "malt"),
]
_ADJECTIVES = [
    ("old", "alte"),
    ("red", "rote"),
    ("small", "kleine"),
    ("heavy", "schwere"),
    ("beautiful", "schöne"),
    ("cheap", "billige"),
]
_NOUNS = [
    ("books", "Bücher"),
    ("houses", "Häuser"),
    ("flowers", "Blumen"),
    ("chairs", "Stühle"),
    ("horses", "Pferde"),
    ("letters", "Briefe"),
    ("bottles", "Flaschen"),
    ("keys", "Schlüssel"),
    ("trees", "Bäume"),
    ("boats", "Boote"),
    ("lamps", "Lampen"),
    ("shoes", "Schuhe"),
]
_ADVERBS = [
    ("today", "heute"),
    ("in the evening", "am Abend"),
    ("every day", "jeden Tag"),
    ("here", "hier"),
]
_SMALL = [
    ("two", "zwei"),
    ("three", "drei"),
    ("four", "vier"),
    ("five", "fünf"),
    ("six", "sechs"),
    ("seven", "sieben"),
    ("eight", "acht"),
    ("nine", "neun"),
]
_TENS = [
    ("twenty", "zwanzig"),
    ("thirty", "dreißig"),
    ("forty", "vierzig"),
    ("fifty", "fünfzig"),
    ("sixty", "sechzig"),
    ("seventy", "siebzig"),
    ("eighty", "achtzig"),
    ("ninety", "neunzig"),
]


def toy_pairs(count: int, seed: int = 1) -> list[Pair]:
    """Returns ``count`` different (English, German) sentences; the same ones for the same seed."""
    draw = random.Random(seed)
    pairs: dict[Pair, None] = {}
    while len(pairs) < count:
        pairs[_sentence(draw)] = None
    return list(pairs)


def write_toy(folder: Path, train: int = 2000, held_out: int = 100, seed: int = 1) -> None:
    """Writes ``{train,valid,test}.{en,de}``: ``train`` and twice ``held_out`` pairs."""
    pairs = toy_pairs(train + 2 * held_out, seed)
    splits = {
        "train": pairs[:train],
        "valid": pairs[train : train + held_out],
        "test": pairs[train + held_out :],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in splits.items():
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in part)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")


def _sentence(draw: random.Random) -> Pair:
    subject, verb, adjective, noun, adverb = (
        draw.choice(words) for words in (_SUBJECTS, _VERBS, _ADJECTIVES, _NOUNS, _ADVERBS)
    )
    number = _number(draw)
    return (
        " ".join((subject[0], verb[0], number[0], adjective[0], noun[0], adverb[0])),
        " ".join((adverb[1], verb[1], subject[1], number[1], adjective[1], noun[1])),
    )


def _number(draw: random.Random) -> Pair:
    tens, small = draw.choice(_TENS), draw.choice(_SMALL)
    forms = [small, tens, (f"{tens[0]}-{small[0]}", f"{small[1]}und{tens[1]}")]
    return draw.choice(forms)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a generated parallel corpus.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    write_toy(options.folder, options.train, options.held_out, options.seed)
