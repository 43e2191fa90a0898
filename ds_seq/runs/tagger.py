"""Tags at the start of sources, as training gave them, that say the language to translate into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds_seq.errors import UserError
from ds_seq.runs.card import ModelCard
from ds_seq.text.normalize import has_text


@dataclass(frozen=True)
class Tagger:
    """Adds tags to the start of lines.

    Attributes:
        tags: the tag of each line of the input, or a single one for all.
        known: all language tags of the model.
        option: what has given the languages, for messages.
    """

    tags: Sequence[str]
    known: tuple[str, ...]
    option: str

    def __call__(self, lines: Sequence[str], first: int) -> list[str]:
        """Return lines as the model reads them; those without text stay empty.

        Args:
            lines: normalized lines.
            first: number of the first of them in the whole input, from 0.

        Raises:
            UserError: a line begins with a tag already.
        """
        tagged = []
        for number, line in enumerate(lines, first):
            if self.known and line.startswith(self.known):
                raise UserError(
                    f"{self.option}: line {number + 1:,} of the input begins with a language tag "
                    "already; leave out one of them"
                )
            tag = self.tags[number if len(self.tags) > 1 else 0]
            tagged.append(f"{tag} {line}" if has_text(line) else line)
        return tagged


def tagger(
    card: ModelCard, languages: Sequence[str], option: str, place: str | None = None
) -> Tagger:
    """Return what adds the tags of a model.

    Args:
        card: card of the model.
        languages: language code of each line, or a single one for all.
        option: what has given them, for messages.
        place: the same for one of several lines, with `{}` for its number, from 1; None: `option`.

    Raises:
        UserError: the model has no tag of a language.
    """
    tags: dict[str, str] = {}
    for number, code in enumerate(languages, 1):
        if code not in tags:
            tags[code] = card.language_tag(code, (place or option).format(number))
    known = tuple(card.source_tags.values())
    return Tagger([tags[code] for code in languages], known, option)
