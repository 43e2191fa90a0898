"""Check what has checksums: runs, checkpoints, exports, data folders and teacher caches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product, starmap
from pathlib import Path
from typing import Any, NamedTuple

from ds_seq import files
from ds_seq.config.changes import changes, settings
from ds_seq.config.load import load_experiment
from ds_seq.data.alignments import AlignmentReader, check_alignments, has_alignments
from ds_seq.data.cache_manifest import cached_splits, check_cache
from ds_seq.data.manifest import Manifest
from ds_seq.data.shards import ShardReader
from ds_seq.errors import UserError
from ds_seq.names import SPECIAL_PIECES
from ds_seq.runs.formats.ds_seq import (
    CONFIG_FILE,
    CONFIG_HASH_KEY,
    EXPORT_FILE,
    EXPORT_SUFFIX,
    RunFolder,
    find_checkpoint,
)
from ds_seq.runs.versions import HISTORY_FILE, config_of, read_versions
from ds_seq.tasks.step import read_step
from ds_seq.text.sentencepiece import possible_fingerprints
from ds_seq.text.tokenizer import joint_fingerprint
from ds_seq.text.vocab_file import VOCAB_FILE, VOCAB_FILES, read_vocab_file, vocab_paths
from ds_seq.weights.meta import CHECKPOINTS, INDEX_FILE, KINDS, META_FILE, read_index, read_meta
from ds_seq.weights.source import TensorFile, TensorFolder, check_checkpoint, check_export

_CHECKPOINT = re.compile(r"update_\d+")  # not those that a resumed run has set aside
_MANIFEST_SUFFIX = ".manifest.json"
_OF_SHARDS = "is the vocabulary of the shards"
_NO_CHECKSUMS = "complete; written by an earlier version, without checksums"


class Finding(NamedTuple):
    """The outcome of one check."""

    path: Path
    """What was checked."""
    note: str
    """What was found: how it was checked, or what is wrong."""
    is_sound: bool
    """Whether nothing is wrong."""


def verify(path: Path) -> Iterator[Finding]:
    """Check all files of a run folder, checkpoint, export, data folder or teacher cache.

    Args:
        path: folder or exported file; a folder may be several of these, for example a data folder
            with caches in it.

    Yields:
        A finding for each part.

    Raises:
        UserError: there is nothing that can be checked.
    """
    if path.is_file() and path.suffix == EXPORT_SUFFIX:
        yield _checked(path, partial(_check_export, path))
        return
    if not path.is_dir():
        raise UserError(f"{path}: {'not an export' if path.exists() else 'no such file or folder'}")
    findings = [*_run(path), *_data(path)]
    if (path / files.SUMS_FILE).is_file():
        findings.append(_checked(path, partial(_check_sums, path)))
    if not findings:
        raise UserError(
            f"{path}: nothing to verify: neither a run, a checkpoint, an export, a data folder nor "
            "a teacher cache"
        )
    yield from findings


def _run(path: Path) -> Iterator[Finding]:
    """Check a checkpoint, or a run folder or exported folder."""
    if (path / META_FILE).is_file():
        yield _checked(path, partial(_check_checkpoint, path))
    if not (path / CONFIG_FILE).is_file():
        return
    yield _checked(path / CONFIG_FILE, partial(_check_config, path))
    if (path / EXPORT_FILE).is_file():
        yield _checked(path / EXPORT_FILE, partial(_check_export, path / EXPORT_FILE))
    checkpoints = path / CHECKPOINTS
    for folder in sorted(checkpoints.glob("update_*")):
        if _CHECKPOINT.fullmatch(folder.name):
            yield _checked(folder, partial(_check_checkpoint, folder))
    if checkpoints.is_dir():
        yield _checked(checkpoints / INDEX_FILE, partial(_check_index, path))
    names = VOCAB_FILES if (path / VOCAB_FILES[0]).exists() else (VOCAB_FILE,)
    for name in names:
        yield _checked(path / name, partial(_check_vocab, path))


def _data(path: Path) -> Iterator[Finding]:
    """Check a data folder, and the teacher caches in it."""
    for manifest in sorted(path.glob(f"*{_MANIFEST_SUFFIX}")):
        yield _checked(manifest, partial(_check_shards, manifest))
        split = manifest.name.removesuffix(_MANIFEST_SUFFIX)
        if has_alignments(path, split):
            name = path / f"{split}.align.json"
            yield _checked(name, partial(_check_alignments, path, split))
    if any(path.glob(f"*{_MANIFEST_SUFFIX}")):
        yield from _vocab_of_shards(path)
    vocab = [path / Path(name).with_suffix(".json") for name in (VOCAB_FILE, *VOCAB_FILES)]
    for record in [*vocab, *sorted(path.glob("clean/*.json"))]:
        if record.is_file():
            yield _checked(record, partial(_check_step, record))
    reports = path / "clean" / "reports"
    if (reports / files.SUMS_FILE).is_file():
        yield _checked(reports, lambda: f"SHA-256 of {files.check_sums(reports)} files is right")
    for folder in [path, *sorted(item for item in path.iterdir() if item.is_dir())]:
        for split in cached_splits(folder):
            name = folder / f"{split}.teacher"
            yield _checked(name, partial(_check_cache, folder, split))


def _checked(path: Path, check: Callable[[], str]) -> Finding:
    try:
        return Finding(path, check(), True)
    except UserError as error:
        return Finding(path, str(error), False)


def _check_config(folder: Path) -> str:
    """Compare a config with what is recorded about it elsewhere; people may have changed it."""
    path, is_exported = folder / CONFIG_FILE, False
    if (folder / EXPORT_FILE).is_file() and not (folder / CHECKPOINTS).is_dir():
        written = TensorFile(folder / EXPORT_FILE).metadata().get(CONFIG_HASH_KEY)
        is_exported = written is not None
        if is_exported and files.fingerprint(path) != written:
            raise UserError(
                f"{path}: is not what was exported (SHA-256 differs); if you have not changed it, "
                "copy or export it again"
            )
    config = load_experiment(path)
    if (folder / HISTORY_FILE).is_file():
        last = config_of(read_versions(folder)[-1], folder)
        if found := changes(settings(last, {}), settings(config, {})):
            differences = "; ".join(map(str, found))
            raise UserError(
                f"{path}: is not what the run was last trained with ({differences}); change it "
                "back, or let `ds-seq train --resume` write it again"
            )
        return f"is the last version in {HISTORY_FILE}"
    return "SHA-256 is right" if is_exported else "can be read"


def _check_sums(folder: Path) -> str:
    return f"SHA-256 of {files.check_sums(folder)} files is right"


def _check_export(path: Path) -> str:
    TensorFile(path)
    return "SHA-256 is right" if check_export(path) else _NO_CHECKSUMS


def _check_checkpoint(folder: Path) -> str:
    for kind in KINDS:
        TensorFolder(folder, kind, checked=True)
    return "SHA-256 of all files is right" if check_checkpoint(folder) else _NO_CHECKSUMS


def _check_index(path: Path) -> str:
    named = {which: find_checkpoint(path, which) for which in ("last", "best")}
    for which, folder in named.items():
        if not (folder / META_FILE).is_file():
            raise UserError(
                f"{path / CHECKPOINTS / INDEX_FILE}: the {which} checkpoint, {folder.name}, is "
                "missing; `ds-seq train --resume` corrects the file"
            )
    index = read_index(path / CHECKPOINTS)
    for name, score in {entry["name"]: entry["score"] for entry in index["best"]}.items():
        notes: Mapping[str, Any] = read_meta(path / CHECKPOINTS / name)
        if notes.get("score", score) != score:
            raise UserError(
                f"{path / CHECKPOINTS / INDEX_FILE}: says that {name} has the score {score}, but "
                f"the checkpoint has {notes['score']}; remove the file, and `ds-seq train "
                "--resume` makes it again"
            )
    return f"the last is {named['last'].name}, the best {named['best'].name}"


def _check_vocab(path: Path) -> str:
    if not (path / CHECKPOINTS).is_dir() and not (path / EXPORT_FILE).is_file():
        raise UserError(f"{path}: has neither checkpoints nor {EXPORT_FILE}")
    RunFolder().open(path, "last")
    return "can be read, and is that of the weights if they record it"


def _check_shards(path: Path) -> str:
    manifest = Manifest.read(path)
    manifest.check_files(path.parent, full=True)
    return f"SHA-256 of {len(manifest.files)} files is right"


def _check_alignments(folder: Path, split: str) -> str:
    check_alignments(folder, split)
    AlignmentReader(folder, split, ShardReader(folder, split))
    return "SHA-256 of 2 files is right, and they belong to the shards"


def _vocab_of_shards(folder: Path) -> Iterator[Finding]:
    """Compare the vocabulary with the fingerprints in the manifests.

    Files of another `data.vocab.joint` may be left over, and are no mistake.
    """
    found = set()
    for manifest in folder.glob(f"*{_MANIFEST_SUFFIX}"):
        with suppress(UserError):  # reported by the check of that manifest
            found.add(Manifest.read(manifest).vocab_hash)
    checks: dict[Path, Callable[[], str]] = {}
    for paths in (vocab_paths(folder, joint=True), vocab_paths(folder, joint=False)):
        if all(path.is_file() for path in paths):
            checks[paths[0]] = partial(_check_vocab_of_shards, paths, found)
    findings = [_checked(path, check) for path, check in checks.items()]
    yield from [finding for finding in findings if finding.note == _OF_SHARDS] or findings


def _check_vocab_of_shards(paths: Sequence[Path], found: set[str]) -> str:
    """Compare vocabularies of SentencePiece with the fingerprints in the manifests."""
    contents = [read_vocab_file(path) for path in paths]
    possible = [possible_fingerprints(content) for content in contents]
    if found & set(starmap(joint_fingerprint, product(possible[0], possible[-1]))):
        return _OF_SHARDS
    if not found or any(
        piece.encode() not in content for content in contents for piece in SPECIAL_PIECES
    ):
        return "can be read; only its own kind of tokenizer can say more"
    names = " and ".join(map(str, paths))
    raise UserError(
        f"{names}: is not the vocabulary that the shards were made with; copy it again, or run "
        "`ds-seq prepare` again"
    )


def _check_step(record: Path) -> str:
    """Compare what a step of `prepare` recorded with the files that it wrote."""
    written = read_step(record)["outputs"]
    stem = record.name.removesuffix(".json")
    vocab = record.with_suffix(".model")
    outputs = [vocab] if vocab.name in (VOCAB_FILE, *VOCAB_FILES) else None
    if outputs is None:
        outputs = sorted(p for p in record.parent.glob(f"{stem}.*") if p.suffix != record.suffix)
    actual = {files.fingerprint(path) for path in outputs if path.is_file()}
    if actual != set(written):
        names = ", ".join(path.name for path in outputs) or "its files"
        raise UserError(
            f"{record}: {names} changed since `ds-seq prepare` wrote this; if that was not on "
            "purpose, remove them and run `ds-seq prepare` again"
        )
    return f"SHA-256 of {len(outputs)} file(s) is right" if outputs else "can be read"


def _check_cache(folder: Path, split: str) -> str:
    return "SHA-256 of all parts is right" if check_cache(folder, split) else _NO_CHECKSUMS
