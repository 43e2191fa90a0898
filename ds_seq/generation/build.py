"""Build a search and its batch limits from the config section `generation`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from ds_seq.config.generation import GenerationConfig
from ds_seq.config.messages import findings
from ds_seq.errors import UserError
from ds_seq.generation.translate import BatchLimits
from ds_seq.search.beam_search import BeamSearch
from ds_seq.search.diversity import DiverseGroups, DiverseSiblings
from ds_seq.search.experts import ExpertSearch
from ds_seq.search.guides import Plain, SelectionMaker
from ds_seq.search.prefix import Prefixes
from ds_seq.search.sampling import Sampling
from ds_seq.text.tokenizer import Symbols

BATCH_SIZE = frozenset({"max_tokens", "max_sentences"})
"""Fields of `GenerationConfig` that do not affect translations, so they may change at a resume."""


class Decoding(NamedTuple):
    """The settings of a generation with the search and batch limits built from them."""

    settings: GenerationConfig
    search: BeamSearch
    limits: BatchLimits


def build_decoding(
    settings: GenerationConfig,
    symbols: Symbols,
    max_positions: int,
    longest_source: int,
    num_best: int = 1,
    experts: Sequence[int] = (),
) -> Decoding:
    """Build the search and the batch limits that a config describes.

    Args:
        settings: the section `generation`.
        symbols: special symbols of the target.
        max_positions: most tokens that the decoder accepts.
        longest_source: most tokens of a source.
        num_best: number of hypotheses to return per sentence; at most the number that the search
            keeps.
        experts: start symbol of each expert of a mixture; empty: the model is none.

    Raises:
        UserError: there is no such expert.
    """
    return Decoding(
        settings,
        build_search(settings, symbols, max_positions, num_best, experts),
        build_limits(settings, longest_source),
    )


def build_search(
    config: GenerationConfig,
    symbols: Symbols,
    max_positions: int,
    num_best: int = 1,
    experts: Sequence[int] = (),
) -> BeamSearch:
    """Build the search that a config describes; see `build_decoding` for the arguments."""
    sampling = Sampling(
        top_k=config.sampling_top_k,
        top_p=config.sampling_top_p,
        epsilon=config.sampling_epsilon,
        seed=config.seed,
    )
    search = BeamSearch(
        symbols=symbols,
        beam=config.beam,
        length_penalty=config.length_penalty,
        length_penalty_form=config.length_penalty_form,
        unk_penalty=config.unk_penalty,
        temperature=config.temperature,
        max_len_a=config.max_len_a,
        max_len_b=config.max_len_b,
        min_len=config.min_len,
        no_repeat_ngram=config.no_repeat_ngram,
        sampling=sampling if config.sampling else None,
        selection=_build_selection(config, symbols.eos),
        max_positions=max_positions,
        num_best=num_best,
        guides=(Prefixes(common=symbols.opening),) if symbols.opening else (),
    )
    return _by_experts(search, config.expert, experts)


def _by_experts(
    search: BeamSearch, expert: int | Literal["all"], starts: Sequence[int]
) -> BeamSearch:
    """Return the search of the chosen experts of a mixture, whose start symbols are given."""
    if not starts and expert == 1:
        return search
    if expert == "all" and starts:
        settings = {field.name: vars(search)[field.name] for field in fields(search)}
        return ExpertSearch(**settings, starts=tuple(starts))
    if expert == "all" or expert > len(starts):
        there_are = f"the model has {len(starts)}" if starts else "the model is no mixture"
        raise UserError(f"expert {expert}: {there_are} (criterion hard_em); choose another number")
    return replace(search, symbols=replace(search.symbols, start=starts[expert - 1]))


def _build_selection(config: GenerationConfig, end: int) -> SelectionMaker:
    if config.diverse_groups > 1:
        return DiverseGroups(config.diverse_groups, config.diverse_strength, end)
    return DiverseSiblings(config.diverse_siblings) if config.diverse_siblings > 0 else Plain()


def build_limits(config: GenerationConfig, longest_source: int) -> BatchLimits:
    """Build the batch limits of a config, for sources of up to `longest_source` tokens."""
    return BatchLimits(config.max_tokens, config.max_sentences, longest_source)


def changed_settings(
    settings: GenerationConfig, changes: Mapping[str, Any], spelled: Callable[[str], str]
) -> GenerationConfig:
    """Return generation settings with some fields changed.

    Args:
        settings: the settings of the model's card.
        changes: new values by field.
        spelled: returns how the user wrote the name of a field, for messages.

    Raises:
        UserError: some values are invalid; the message lists all of them, one per line.
    """
    data: dict[str, Any] = settings.model_dump(mode="json") | dict(changes)
    try:
        return GenerationConfig.model_validate(data)
    except ValidationError as error:
        # the user's spelling already names the key, so the key itself is left out
        messages = [
            f"{spelled(str(path[-1]))}: {message}"
            for path, message in findings(error, data, GenerationConfig)
        ]
        raise UserError("\n".join(messages)) from None


def check_n_best(n_best: int, settings: GenerationConfig) -> None:
    """Check that a search keeps at least `n_best` hypotheses; sampling can draw any number.

    Raises:
        UserError: the number is below 1 or above the beam width.
    """
    if n_best < 1:
        raise UserError(f"--n-best {n_best}: at least 1 hypothesis is needed")
    if n_best > settings.beam and not settings.sampling:
        raise UserError(
            f"--n-best {n_best}: the search keeps {settings.beam} hypotheses; raise --beam"
        )
