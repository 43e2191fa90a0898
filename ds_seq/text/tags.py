"""Language tags: symbols of a vocabulary that begin a line and name a language, such as `<2de>`."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from ds_seq.text.normalize import has_text
from ds_seq.text.tokenizer import Tokenizer

_SIGNS = re.compile(r"^(?:[<\[](?:2|to[_-])?|__|>>)|(?:[>\]]|__|<<)$")
_CODE = r"[a-z]{2,3}(?:[_-][A-Za-z]{2,4})*"
_MARKED = rf"[<\[](?:2|to[_-]){_CODE}[>\]]|__{_CODE}__|>>{_CODE}<<"  # `<2de>`, `__de__`, `>>deu<<`
_FOREIGN = re.compile(_MARKED)
_CERTAIN = re.compile(rf"{_MARKED}|[a-z]{{2,3}}_(?:[A-Z]{{2}}|[A-Z][a-z]{{3}})")  # also `de_DE`
_LIKELY = re.compile(rf"[<\[]{_CODE}[>\]]")  # `<de>`, but also `<br>`
_MOST_NAMED = 5


def language_tags(tokenizer: Tokenizer, chosen: Collection[str] | None = None) -> dict[int, str]:
    """Return the user symbols of a tokenizer that are language tags, by id.

    Args:
        tokenizer: the tokenizer.
        chosen: the symbols that are tags; None: those that look like tags. One symbol such as
            `<br>` may be anything; two or more symbols of this form are taken for tags.
    """
    ids = sorted(tokenizer.tag_ids)
    symbols = dict(zip(ids, tokenizer.pieces(ids), strict=True))
    if chosen is not None:
        return {i: text for i, text in symbols.items() if text in chosen}
    certain = {i: text for i, text in symbols.items() if _CERTAIN.fullmatch(text)}
    likely = {i: text for i, text in symbols.items() if _LIKELY.fullmatch(text)}
    return {**certain, **(likely if certain or len(likely) > 1 else {})}


def tag_of(language: str, tags: Collection[str]) -> str | None:
    """Return the one of some tags that names a language, such as `<2de>` for `de`; or None."""
    return next((tag for tag in tags if language_of(tag) == language), None)


def language_of(tag: str) -> str:
    """Return the language code that a tag names, such as `de` for `<2de>`."""
    return _SIGNS.sub("", tag)


def untagged(lines: Sequence[str], tags: Mapping[int, str]) -> list[int]:
    """Return the numbers, from 0, of lines that do not begin with a known tag although they should.

    If there are tags, these are all lines with text that begin with none of them; otherwise, lines
    that begin with something that looks like a tag.

    Args:
        lines: lines of text.
        tags: the tags, by id.
    """
    texts = [line.lstrip() for line in lines]
    known = tuple(tags.values())
    if known:
        return [n for n, text in enumerate(texts) if has_text(text) and not text.startswith(known)]
    return [n for n, text in enumerate(texts) if _FOREIGN.match(text)]


def untagged_message(tags: Mapping[int, str], subject: str = "source line(s) begin") -> str:
    """Return what to say of the lines that `untagged` returns, to follow their number.

    Args:
        tags: the tags, by id.
        subject: beginning of the message.
    """
    if not tags:
        return f"{subject} with a language tag that is not in the vocabulary, which splits it"
    names = ", ".join(list(tags.values())[:_MOST_NAMED])
    more = ", ..." if len(tags) > _MOST_NAMED else ""
    return (
        f"{subject} with no language tag of the vocabulary ({names}{more}), so the model cannot "
        "know the language"
    )
