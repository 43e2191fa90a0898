"""Make a model of ds_seq of a checkpoint of fairseq.

Shapes: T target length, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ds_seq.compat.fairseq.command import Given
from ds_seq.compat.fairseq.convolutions import (
    FCONV,
    FCONV_LM,
    LIGHTCONV,
    gated_lm_section,
    gated_section,
)
from ds_seq.compat.fairseq.masked_models import is_masked_model
from ds_seq.compat.fairseq.recurrent import LSTM_LM
from ds_seq.compat.fairseq.refusals import Refusals
from ds_seq.config.model import TransformerConfig
from ds_seq.data.batch import Seq2SeqInputs
from ds_seq.data.text_batch import TextInputs
from ds_seq.errors import UserError
from ds_seq.models import attach_pieces, build_model
from ds_seq.moe.layer import MoeFeedForward
from ds_seq.names import GATED_ACTIVATIONS
from ds_seq.runs.formats.fairseq.arguments import (
    described_model,
    find_arguments,
    given_model,
    is_language_model,
)
from ds_seq.runs.formats.fairseq.characters import with_codes
from ds_seq.runs.formats.fairseq.convolutions import (
    ConvolutionConverter,
    GatedConverter,
    gated_state,
)
from ds_seq.runs.formats.fairseq.experiments import Described, Vocabulary
from ds_seq.runs.formats.fairseq.masked import MaskedConverter, MaskedReference
from ds_seq.runs.formats.fairseq.names import Converter
from ds_seq.runs.formats.fairseq.plain import read_plain
from ds_seq.runs.formats.fairseq.recurrent import (
    RECURRENT,
    RecurrentConverter,
    RecurrentLmReference,
    RecurrentReference,
    recurrent_lm_section,
    recurrent_section,
)
from ds_seq.runs.formats.fairseq.reference import LanguageReference, Reference
from ds_seq.runs.formats.fairseq.reference_convolution import GatedLmReference, GatedReference
from ds_seq.runs.formats.fairseq.stitching import read_checkpoint
from ds_seq.runs.formats.fairseq.weights import OF_CHECKPOINT, Weights, named_tensors
from ds_seq.runs.formats.imported import Imported, inputs_of, text_inputs_of
from ds_seq.text.tokenizer import Tokenizers
from ds_seq.weights.fill import model_tensors

TOLERANCE = 1e-5
"""Largest difference of a logit in float64."""

_EXPERT_FILES = "layer_*_expert_*_mp_rank_*_model_states.pt"
_SAMPLES, _LONGEST = 8, 40


def import_checkpoint(
    path: Path,
    vocabulary: Vocabulary,
    name: str,
    languages: tuple[str | None, str | None] = (None, None),
    text: Sequence[str] = (),
    taken: Weights = OF_CHECKPOINT,
) -> Imported:
    """Read a checkpoint, and compare the model that it becomes with what it computes.

    Args:
        path: the checkpoint.
        vocabulary: files of its vocabulary.
        name: name of the new run.
        languages: language codes of source and target; None: those of the checkpoint.
        text: lines of source text to compare on; empty: symbols of the dictionary.
        taken: which weights to take.

    Raises:
        UserError: a file is missing or damaged, the model has no counterpart, or the results
            differ.
    """
    checkpoint = read_checkpoint(path)
    arguments = find_arguments(checkpoint, path)
    given = given_model(arguments)
    kind = _kind_of(given)
    model_config = kind.describe(given, arguments, path)
    state = taken.read(checkpoint, path, _experts_of)
    try:
        described = Described(given, arguments, model_config, vocabulary, name, languages)
        config, tokenizers = described.experiment()
    except UserError as error:  # a value that no model can have
        raise UserError(str(error).replace("experiment: ", f"{path}: ")) from None
    model = build_model(config.model, tokenizers.sizes, 1, 0, config.train.seed)
    attach_pieces(model, config.model, tokenizers.source)
    is_gated = (
        isinstance(config.model, TransformerConfig) and config.model.activation in GATED_ACTIVATIONS
    )
    converter = kind.converter(state, path, is_gated)
    with torch.no_grad():
        for ours, tensor in model_tensors(model):
            tensor.copy_(converter.make(ours, tensor.shape))
    entries = converter.finish()
    pairs = _sentences(tokenizers, text, config.model.max_positions)
    known = with_codes(_wide(state), tokenizers.target.pieces(range(len(tokenizers.target))))
    reference = kind.reference(known, given, model_config)
    difference, count = _compare(model, reference, kind.inputs, pairs)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{path}: the imported model computes something else: logits differ by up to "
            f"{difference:.1e}, more than {TOLERANCE:g}; nothing is written"
        )
    return Imported(model, config, tokenizers, entries, difference, count, _updates(checkpoint))


_Inputs = Seq2SeqInputs | TextInputs
_References = Reference | GatedReference | RecurrentReference


class _Kind(NamedTuple):
    """How one kind of model is read."""

    describe: Callable[[Given, Mapping[str, Any], Path], dict[str, Any]]
    """Returns the section `model`, given the arguments of the checkpoint."""
    converter: Callable[[dict[str, Tensor], Path, bool], Converter | RecurrentConverter]
    reference: Callable[[dict[str, Tensor], Given, dict[str, Any]], _References]
    inputs: Callable[[Sequence[int], Sequence[int]], _Inputs] = inputs_of
    """Returns what the model reads of a source and a target."""


def _kind_of(given: Given) -> _Kind:
    architecture = str(given["arch"] or "")
    if architecture.startswith(FCONV):
        if architecture.startswith(FCONV_LM):
            gated = _Kind(
                lambda _, arguments, path: _refusing(gated_lm_section, arguments, path),
                _gated_converter,
                lambda state, _, m: GatedLmReference(state, m),
            )
            return gated._replace(inputs=_text_inputs)
        return _Kind(
            lambda _, arguments, path: _refusing(gated_section, arguments, path),
            _gated_converter,
            lambda state, _, m: GatedReference(state, m),
        )
    if architecture in (*RECURRENT, LSTM_LM):
        is_text = architecture == LSTM_LM
        describe = recurrent_lm_section if is_text else recurrent_section
        reference = RecurrentLmReference if is_text else RecurrentReference
        return _Kind(
            lambda _, arguments, path: describe(arguments, path),
            lambda state, path, _: RecurrentConverter(state, path),
            lambda state, *_: reference(state),
            _text_inputs if is_text else inputs_of,
        )
    if is_masked_model(given):
        return _Kind(
            described_model,
            MaskedConverter,
            lambda state, given, _: MaskedReference(state, given),
            lambda source, _: text_inputs_of(source),
        )
    converter = ConvolutionConverter if architecture.startswith(LIGHTCONV) else Converter
    if is_language_model(given):
        return _Kind(
            described_model,
            converter,
            lambda state, given, _: LanguageReference(state, given),
            _text_inputs,
        )
    return _Kind(described_model, converter, lambda state, given, _: Reference(state, given))


def _text_inputs(_: Sequence[int], target: Sequence[int]) -> TextInputs:
    return text_inputs_of(target)


def _refusing(
    describe: Callable[[Mapping[str, Any], Refusals], dict[str, Any]],
    arguments: Mapping[str, Any],
    path: Path,
) -> dict[str, Any]:
    refusals = Refusals()
    section = describe(arguments, refusals)
    refusals.raise_any(str(path))
    return section


def _gated_converter(state: dict[str, Tensor], path: Path, is_gated: bool) -> Converter:
    gated_state(state, path)
    return GatedConverter(state, path, is_gated)


def _wide(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in float64."""
    return {name: value.double() for name, value in state.items() if value.is_floating_point()}


def _experts_of(path: Path) -> dict[str, Tensor]:
    """Return the experts that DeepSpeed has written next to the checkpoint, one file each.

    The checkpoint itself has those of the first rank only.
    """
    folder = path.parent / "deepspeed_moe" / path.name
    found: dict[str, Tensor] = {}
    for file in sorted(folder.rglob(_EXPERT_FILES)):
        content = read_plain(file)
        if isinstance(content, Mapping) and isinstance(content.get("module"), Mapping):
            content = content["module"]
        if not isinstance(content, Mapping):
            raise UserError(f"{file}: holds no tensors by name; copy it again")
        found |= named_tensors(content, file)
    return found


def _sentences(
    tokenizers: Tokenizers, text: Sequence[str], max_positions: int
) -> list[tuple[list[int], list[int]]]:
    """Return pairs of ids to compare on: of the text, or symbols of the dictionaries."""
    source, target = tokenizers.source.symbols, tokenizers.target.symbols
    lines = [tokenizers.source.encode(line) for line in text]
    if not lines:
        draw = torch.Generator().manual_seed(1)
        count = len(tokenizers.source)
        lines = [
            torch.randint(4, count, (3 + 4 * n,), generator=draw).tolist() for n in range(_SAMPLES)
        ]
    symbols = max(len(source.framed([])), 1 + len(target.opening))
    longest = max(1, min(_LONGEST, max_positions - symbols))
    lines = [line[:longest] for line in lines if line]
    largest = len(tokenizers.target)
    # any target shows a difference; ids of the source are some
    return [
        (source.framed(line), [target.eos, *target.opening, *(token % largest for token in line)])
        for line in lines
    ]


def _compare(
    model: nn.Module,
    reference: _References,
    inputs: Callable[[Sequence[int], Sequence[int]], _Inputs],
    pairs: Sequence[tuple[list[int], list[int]]],
) -> tuple[float, int]:
    """Return the largest difference of the logits from the checkpoint's own, and their number."""
    twin = copy.deepcopy(model).double().eval()
    for part in twin.modules():
        if isinstance(part, MoeFeedForward):  # its limit depends on the other sentences of a batch
            part.eval_capacity_factor = None
    largest, count = 0.0, 0
    for source, target in pairs:
        expected = reference.logits(source, target)
        with torch.no_grad():
            logits = twin(inputs(source, target)).logits
        apart = (logits - expected).abs().nan_to_num(nan=math.inf)
        largest = max(largest, float(apart.max()))
        count += expected.numel()
    return largest, count


def _updates(checkpoint: Mapping[str, Any]) -> int | None:
    """Return the number of updates, which the last entry of the optimizer's history has."""
    history = checkpoint.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else None
    updates = last.get("num_updates") if isinstance(last, Mapping) else None
    return updates if isinstance(updates, int) else None
