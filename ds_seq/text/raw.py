"""Raw text that an experiment names, as its readers take it; imports no torch."""

from __future__ import annotations

from pathlib import Path

from ds_seq.config.raw_text import TextFiles
from ds_seq.text.forms import Form, JsonLines, Lines, Segments, Table, Text
from ds_seq.text.lines import PairPath
from ds_seq.text.xml_forms import Tmx, WmtXml


def pair_path(text: TextFiles, *, counts_invalid: bool) -> PairPath:
    """Return a named text as its reader takes it.

    Args:
        text: the text.
        counts_invalid: whether its reader drops pairs that are not UTF-8, and counts them.
    """
    is_counted = counts_invalid and text.invalid_utf8 == "drop"
    invalid = "keep" if is_counted else text.invalid_utf8
    return PairPath(Path(text.source), Path(text.target), _form(text), invalid)


def _form(text: TextFiles) -> Form:
    match text.form:
        case "text":
            return Text()
        case "lines":
            return Lines()
        case "segments":
            return Segments()
        case "tsv":
            return Table(text.columns, text.header)
        case "jsonl":
            return JsonLines(text.keys)
        case "tmx":
            return Tmx(text.keys)
        case "xml":
            return WmtXml(text.keys)
