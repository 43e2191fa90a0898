"""Parts of a text that are encoded one by one, and kept if the command is interrupted.

A part is a range of lines of one text, and a file in a work folder: one line of JSON with counts
and a checksum, then the lengths of the sentences and the ids of both sides. Its bytes depend on the
text and the tokenizers only, so any number of processes can continue what others have begun.

Shapes: n pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from typing_extensions import TypedDict

from ds_seq import files
from ds_seq.data.clean import check_no_empty_line
from ds_seq.data.manifest import IdType
from ds_seq.data.shard_files import id_dtype, id_type
from ds_seq.data.source import TokenBlock
from ds_seq.environment import collector_paused
from ds_seq.errors import UserError
from ds_seq.records import Count, parse_json, record
from ds_seq.text.lines import LineBlock, decode_lines, open_bytes, read_blocks
from ds_seq.text.plan import TextPlan, split_lines
from ds_seq.text.scan import BLOCK_LINES
from ds_seq.text.tokenizer import Tokenizer, Tokenizers

PART_LINES = BLOCK_LINES
_LENGTH = np.dtype("<u4")  # of a sentence in a part


class BadText(UserError):
    """A line of the text is wrong, so that the parts of this text are of no use."""


class Part(NamedTuple):
    """A part: `number` counts the parts of all texts, `place` those of its text."""

    number: int
    text: int
    place: int


@record
class PartRecord(TypedDict):
    """First line of the file of a part; the checksum is that of the rest."""

    pairs: Count
    tokens: list[Count]
    """Number of ids of each side, end symbols included."""
    unknown: list[Count]
    """How many of them are unknown."""
    dtype: IdType
    sha256: str


class PartEncoder:
    """Encodes parts of texts into files; sent to worker processes once.

    Args:
        tokenizers: tokenizers of the text.
        texts: the texts.
        work: folder of the files.
    """

    def __init__(self, tokenizers: Tokenizers, texts: Sequence[TextPlan], work: Path) -> None:
        self._tokenizers = tokenizers
        self._texts = texts
        self._work = work
        # of the compressed text that this process is reading: its number and the next part
        self._at = (-1, 0)
        self._blocks: Iterator[LineBlock] = iter(())

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_at": (-1, 0), "_blocks": iter(())}

    def path(self, part: Part) -> Path:
        """Return the path of the file of a part."""
        return self._work / f"{part.number:06d}.part"

    @collector_paused()
    def make(self, part: Part) -> None:
        """Write the file of a part unless it exists and is whole.

        Raises:
            BadText: a line is empty or invalid UTF-8; names its file and number.
            UserError: the file cannot be written.
        """
        if self.read(part) is not None:
            return
        try:
            block, lines = self._lines(part)
            # text of one side is in the language of the target
            tokenizers = tuple(self._tokenizers)[-len(lines) :]
            sides = [_encode(*pair) for pair in zip(tokenizers, lines, strict=True)]
            if len(sides) > 1:  # otherwise, an empty line ends a document
                _check_no_empty_line(block, tokenizers, lines, sides)
        except UserError as error:
            raise BadText(str(error)) from None
        unknown = [
            int(np.count_nonzero(side.tokens == tokenizer.symbols.unk))
            for side, tokenizer in zip(sides, tokenizers, strict=True)
        ]
        self._write(part, sides, unknown)

    def _write(self, part: Part, sides: Sequence[TokenBlock], unknown: Sequence[int]) -> None:
        dtype = id_dtype(self._tokenizers.size)
        content = b"".join(
            [side.lengths.astype(_LENGTH).tobytes() for side in sides]
            + [side.tokens.astype(dtype).tobytes() for side in sides]
        )
        header: PartRecord = {
            "pairs": len(sides[0].lengths),
            "tokens": [len(side.tokens) for side in sides],
            "unknown": list(unknown),
            "dtype": id_type(self._tokenizers.size),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        path = self.path(part)
        temporary = files.temporary_path(path)
        try:
            with files.writing(path):
                temporary.write_bytes(json.dumps(header).encode() + b"\n" + content)
                os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def read(self, part: Part) -> tuple[list[TokenBlock], PartRecord] | None:
        """Return the sides of a part and its record; None if its file is missing or torn."""
        path = self.path(part)
        try:
            head, _, content = path.read_bytes().partition(b"\n")
            header = parse_json(head, PartRecord, path, "")
        except (OSError, UserError):
            return None
        if hashlib.sha256(content).hexdigest() != header["sha256"]:
            return None
        sizes = header["tokens"]
        shape = len(sizes), header["pairs"]
        lengths = np.frombuffer(content, _LENGTH, shape[0] * shape[1]).reshape(shape)
        dtype = np.dtype(header["dtype"]).newbyteorder("<")
        ids = np.frombuffer(content, dtype, sum(sizes), lengths.nbytes)
        sides = np.split(ids, np.cumsum(sizes)[:-1])
        return [TokenBlock(*side) for side in zip(sides, lengths, strict=True)], header

    def _lines(self, part: Part) -> tuple[LineBlock, tuple[list[str], ...]]:
        """Return where a part is in its text, and the lines of each side."""
        text = self._texts[part.text]
        if text.offsets is None:
            block = self._block(part)
            return block, decode_lines(block)
        content = []
        for path, offsets in zip(text.path, text.offsets, strict=True):
            start, end = offsets[part.place : part.place + 2]
            with open_bytes(path) as file:
                file.seek(start)
                content.append(file.read(end - start))
        block = LineBlock(text.path, 1 + part.place * text.part_lines, [], [])
        try:
            return block, tuple(split_lines(side.decode()) for side in content)
        except UnicodeDecodeError:  # which line?
            lines = [[line.rstrip(b"\r") for line in side.split(b"\n")] for side in content]
            return block, decode_lines(block._replace(source=lines[0], target=lines[-1]))

    def _block(self, part: Part) -> LineBlock:
        """Return the lines of a part of a compressed text, read on from the one before."""
        text, index = self._at
        if text != part.text or index > part.place:
            plan = self._texts[part.text]
            self._blocks, index = read_blocks([plan.path], plan.part_lines), 0
        for _ in range(index, part.place):
            next(self._blocks)
        self._at = part.text, part.place + 1
        return next(self._blocks)


def _encode(tokenizer: Tokenizer, lines: Sequence[str]) -> TokenBlock:
    sentences = tokenizer.encode_lines(lines)
    symbols = tokenizer.symbols
    for ids in sentences:
        ids.append(symbols.eos)
        if symbols.opening:
            ids[:0] = symbols.opening
        if symbols.closing:
            ids += symbols.closing
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    # an array of the standard library takes integers from a list twice as fast as numpy does
    tokens = np.frombuffer(array("I", list(chain.from_iterable(sentences))), np.uint32)
    return TokenBlock(tokens, lengths)


def _check_no_empty_line(
    block: LineBlock,
    tokenizers: Sequence[Tokenizer],
    lines: Sequence[list[str]],
    sides: Sequence[TokenBlock],
) -> None:
    """Look at the sentences that have no id; few have, and it need not be for an empty line."""
    empty = [len(tokenizer.symbols.framed([])) for tokenizer in tokenizers]
    if all((block.lengths > least).all() for block, least in zip(sides, empty, strict=True)):
        return
    texts = []
    for tokenizer, side, encoded, least in zip(tokenizers, lines, sides, empty, strict=True):
        shown = ["text"] * len(side)
        for place in np.flatnonzero(encoded.lengths == least).tolist():
            shown[place] = tokenizer.normalize(side[place])
        texts.append(shown)
    check_no_empty_line(block, *texts)
