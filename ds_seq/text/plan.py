"""Where the parts of a parallel text begin, so that any process can read any part."""

from __future__ import annotations

from typing import NamedTuple

from ds_seq.text.forms import Lines, Text
from ds_seq.text.lines import PairPath, count_pairs, open_bytes
from ds_seq.text.scan import is_compressed, scan_text, text_fingerprint


class TextPlan(NamedTuple):
    """A text, and where its parts begin.

    Attributes:
        path: its files.
        sha256: SHA-256 of each file.
        lines: number of lines of each side.
        part_lines: number of lines of a part.
        offsets: of each side, the place in bytes of the first line of each part, and the end. None
            if a file is compressed or has another form: its pairs are found by reading it from the
            start.
    """

    path: PairPath
    sha256: tuple[str, ...]
    lines: int
    part_lines: int
    offsets: tuple[tuple[int, ...], ...] | None

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return -(-self.lines // self.part_lines)


def has_places(path: PairPath) -> bool:
    """Return whether a part of a text can be read without what stands before it."""
    return path.form in (Lines(), Text()) and not any(map(is_compressed, path))


def plan_text(part_lines: int, path: PairPath) -> TextPlan:
    """Read a text once: checksums, number of lines, and where every `part_lines` lines begin.

    Raises:
        UserError: a file is missing, no text or damaged, or the sides differ in length.
    """
    if not has_places(path):
        checksums = tuple(map(text_fingerprint, path))
        return TextPlan(path, checksums, count_pairs([path]), part_lines, None)
    scans = []
    for side in path:
        open_bytes(side).close()  # raises if it is no text
        scans.append(scan_text(side, part_lines))
    if scans[0].lines != scans[-1].lines:
        count_pairs([path])  # raises, with both counts
    checksums, offsets = (tuple(scan.sha256 for scan in scans), tuple(s.offsets for s in scans))
    return TextPlan(path, checksums, scans[0].lines, part_lines, offsets)


def split_lines(text: str) -> list[str]:
    """Return the lines of a part of a text without their ends."""
    lines = text.removesuffix("\n").split("\n")
    return [line.rstrip("\r") for line in lines] if "\r" in text else lines
