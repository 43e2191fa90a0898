"""What shards were made from, and whether that is what their reader expects.

`ds-seq prepare` records the raw text, the cleaning and the vocabulary in the manifest of each
split. Whoever opens shards for an experiment or for a trained model calls `check_origin`, so that a
run is made of what its config says.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ds_seq.errors import UserError
from ds_seq.files import fingerprint
from ds_seq.names import SIDES
from ds_seq.text.lines import PairPath, text_fingerprint
from ds_seq.text.scan import scan_all

if TYPE_CHECKING:
    from ds_seq.data.manifest import Manifest

BY_CORPUS = "corpora"
"""Key among recorded options of `data.clean` of those that only hold for a corpus, by its name."""
_PREPARE = "run `ds-seq prepare` again"


@dataclass(frozen=True)
class TextRecord:
    """A text file as it was when shards were made from it.

    Attributes:
        size: bytes.
        mtime_ns: time of its last change in nanoseconds.
        sha256: SHA-256 of its content.
        part: which part of it is the text, such as `column 2`; empty: all of it.
    """

    size: int
    mtime_ns: int
    sha256: str
    part: str = ""

    @classmethod
    def of(cls, path: Path) -> TextRecord:
        """Record a file.

        Raises:
            UserError: it does not exist.
        """
        sha256 = text_fingerprint(path)
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, sha256)

    @property
    def identity(self) -> str:
        """What tells the text from others: its SHA-256, and its part if it has one."""
        return f"{self.sha256} {self.part}".rstrip()

    def describes(self, path: Path) -> bool:
        """Return whether a file has this content; it is read only if its time has changed.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            status = path.stat()
            if status.st_size != self.size:
                return False
            return status.st_mtime_ns == self.mtime_ns or fingerprint(path) == self.sha256
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def text_records(texts: Iterable[PairPath]) -> list[TextRecord]:
    """Record source and target of each text in turn; each file is read once.

    Raises:
        UserError: a file does not exist.
    """
    texts = list(texts)
    scan_all(dict.fromkeys(path for text in texts for path in text.files))
    files = {path: TextRecord.of(path) for text in texts for path in text.files}
    return [
        replace(files[path], part=_part(text, side))
        for text in texts
        for side, path in enumerate(text)
    ]


def _part(text: PairPath, side: int) -> str:
    rules = (text.form.part(side), {"drop": "valid lines", "replace": "repaired"}.get(text.invalid))
    return ", ".join(rule for rule in rules if rule)


@dataclass(frozen=True)
class Origin:
    """What the shards of a split were made from; None where it is not known.

    Attributes:
        raw: the raw files: source and target of each pair of files in turn.
        clean: the options of `data.clean` that apply to the split.
        vocab: the options of `data.vocab` with which the vocabulary was trained. None also means
            that `vocab.model` was copied into the folder.
        labels: the teacher that has written the target side; None if it is the raw text.
    """

    raw: tuple[TextRecord, ...] | None = None
    clean: Mapping[str, Any] | None = None
    vocab: Mapping[str, Any] | None = None
    labels: str | None = None


@dataclass(frozen=True)
class Expected:
    """What the reader of a split expects of its shards.

    Attributes:
        languages: language codes of source and target.
        model: trained model that reads the shards; None: an experiment is trained on them. A model
            may read any text of its languages.
        raw: raw files that the experiment names for the split.
        clean: options of `data.clean` that apply to the split.
        vocab: options of `data.vocab`.
        clean_defaults: options of `data.clean` that are recorded only if they have another value.
        corpora: names of the corpora.
    """

    languages: tuple[str, str]
    model: str | None = None
    raw: tuple[PairPath, ...] = ()
    clean: Mapping[str, Any] | None = None
    vocab: Mapping[str, Any] | None = None
    clean_defaults: Mapping[str, Any] = field(default_factory=dict)
    corpora: tuple[str, ...] = ()

    def cleaning(self, options: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Return expected or recorded options of `data.clean` with those that are left out."""
        if options is None:
            return {}
        known = {**self.clean_defaults, **options}
        known.pop(BY_CORPUS, None)
        return known

    def cleaning_by_corpus(
        self, one: Mapping[str, Any] | None, other: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, Any, Any]]:
        """Yield options of corpora of which expected or recorded ones differ from the split's.

        Yields:
            Corpus and option as `NAME.clean.KEY`, and both values.
        """
        if one is None or other is None:
            return
        own = [options.get(BY_CORPUS, {}) for options in (one, other)]
        whole = [self.cleaning(options) for options in (one, other)]
        for name in self.corpora:
            ours, theirs = (each.get(name, {}) for each in own)
            for key in dict.fromkeys([*ours, *theirs]):
                if all(key in each for each in whole):
                    yield (
                        f"{name}.clean.{key}",
                        ours.get(key, whole[0][key]),
                        theirs.get(key, whole[1][key]),
                    )


def same_language(one: str, other: str) -> bool:
    """Return whether two codes name one language, whatever its region: `zh` and `zh_CN`."""
    first, second = (re.split("[-_]", code.lower())[0] for code in (one, other))
    return first == second


def check_origin(manifest: Manifest, folder: Path, split: str, expected: Expected) -> None:
    """Compare shards with what their reader expects; print what cannot be verified.

    Only the first rank looks: it may have to read the raw text.

    Args:
        manifest: manifest of the shards.
        folder: folder of the shards.
        split: name of the split.
        expected: what its reader expects.

    Raises:
        UserError: they differ; one line per difference says how to mend it.
    """
    from ds_seq import distributed  # loads torch, which `ds-seq check` does without

    if distributed.rank() != 0:
        return
    errors, notes = compare(manifest, folder, split, expected)
    if errors:
        raise UserError("\n".join(errors))
    for note in notes:
        _say(note)


def compare(
    manifest: Manifest, folder: Path, split: str, expected: Expected
) -> tuple[list[str], list[str]]:
    """Compare shards with what their reader expects; see `check_origin`.

    Returns:
        The differences, and what cannot be verified or does no harm; a line for each.
    """
    arguments = (manifest, folder, split, expected)
    if expected.model is not None:
        return list(_model_errors(*arguments)), list(_model_notes(manifest, folder, expected))
    return list(_experiment_errors(*arguments)), list(_notes(*arguments))


@cache
def _say(note: str) -> None:
    """Print a note once, however many splits it holds for."""
    print(f"ds-seq: note: {note}", file=sys.stderr, flush=True)


def _model_errors(
    manifest: Manifest, folder: Path, split: str, expected: Expected
) -> Iterator[str]:
    if manifest.languages != expected.languages:
        yield (
            f"{folder}: the {split} shards are {' -> '.join(manifest.languages)}, but "
            f"{expected.model} translates {' -> '.join(expected.languages)}; give shards of these "
            "languages"
        )


def _experiment_errors(
    manifest: Manifest, folder: Path, split: str, expected: Expected
) -> Iterator[str]:
    origin = manifest.origin
    remake = _PREPARE if origin.labels is None else "run `ds-seq pseudo-label` again"
    pairs: list[tuple[str, Any, Any]] = [
        (f"data.{side}_lang", wanted, found)
        for side, wanted, found in zip(SIDES, expected.languages, manifest.languages, strict=True)
    ]
    for section, options, recorded in (
        ("vocab", expected.vocab or {}, origin.vocab or {}),
        ("clean", expected.cleaning(expected.clean), expected.cleaning(origin.clean)),
    ):
        keys = [key for key in options if key in recorded]
        pairs += [(f"data.{section}.{key}", options[key], recorded[key]) for key in keys]
    if expected.corpora == tuple(corpus.name for corpus in manifest.corpora):
        by_corpus = expected.cleaning_by_corpus(expected.clean, origin.clean)
        pairs += [(f"data.corpora.{key}", *values) for key, *values in by_corpus]
    for key, wanted, found in pairs:
        if wanted != found:
            yield (
                f"{key}: {_text(wanted)}, but the {split} shards in {folder} were made with "
                f"{_text(found)}; {remake}, or set {key}={_text(found)}"
            )
    yield from _raw_errors(origin, folder, split, expected.raw, remake)


def _raw_errors(
    origin: Origin, folder: Path, split: str, raw: tuple[PairPath, ...], remake: str
) -> Iterator[str]:
    if origin.raw is None or not raw:
        return
    if origin.labels is not None:  # labels and original pairs are corpora of the same text
        raw = tuple(dict.fromkeys(raw))
    paths = [path for pair in raw for path in pair]
    if len(paths) != len(origin.raw):
        unit = "pair(s) of files" if raw[0].num_sides == 2 else "file(s)"
        yield (
            f"data.raw.{split}: names {len(raw)} {unit}, but the shards in {folder} were made from "
            f"{len(origin.raw) // raw[0].num_sides}; {remake}, or name those"
        )
        return
    parts = [_part(text, side) for text in raw for side in range(text.num_sides)]
    for path, part, record in zip(paths, parts, origin.raw, strict=True):
        if part != record.part:
            yield (
                f"data.raw.{split}: names {part or 'all'} of {path}, but the shards in {folder} "
                f"were made from {record.part or 'all'} of it; {remake}, or name that"
            )
        elif path.is_file() and not record.describes(path):
            yield (
                f"data.raw.{split}: {path} is not the text that the shards in {folder} were made "
                f"from (it has another SHA-256); {remake}, or give that text"
            )


def _model_notes(manifest: Manifest, folder: Path, expected: Expected) -> Iterator[str]:
    """Yield differences that do a model no harm."""
    recorded = expected.cleaning(manifest.origin.clean)
    for key, wanted in expected.cleaning(expected.clean).items():
        found = recorded.get(key, wanted)
        if found != wanted:
            yield (
                f"{folder}: the shards were made with data.clean.{key}={_text(found)}, "
                f"{expected.model} was trained with {_text(wanted)}"
            )


def _notes(manifest: Manifest, folder: Path, split: str, expected: Expected) -> Iterator[str]:
    """Yield what the manifest cannot prove, and where its targets are from."""
    origin = manifest.origin
    if origin.labels is not None:
        yield (
            f"{folder}: the targets of the {split} shards are translations by {origin.labels}, not "
            f"those of data.raw.{split}"
        )
    unknown = []
    if origin.raw is None and expected.raw:
        unknown.append("raw text")
    if origin.clean is None and expected.clean is not None:
        unknown.append("cleaning")
    if unknown and origin.vocab is None and expected.vocab is not None:
        unknown.append("vocabulary")
    if unknown:
        fix = "; `ds-seq prepare` records it, and repeats nothing that is up to date"
        yield (
            f"{folder}: cannot verify that the shards were made with the experiment's "
            f"{', '.join(unknown)}, because their manifests do not record it"
            f"{'' if origin.labels else fix}"
        )
    absent = [path for pair in expected.raw for path in pair if not path.is_file()]
    if origin.raw is not None and absent:
        yield (
            f"data.raw.{split}: cannot verify that the shards in {folder} were made from "
            f"{' and '.join(map(str, absent))}: no such file here"
        )
    size = (expected.vocab or {}).get("size", manifest.vocab_size)
    if origin.vocab is None and size != manifest.vocab_size:
        yield (
            f"data.vocab.size: {size}, but {folder}/vocab.model, which was copied there or made by "
            f"an earlier version, has {manifest.vocab_size}; set data.vocab to what it is"
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
