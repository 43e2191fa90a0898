"""What constrains translations: prefixes, a tag, phrases and a list of allowed outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ds_seq.errors import UserError
from ds_seq.generation.output import Spelling
from ds_seq.names import ConstraintOrder
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.constraints import Constraints
from ds_seq.search.guides import GuideMaker, Plain
from ds_seq.search.prefix import Prefixes
from ds_seq.search.trie import AllowedOutputs
from ds_seq.text.lines import warn_of_lines
from ds_seq.text.normalize import Normalizer
from ds_seq.text.round_trip import changes, rewriting
from ds_seq.text.tokenizer import Tokenizer

_CLEAN = Normalizer(nfkc=False, fold_spaces=False)  # what is done to all text
_MOST_NAMED = 10


class Given(NamedTuple):
    """Text that constrains translations, a line for each of them, and who has given it."""

    option: str
    """Name of the option, such as `prefix`."""
    name: str
    """What messages call it, such as `--prefix FILE`."""
    lines: list[str]
    is_file: bool
    """Whether the lines have numbers from 1, as in a file, or indices from 0, as in a request."""

    def place(self, number: int) -> str:
        """Return how messages name a line, given by its number from 1."""
        return f"{self.name}:{number}" if self.is_file else f"{self.name}[{number - 1}]"


class Restrictions(NamedTuple):
    """What constrains the translations of some sentences, as token ids."""

    common: list[int]
    """Tokens with which all translations begin."""
    prefixes: Sequence[Sequence[int]] | Mapping[int, Sequence[int]] | None
    """What follows `common`, by the number of each sentence; it may be empty. None: no sentence has
    a prefix."""
    phrases: Sequence[Sequence[Sequence[int]]] | None
    """Phrases of each sentence; None: no sentence has phrases."""
    order: ConstraintOrder
    """Order of the phrases."""

    def apply(self, search: BeamSearch, others: Sequence[GuideMaker] = ()) -> BeamSearch:
        """Return the search with these restrictions, and with more guides."""
        guides: list[GuideMaker] = []
        if self.prefixes is not None or self.common:
            guides.append(Prefixes(self.prefixes, self.common))
        # the opening of all sentences, which the search forces by itself, is in `common`
        kept = (guide for guide in search.guides if not isinstance(guide, Prefixes))
        steered = replace(search, guides=(*kept, *guides, *others))
        if self.phrases is None:
            return steered
        selection = Constraints(self.phrases, self.order, search.symbols.eos)
        return replace(steered, selection=selection)


@dataclass(frozen=True)
class Steering:
    """The contents of the steering options.

    Attributes:
        prefix: one prefix per input line, or None.
        target_tag: symbol at the beginning of every translation, or None.
        tag_option: what messages call the option that gives `target_tag`.
        constraints: one line of phrases per input line, or None.
        order: order of the phrases in `constraints`.
        allowed: the allowed outputs, one per line, or None.
    """

    prefix: Given | None
    target_tag: str | None
    tag_option: str
    constraints: Given | None
    order: ConstraintOrder
    allowed: Given | None

    @property
    def conditions(self) -> dict[str, Sequence[str]]:
        """All settings by option, with the lines of files instead of their names."""
        tag = [] if self.target_tag is None else [self.target_tag]
        files = [file for file in (self.prefix, self.constraints, self.allowed) if file is not None]
        return {
            "target-tag": tag,
            "constraint-order": [self.order],
            **{file.option: file.lines for file in files},
        }

    def check_counts(self, source: Sequence[str]) -> None:
        """Refuse files that do not have one line per line of `source`."""
        for file in (self.prefix, self.constraints):
            if file is not None and len(file.lines) != len(source):
                raise UserError(
                    f"{file.name}: has {len(file.lines):,} lines but the input has "
                    f"{len(source):,}; give one line per input line, an empty one for no constraint"
                )

    def steer(self, search: BeamSearch, tokenizer: Tokenizer) -> BeamSearch:
        """Return the search with all constraints.

        Args:
            search: the search without these constraints.
            tokenizer: tokenizer of the target.

        Raises:
            UserError: a constraint cannot be expressed in this vocabulary, is too long, or cannot
                be combined with the search.
        """
        found = self.restrictions(search, tokenizer)
        if self.allowed is None:
            return found.apply(search)
        reader = _Reader(tokenizer, search.max_positions)
        common = found.common
        outputs = [[*common, *ids] for ids in reader.outputs(self.allowed, len(common))]
        return found.apply(search, [AllowedOutputs(outputs, len(tokenizer), search.symbols.eos)])

    def restrictions(self, search: BeamSearch, tokenizer: Tokenizer) -> Restrictions:
        """Return the prefixes and phrases as token ids; see `steer`."""
        reader = _Reader(tokenizer, search.max_positions)
        common = self._common(tokenizer)
        prefixes, phrases = None, None
        if self.prefix is not None:
            prefixes = list(reader.prefixes(self.prefix, len(common)))
        if self.constraints is not None:
            if search.sampling is not None or search.selection != Plain():
                rival = "sampling" if search.sampling is not None else "diverse beams"
                raise UserError(
                    f"{self.constraints.name}: cannot be combined with {rival}; leave out one of "
                    "them"
                )
            phrases = list(reader.phrases(self.constraints))
        return Restrictions(common, prefixes, phrases, self.order)

    def spelling(self, tokenizer: Tokenizer) -> Spelling:
        """Return the spelling of translations that meet all constraints.

        The tag is left out, and an allowed output is written as its file spells it.
        """
        common = self._common(tokenizer)
        tag = common[-1] if self.target_tag is not None else None
        if self.allowed is None:
            return Spelling(tokenizer, tag)
        lines: dict[tuple[int, ...], str] = {}
        encoded = tokenizer.encode_lines(self.allowed.lines)
        for ids, line in zip(encoded, self.allowed.lines, strict=True):
            lines.setdefault((*common, *ids), line)
        return Spelling(tokenizer, tag, lines)

    def warn_of_equal_outputs(self, spelling: Spelling) -> None:
        """Warn about allowed outputs that the vocabulary cannot tell from an earlier one."""
        if self.allowed is None or spelling.lines is None:
            return
        written = {" ".join(line.split()) for line in spelling.lines.values()}
        warn_of_lines(
            f"line(s) of {self.allowed.name} are the same as an earlier line to the "
            "vocabulary, which is written instead",
            [
                number
                for number, line in enumerate(self.allowed.lines, 1)
                if " ".join(line.split()) not in written
            ],
        )

    def without_tag(self, reference: Sequence[str]) -> list[str]:
        """Return reference lines without the tag, which is not part of a written translation."""
        tag = self.target_tag
        if tag is None:
            return list(reference)
        tagged = re.compile(rf"{re.escape(tag)}\s*")
        return [tagged.sub("", line, count=1) if tagged.match(line) else line for line in reference]

    def _common(self, tokenizer: Tokenizer) -> list[int]:
        """Return the tokens with which all translations begin."""
        tag = [] if self.target_tag is None else [self._tag_id(self.target_tag, tokenizer)]
        return [*tokenizer.symbols.opening, *tag]

    def _tag_id(self, tag: str, tokenizer: Tokenizer) -> int:
        ids = tokenizer.encode(tag)
        if len(ids) != 1 or ids[0] not in tokenizer.tag_ids:
            known = ", ".join(tokenizer.pieces(sorted(tokenizer.tag_ids))[:_MOST_NAMED]) or "none"
            raise UserError(
                f"{self.tag_option} {tag}: is not one of data.vocab.user_symbols, "
                f"of which there are: {known}"
            )
        return ids[0]


@dataclass(frozen=True)
class _Reader:
    """Converts the lines of files to tokens."""

    tokenizer: Tokenizer
    max_positions: int | None

    def prefixes(self, file: Given, taken: int) -> Iterator[list[int]]:
        """Yield the tokens of each line, which follow `taken` other tokens."""
        texts = list(enumerate(file.lines, 1))
        for number, ids in enumerate(self._encode(file, texts, exact=True), 1):
            self._check_length(file, number, taken + len(ids))
            yield ids

    def outputs(self, file: Given, taken: int) -> Iterator[list[int]]:
        """Yield the tokens of each line, which follow `taken` others; no line may be empty."""
        for number, ids in enumerate(self._encode(file, enumerate(file.lines, 1)), 1):
            if not ids:
                raise UserError(f"{file.place(number)}: is empty; remove the line")
            self._check_length(file, number, taken + len(ids))
            yield ids

    def phrases(self, file: Given) -> Iterator[list[list[int]]]:
        """Yield the phrases of each line."""
        for number, line in enumerate(file.lines, 1):
            texts = [(number, text) for text in line.split("\t")]
            phrases = [ids for ids in self._encode(file, texts, exact=True) if ids]
            self._check_length(file, number, sum(map(len, phrases)))
            yield phrases

    def _encode(
        self, file: Given, texts: Iterable[tuple[int, str]], exact: bool = False
    ) -> list[list[int]]:
        """Encode numbered texts, all of whose characters must be in the vocabulary.

        Args:
            file: file of the texts.
            texts: line number and text.
            exact: whether to refuse texts that come out of the vocabulary changed.
        """
        texts = list(texts)
        numbered = [(number, self.tokenizer.normalize(text)) for number, text in texts]
        encoded = self.tokenizer.encode_lines([text for _, text in numbered])
        for (number, text), ids in zip(numbered, encoded, strict=True):
            if self.tokenizer.symbols.unk in ids:
                raise UserError(
                    f"{file.place(number)}: {text!r} has characters that are not "
                    "in the vocabulary, so no translation can contain them; remove them"
                )
        if exact:
            self._check_unchanged(file, texts, encoded)
        return encoded

    def _check_unchanged(
        self, file: Given, texts: Sequence[tuple[int, str]], encoded: Sequence[Sequence[int]]
    ) -> None:
        clean = [_CLEAN(text) for _, text in texts]
        for change in changes(self.tokenizer, clean, encoded):
            rule = rewriting(self.tokenizer)
            why = f"the vocabulary has {rule}" if rule else "data.clean of the model changes it"
            raise UserError(
                f"{file.place(texts[change.number - 1][0])}: {change.text!r} would "
                f"come out as {change.result!r}, because {why}; write it as it comes out, or use a "
                "model whose data.vocab.normalization is identity"
            )

    def _check_length(self, file: Given, number: int, length: int) -> None:
        if self.max_positions is not None and length > self.max_positions - 1:
            raise UserError(
                f"{file.place(number)}: has {length:,} tokens, but translations "
                f"of the model have at most {self.max_positions - 1:,}; shorten the line"
            )
