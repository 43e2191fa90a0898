"""Shards that a trained model reads."""

from __future__ import annotations

from pathlib import Path

from ds_seq.data.expected import expected_by_model
from ds_seq.data.open import open_shards
from ds_seq.data.origin import check_origin
from ds_seq.data.shards import ShardReader
from ds_seq.runs.card import LoadedRun, StoredRun


def check_for_model(
    reader: ShardReader,
    folder: str | Path,
    split: str,
    name: str | Path,
    run: StoredRun | LoadedRun,
) -> None:
    """Compare shards with the model that reads them; see `ds_seq.data.origin.check_origin`.

    Args:
        reader: the shards, with the vocabulary of the model.
        folder: their folder.
        split: name of the split.
        name: what the user calls the model.
        run: the model.

    Raises:
        UserError: the shards have other languages.
    """
    card, found = run.card, reader.manifest.languages
    languages = found if card.can_read(found) else (card.source_lang, card.target_lang)
    expected = expected_by_model(str(name), languages, run.experiment)
    check_origin(reader.manifest, Path(folder), split, expected)


def open_for_model(
    folder: str | Path, split: str, name: str | Path, run: StoredRun | LoadedRun
) -> ShardReader:
    """Open shards for a trained model.

    Args:
        folder: folder of the shards.
        split: name of the split.
        name: what the user calls the model.
        run: the model.

    Raises:
        UserError: the shards are missing or damaged, or have another vocabulary or languages.
    """
    reader = open_shards(folder, split, run.tokenizers.fingerprint)
    check_for_model(reader, folder, split, name, run)
    return reader
