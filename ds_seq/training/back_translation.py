"""The corpora of an experiment whose sources the model makes in training."""

from __future__ import annotations

from dataclasses import replace

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.mixing import BackTranslateConfig
from ds_seq.criterions import Criterion
from ds_seq.criterions.back_translation import BackTranslation, TargetText
from ds_seq.criterions.generator import Generator, candidate_search
from ds_seq.data.corpora import CorporaDataset, Part
from ds_seq.errors import UserError
from ds_seq.generation.build import build_search
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.sampling import Sampling
from ds_seq.tasks.base import Task
from ds_seq.text.experts import expert_ids


def with_back_translation(
    criterion: Criterion, config: ExperimentConfig, task: Task, dataset: CorporaDataset
) -> Criterion:
    """Return a criterion that makes the sources of the corpora with `back_translate`.

    Raises:
        UserError: symbols stand around each sentence of the vocabulary.
    """
    symbols = task.symbols
    if symbols.opening or symbols.closing:
        raise UserError(
            "data.corpora: back_translate: each sentence of this vocabulary begins or ends with a "
            "symbol, such as its language, which translations of the model would need; remove it"
        )
    texts = []
    for part in dataset.parts:
        corpus = config.data.corpora.get(part.name)
        if corpus is not None and corpus.back_translate is not None:
            texts.append(_text(part, corpus.back_translate, config, task, dataset))
    return BackTranslation(criterion, texts, symbols)


def _text(
    part: Part,
    settings: BackTranslateConfig,
    config: ExperimentConfig,
    task: Task,
    dataset: CorporaDataset,
) -> TargetText:
    source_lang, positions = part.languages[0], config.model.max_positions
    # the tag of the language is the first one
    back_tags = next(
        other.tags[0][:1] for other in dataset.parts if other.languages[1] == source_lang
    )
    room = min(positions, config.data.max_source_length) - len(part.tags[0])
    experts = expert_ids(task.tokenizers.target, config.experts) if config.experts else ()
    search = build_search(config.generation, task.symbols, room, experts=experts)
    return TargetText(
        part.rows,
        back_tags,
        part.tags[0],
        len(part.tags[1]),
        Generator(_first_only(search, settings), config.train.seed),
        positions,
    )


def _first_only(search: BeamSearch, settings: BackTranslateConfig) -> BeamSearch:
    """Return the search for a single translation of each sentence."""
    if settings.sampling:
        drawn = Sampling(top_k=0, top_p=1.0, epsilon=0.0, seed=1)  # the seed is that of the update
        return candidate_search(search, 1, drawn, temperature=1.0)
    return replace(candidate_search(search, settings.width, None, temperature=1.0), num_best=1)
