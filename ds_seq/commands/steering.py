"""Options that constrain translations: prefixes, phrases and a list of allowed outputs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ds_seq.errors import UserError
from ds_seq.generation.output import Spelling
from ds_seq.names import CONSTRAINT_ORDERS, ConstraintOrder
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.constraints import Constraints
from ds_seq.search.guides import GuideMaker, Plain
from ds_seq.search.prefix import Prefixes
from ds_seq.search.trie import AllowedOutputs
from ds_seq.text.lines import read_lines, warn_of_lines
from ds_seq.text.normalize import Normalizer
from ds_seq.text.round_trip import changes, rewriting
from ds_seq.text.tokenizer import Tokenizer

_CLEAN = Normalizer(nfkc=False, fold_spaces=False)  # what is done to all text
_MOST_NAMED = 10


class _File(NamedTuple):
    """A file that an option names."""

    option: str
    path: str
    lines: list[str]


@dataclass(frozen=True)
class Steering:
    """The contents of the steering options.

    Attributes:
        prefix: one prefix per input line, or None.
        target_tag: symbol at the beginning of every translation, or None.
        constraints: one line of phrases per input line, or None.
        order: order of the phrases in `constraints`.
        allowed: the allowed outputs, one per line, or None.
    """

    prefix: _File | None
    target_tag: str | None
    constraints: _File | None
    order: ConstraintOrder
    allowed: _File | None

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
                    f"--{file.option} {file.path}: has {len(file.lines):,} lines but the input has "
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
        reader = _Reader(tokenizer, search.max_positions)
        guides: list[GuideMaker] = []
        common = self._common(tokenizer)
        if self.prefix is not None or common:
            prefixes = None
            if self.prefix is not None:
                prefixes = list(reader.prefixes(self.prefix, len(common)))
            guides.append(Prefixes(prefixes, common))
        if self.allowed is not None:
            outputs = [[*common, *ids] for ids in reader.outputs(self.allowed, len(common))]
            guides.append(AllowedOutputs(outputs, len(tokenizer), search.symbols.eos))
        # the opening of all sentences, which the search forces by itself, is in `common`
        others = (guide for guide in search.guides if not isinstance(guide, Prefixes))
        steered = replace(search, guides=(*others, *guides))
        if self.constraints is None:
            return steered
        if search.sampling is not None or search.selection != Plain():
            rival = "sampling" if search.sampling is not None else "diverse beams"
            raise UserError(
                f"--constraints {self.constraints.path}: cannot be combined with {rival}; leave "
                "out one of them"
            )
        phrases = list(reader.phrases(self.constraints))
        return replace(steered, selection=Constraints(phrases, self.order, search.symbols.eos))

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
            f"line(s) of --allowed {self.allowed.path} are the same as an earlier line to the "
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
        tag = [] if self.target_tag is None else [_tag_id(self.target_tag, tokenizer)]
        return [*tokenizer.symbols.opening, *tag]


def read_steering(args: argparse.Namespace) -> Steering:
    """Read the files that the arguments name.

    Raises:
        UserError: a file is missing or not text, or an option would have no effect.
    """
    if args.constraint_order is not None and args.constraints is None:
        raise UserError("--constraint-order: has no effect without --constraints FILE")
    allowed = _read("allowed", args.allowed)
    if allowed is not None and not allowed.lines:
        raise UserError(f"--allowed {allowed.path}: is empty; give at least one allowed output")
    return Steering(
        _read("prefix", args.prefix),
        args.target_tag,
        _read("constraints", args.constraints),
        args.constraint_order or CONSTRAINT_ORDERS[0],
        allowed,
    )


def _read(option: str, path: str | None) -> _File | None:
    return None if path is None else _File(option, path, read_lines(path, tabs=option != "prefix"))


def _tag_id(tag: str, tokenizer: Tokenizer) -> int:
    ids = tokenizer.encode(tag)
    if len(ids) != 1 or ids[0] not in tokenizer.tag_ids:
        known = ", ".join(tokenizer.pieces(sorted(tokenizer.tag_ids))[:_MOST_NAMED]) or "none"
        raise UserError(
            f"--target-tag {tag}: is not one of data.vocab.user_symbols, "
            f"of which there are: {known}"
        )
    return ids[0]


@dataclass(frozen=True)
class _Reader:
    """Converts the lines of files to tokens."""

    tokenizer: Tokenizer
    max_positions: int | None

    def prefixes(self, file: _File, taken: int) -> Iterator[list[int]]:
        """Yield the tokens of each line, which follow `taken` other tokens."""
        texts = list(enumerate(file.lines, 1))
        for number, ids in enumerate(self._encode(file, texts, exact=True), 1):
            self._check_length(file, number, taken + len(ids))
            yield ids

    def outputs(self, file: _File, taken: int) -> Iterator[list[int]]:
        """Yield the tokens of each line, which follow `taken` others; no line may be empty."""
        for number, ids in enumerate(self._encode(file, enumerate(file.lines, 1)), 1):
            if not ids:
                raise UserError(f"--{file.option} {file.path}:{number}: is empty; remove the line")
            self._check_length(file, number, taken + len(ids))
            yield ids

    def phrases(self, file: _File) -> Iterator[list[list[int]]]:
        """Yield the phrases of each line."""
        for number, line in enumerate(file.lines, 1):
            texts = [(number, text) for text in line.split("\t")]
            phrases = [ids for ids in self._encode(file, texts, exact=True) if ids]
            self._check_length(file, number, sum(map(len, phrases)))
            yield phrases

    def _encode(
        self, file: _File, texts: Iterable[tuple[int, str]], exact: bool = False
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
                    f"--{file.option} {file.path}:{number}: {text!r} has characters that are not "
                    "in the vocabulary, so no translation can contain them; remove them"
                )
        if exact:
            self._check_unchanged(file, texts, encoded)
        return encoded

    def _check_unchanged(
        self, file: _File, texts: Sequence[tuple[int, str]], encoded: Sequence[Sequence[int]]
    ) -> None:
        clean = [_CLEAN(text) for _, text in texts]
        for change in changes(self.tokenizer, clean, encoded):
            rule = rewriting(self.tokenizer)
            why = f"the vocabulary has {rule}" if rule else "data.clean of the model changes it"
            raise UserError(
                f"--{file.option} {file.path}:{texts[change.number - 1][0]}: {change.text!r} would "
                f"come out as {change.result!r}, because {why}; write it as it comes out, or use a "
                "model whose data.vocab.normalization is identity"
            )

    def _check_length(self, file: _File, number: int, length: int) -> None:
        if self.max_positions is not None and length > self.max_positions - 1:
            raise UserError(
                f"--{file.option} {file.path}:{number}: has {length:,} tokens, but translations "
                f"of the model have at most {self.max_positions - 1:,}; shorten the line"
            )
