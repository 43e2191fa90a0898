"""Shards that a trained model reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ds_seq.data.batch import ParallelDataset
from ds_seq.data.corpora import CorporaDataset, Part
from ds_seq.data.expected import expected_by_model
from ds_seq.data.open import open_shards
from ds_seq.data.origin import check_origin
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import Source, untagged_rows
from ds_seq.data.truncation import UNCUT, TruncatedSource
from ds_seq.errors import UserError
from ds_seq.runs.card import LoadedRun, ModelCard, StoredRun
from ds_seq.tasks import cut_limits
from ds_seq.tasks.corpora import named_texts
from ds_seq.tasks.mix import corpus_parts
from ds_seq.text.tags import untagged_message


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
    if reader.manifest.sides == 1:
        raise UserError(f"{folder}: holds text of one side, and this command reads pairs")
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


def cut_as_trained(source: Source, run: StoredRun | LoadedRun) -> Source:
    """Return pairs as the training of a model cut them (`data.long_pairs`)."""
    limits = UNCUT if run.experiment is None else cut_limits(run.experiment.data)
    return source if limits == UNCUT else TruncatedSource(source, limits)


def pairs_as_trained(
    reader: ShardReader, split: str, run: StoredRun | LoadedRun
) -> ParallelDataset:
    """Return the pairs of shards that are within a model's limits, as its training reads them.

    They are cut as there, and have the tags of `data.mixing.language_tags`, which are not in the
    shards; such a dataset is a `CorporaDataset`.

    Args:
        reader: the shards.
        split: name of their split.
        run: the model.
    """
    source, sizes = cut_as_trained(reader, run), run.card.sizes
    limits = sizes.max_source_length, sizes.max_target_length
    parts = _tagged_parts(reader, split, run)
    return CorporaDataset(source, parts, *limits) if parts else ParallelDataset(source, *limits)


def _tagged_parts(reader: ShardReader, split: str, run: StoredRun | LoadedRun) -> list[Part]:
    """Return the corpora of the shards if training adds tags to them; none of other shards."""
    known = [record.name for record in reader.manifest.corpora]
    if (
        run.experiment is None
        or not known
        or known != list(named_texts(run.experiment.data, split))
    ):
        return []
    parts = corpus_parts(run.experiment.data, run.tokenizers, split, reader)
    if not any(any(part.tags) for part in parts):
        return []
    return [replace(part, join=None, modifier=None, in_stages={}) for part in parts]


def untagged_warning(reader: ShardReader, card: ModelCard) -> str | None:
    """Return a warning if sources of shards lack the language tag that a model reads; else None.

    If no source has one, and the model does not need it, the shards are of another kind of text.
    """
    tags = card.source_tags
    untagged, size = untagged_rows(reader, tags) if tags else ((), 0)
    if not len(untagged) or (len(untagged) == size and not card.routes_by_language):
        return None
    return f"{len(untagged):,} of {size:,} {untagged_message(tags)}"
