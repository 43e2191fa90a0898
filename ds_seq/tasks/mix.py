"""The mix of corpora that an experiment describes: what is in it, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ds_seq.config.data import DataConfig
from ds_seq.config.mixing import CorpusConfig, MixingConfig, StageConfig
from ds_seq.config.modifiers import ModifiersConfig
from ds_seq.config.text_files import SplitConfig
from ds_seq.data.batch import Batch
from ds_seq.data.batching import TokenBatchSampler
from ds_seq.data.corpora import CorporaDataset, Part
from ds_seq.data.expected import files_of
from ds_seq.data.manifest import CorpusRecord
from ds_seq.data.mixing import (
    Corpus,
    Mix,
    Position,
    Stage,
    Until,
    epoch_pairs,
    shares_by_size,
    shares_of,
)
from ds_seq.data.modify import Changes, Modifier
from ds_seq.data.shards import ShardReader
from ds_seq.data.source import ChangingDataset, Dataset, InParts, Source
from ds_seq.data.stream import Collate
from ds_seq.errors import UserError
from ds_seq.tasks.base import Task
from ds_seq.tasks.corpora import TRAIN, named_texts
from ds_seq.tasks.held_out import HeldOut
from ds_seq.text.tokenizer import Tokenizer, Tokenizers


def corpus_parts(
    data: DataConfig, tokenizers: Tokenizers, split: str, source: Source
) -> list[Part]:
    """Return the corpora of a split if it has several, or if its examples are not plain pairs.

    Args:
        data: the section.
        tokenizers: tokenizers of the ids.
        split: `train`, `valid` or `test`.
        source: its examples.

    Raises:
        UserError: the shards have other corpora, or a tag is no single id of the vocabulary.
    """
    texts = named_texts(data, split)
    if split == TRAIN and not texts:
        modifier = _modifier(data.modify, tokenizers)
        whole = Part(TRAIN, range(len(source)), data.languages, modifier=modifier)
        return [whole] if whole.is_changed else []
    records = _records(data, split, source)
    if not records:
        return []
    return [
        _part(data, tokenizers, record, text, split)
        for record, text in zip(records, texts.values(), strict=True)
    ]


def _records(data: DataConfig, split: str, source: Source) -> Sequence[CorpusRecord]:
    """Return the corpora of shards; none in shards of an earlier version, of held-out text.

    Raises:
        UserError: the shards have other corpora than the experiment.
    """
    texts = named_texts(data, split)
    records = source.manifest.corpora if isinstance(source, ShardReader) else ()
    is_tagged = any(any(data.tags(text)) for text in texts.values())
    if split != TRAIN and not records and not is_tagged:
        return ()  # shards of an earlier version, and nothing that needs to know
    if [record.name for record in records] != list(texts):
        there = ", ".join(record.name for record in records) or "no names"
        where = "data.corpora" if split == TRAIN else f"data.raw.{split}"
        is_labeled = isinstance(source, ShardReader) and source.manifest.origin.labels is not None
        remedy = "name these" if is_labeled and records else "run `ds-seq prepare` again"
        raise UserError(
            f"{where}: has {', '.join(texts)}, but the {split} shards in {data.dir} have {there}; "
            f"{remedy}"
        )
    return records


def text_parts(data: DataConfig, split: str, source: Source) -> list[Part]:
    """Return the corpora or files of a split of text of one side; see `corpus_parts`.

    Raises:
        UserError: the shards have other corpora.
    """
    texts, records = named_texts(data, split), _records(data, split, source)
    if not texts or not records:
        return [Part(split, range(len(source)), data.languages, fingerprint=source.fingerprint)]
    return [
        Part(each.name, each.rows, each.languages, fingerprint="".join(each.inputs))
        for each in records
    ]


def held_out_texts(data: DataConfig, split: str) -> list[HeldOut]:
    """Return what each raw text of a split is."""
    return [
        HeldOut(text.pair(data.languages), *(tuple(tags) for tags in data.tags(text)))
        for _, text in data.entries(split)
        for _ in files_of(data, split, text)
    ]


def _part(
    data: DataConfig, tokenizers: Tokenizers, record: CorpusRecord, text: SplitConfig, split: str
) -> Part:
    source_tags, target_tags = (
        tuple(_tag_id(tag, tokenizer, side) for tag in tags)
        for tags, tokenizer, side in zip(
            data.tags(text), tokenizers, ("source", "target"), strict=True
        )
    )
    if isinstance(text, CorpusConfig):
        _check_frames(text, data, tokenizers)
    changes, in_stages = None, dict[int, Modifier | None]()
    if isinstance(text, CorpusConfig):
        changes = _modifier(text.modify or data.modify, tokenizers)
        in_stages = {
            number: _modifier(stage.modify, tokenizers)
            for number, stage in enumerate(data.mixing.stages)
            if stage.modify is not None
        }
    return Part(
        record.name,
        record.rows,
        text.pair(data.languages),
        (source_tags, target_tags),
        text.join if isinstance(text, CorpusConfig) else None,
        changes,
        in_stages,
        "".join(record.inputs),
    )


def _check_frames(text: CorpusConfig, data: DataConfig, tokenizers: Tokenizers) -> None:
    """Refuse what cuts and joins stored sentences where symbols stand around them."""
    symbols = [tokenizer.symbols for tokenizer in tokenizers]
    if text.join is not None and any(each.opening or each.closing for each in symbols):
        raise UserError(
            "data.corpora: join: each sentence of this vocabulary begins or ends with a symbol, "
            "such as its language, which would stand inside documents; remove join"
        )
    truncate = (text.modify or data.modify).truncate
    if truncate is not None and any(each.closing for each in symbols):
        raise UserError(
            "data.modify.truncate: sources of this vocabulary end with their language, which a cut "
            "would remove; remove truncate, or use data.max_source_length"
        )


def _tag_id(tag: str, tokenizer: Tokenizer, side: str) -> int:
    ids = tokenizer.encode(tag)
    if len(ids) != 1 or ids[0] not in tokenizer.tag_ids:
        raise UserError(
            f"data.vocab.user_symbols: {tag} is no symbol of the {side} vocabulary, which was made "
            "without it; run `ds-seq prepare` again (remove vocab.model first if it was copied)"
        )
    return ids[0]


def _modifier(config: ModifiersConfig, tokenizers: Tokenizers) -> Modifier | None:
    changes = Changes(**config.model_dump())
    return Modifier(changes, tokenizers) if changes.any or changes.truncate else None


def build_mix(
    data: DataConfig, seed: int, dataset: Dataset, sampler: TokenBatchSampler
) -> Mix | None:
    """Return the mix of the training pairs; None if each epoch has each of them once, unchanged.

    Args:
        data: the section.
        seed: seed of the order.
        dataset: the training pairs.
        sampler: makes batches of them.
    """
    if not isinstance(dataset, InParts):
        return None
    mixing = data.mixing
    plain = MixingConfig(language_tags=mixing.language_tags)
    is_plain = mixing == plain and all(
        corpus.weight == 1.0 and corpus.upsample == 1 for corpus in data.corpora.values()
    )
    if is_plain and len(dataset.parts) == 1 and not dataset.has_changing_lengths:
        return None
    corpora = [
        _corpus(dataset, number, data.corpora.get(part.name))
        for number, part in enumerate(dataset.parts)
    ]
    stages = [_stage(mixing, stage, n, corpora) for n, stage in enumerate(mixing.stages, 1)]

    def bounds(stage: int, epoch: int, rows: NDArray[np.integer]) -> NDArray[np.integer]:
        return dataset.bounds((seed, epoch), rows, stage)

    return Mix(
        corpora,
        stages or [_stage(mixing, StageConfig(), 1, corpora)],
        seed,
        sampler,
        bounds if dataset.has_changing_lengths else None,
    )


def _corpus(dataset: InParts, number: int, config: CorpusConfig | None) -> Corpus:
    first, after = (int(place) for place in dataset.first[number : number + 2])
    return Corpus(
        dataset.parts[number].name,
        first,
        after - first,
        1.0 if config is None else config.weight,
        1 if config is None else config.upsample,
        dataset.fingerprint_of(number),
    )


def _stage(
    mixing: MixingConfig, config: StageConfig, number: int, corpora: Sequence[Corpus]
) -> Stage:
    known = [corpus.name for corpus in corpora]
    chosen = [corpus for corpus in corpora if corpus.name in config.names(known)]
    given = config.shares
    if given is None and config.temperature is None and mixing.shares is not None:
        given = mixing.shares
    if given is not None:
        shares = shares_of({corpus.name: given[corpus.name] for corpus in chosen})
    else:
        temperature = mixing.temperature if config.temperature is None else config.temperature
        shares = shares_by_size(chosen, float(temperature))
    until = Until() if config.until is None else Until(**config.until.model_dump())
    size = epoch_pairs(chosen, mixing.epoch_pairs)
    return Stage(config.name or str(number), shares, size, until)


def collate_in(task: Task, dataset: Dataset, seed: int) -> Callable[[Position], Collate]:
    """Return a function of a position -> what makes batches of its epoch and stage."""

    def collate(position: Position) -> Callable[[NDArray[np.integer]], Batch]:
        present = dataset
        if isinstance(dataset, ChangingDataset):
            present = dataset.in_epoch((seed, position.epoch), position.stage)
        return partial(task.collate, present)

    return collate


def untagged_parts(dataset: CorporaDataset, tags: Iterable[int]) -> list[Part]:
    """Return the corpora whose sources get no tag of the given ones from the experiment."""
    known = set(tags)
    return [part for part in dataset.parts if not known & set(part.tags[0][:1])]
