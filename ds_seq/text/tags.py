"""Language tags: symbols of a vocabulary that begin a line and name a language, such as `<2de>`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ds_seq.text.tokenizer import Tokenizer

_CODE = r"[a-z]{2,3}(?:[_-][A-Za-z]{2,4})*"
# `<2de>`, `<to_de>`, `__de__`, `>>deu<<`, `de_DE`, `deu_Latn`
_CERTAIN = re.compile(
    rf"[<\[](?:2|to[_-]?){_CODE}[>\]]|__{_CODE}__|>>{_CODE}<<|[a-z]{{2,3}}_(?:[A-Z]{{2}}|[A-Z][a-z]{{3}})"
)
_LIKELY = re.compile(rf"[<\[]{_CODE}[>\]]")  # `<de>`, but also `<br>`
_MOST_NAMED = 5


def language_tags(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the user symbols of a tokenizer that look like language tags, by id.

    One symbol such as `<br>` may be anything; two or more symbols of this form are taken for tags.
    """
    ids = sorted(tokenizer.tag_ids)
    symbols = dict(zip(ids, tokenizer.pieces(ids), strict=True))
    certain = {i: text for i, text in symbols.items() if _CERTAIN.fullmatch(text)}
    likely = {i: text for i, text in symbols.items() if _LIKELY.fullmatch(text)}
    return {**certain, **(likely if certain or len(likely) > 1 else {})}


def untagged(first: Mapping[int, int], tags: Iterable[int]) -> list[int]:
    """Return the keys of the sentences that do not begin with a tag; none if there are no tags.

    Args:
        first: first id of sentences with text, by any key.
        tags: ids of the tags.
    """
    known = frozenset(tags)
    return [key for key, token in first.items() if token not in known] if known else []


def untagged_message(tags: Mapping[int, str], subject: str = "source line(s) begin") -> str:
    """Return what to say of sentences without a tag, to follow their number.

    Args:
        tags: the tags, by id.
        subject: beginning of the message.
    """
    names = ", ".join(list(tags.values())[:_MOST_NAMED])
    more = ", ..." if len(tags) > _MOST_NAMED else ""
    return (
        f"{subject} with no language tag of the vocabulary ({names}{more}), so the model cannot "
        "know the language"
    )
