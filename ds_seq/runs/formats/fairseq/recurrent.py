"""LSTM models of fairseq: their section, their tensors, and what they compute.

Shapes: S source length, T target length, E width of the encoded source, H width of the decoder's
states, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds_seq.compat.fairseq.command import BY_DEST
from ds_seq.compat.fairseq.recurrent import LM_NUMBERS, NUMBERS, lstm_lm_section
from ds_seq.config.model.recurrent import RECURRENT_PRESETS
from ds_seq.errors import UserError
from ds_seq.names import LSTM_PARAMETERS
from ds_seq.runs.formats.fairseq.adaptive import (
    adaptive_scores,
    adaptive_source,
    has_adaptive_softmax,
    left_of_adaptive,
)
from ds_seq.runs.formats.imported import Entry

RECURRENT = tuple(RECURRENT_PRESETS)
"""The architectures of fairseq."""
_MOST_POSITIONS = 1024
_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_VERSIONS = ("encoder.version", "decoder.version")


def recurrent_section(arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the section `model` of an LSTM model.

    Args:
        arguments: arguments of the checkpoint.
        path: the checkpoint, for messages.

    Raises:
        UserError: an argument is missing, or no model of ds_seq is like it.
    """
    section = {"name": "recurrent", **_numbers(arguments, NUMBERS, path)}
    if arguments.get("criterion") == "adaptive_loss":
        raise UserError(f"{path}: --criterion adaptive_loss: ds_seq has no such output here")
    sharing = "decoder" if arguments.get("share_decoder_input_output_embed") else "none"
    sharing = "all" if arguments.get("share_all_embeddings") else sharing
    lengths = [arguments.get(f"max_{side}_positions") for side in ("source", "target")]
    return section | {
        "bidirectional": bool(arguments.get("encoder_bidirectional")),
        "attention": str(arguments.get("decoder_attention", "1")).lower() in ("1", "true"),
        "share_embeddings": sharing,
        "output_bias": sharing == "none",
        "max_positions": _shortest(lengths),
    }


def recurrent_lm_section(arguments: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the section `model` of an LSTM language model; see `recurrent_section`."""
    numbers = _numbers(arguments, LM_NUMBERS, path)
    if arguments.get("residuals"):
        raise UserError(f"{path}: --residuals: {BY_DEST['residuals'].note}")
    lengths = [arguments.get(name) for name in ("max_target_positions", "tokens_per_sample")]
    return lstm_lm_section(arguments, numbers, _shortest(lengths))


def _numbers(arguments: Mapping[str, Any], names: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return numbers among the arguments by our names."""
    found: dict[str, Any] = {}
    for theirs, ours in names.items():
        value = arguments.get(theirs)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(
                f"{path}: --{theirs.replace('_', '-')} {value!r}: the checkpoint should have a "
                "number there; it is damaged, or of another program"
            )
        found[ours] = value
    return found


def _shortest(lengths: Sequence[Any]) -> int:
    known = [int(length) for length in lengths if isinstance(length, int | float)]
    return min([*known, _MOST_POSITIONS])


class RecurrentConverter:
    """Makes the tensors of our model of those of fairseq.

    Args:
        state: tensors of fairseq by name.
        path: the checkpoint, for messages.
    """

    def __init__(self, state: Mapping[str, Tensor], path: Path) -> None:
        self._state, self._path = state, path
        self._used: dict[str, Entry] = {}

    def make(self, name: str, shape: torch.Size) -> Tensor:
        """Return one of our tensors.

        Raises:
            UserError: fairseq's file lacks a tensor for it, or has one of another shape.
        """
        theirs, how = _counterpart(name), "renamed"
        adaptive = adaptive_source(name, shape, self._state)
        if adaptive is not None:
            theirs = adaptive.name
        if theirs not in self._state:
            raise UserError(f"{self._path}: has no {theirs}, of which {name} would be made")
        value = self._state[theirs]
        if adaptive is not None:
            value, how = adaptive.part(value), adaptive.how
        if name == "decoder.source.keys.weight":
            value, how = value.t(), "joined"
        elif name == "decoder.source.values.weight":
            value, how = value[:, : shape[1]], "joined"
        elif name == "decoder.cells.mix":
            value, how = value[:, -shape[1] :], "joined"
        if value.shape != shape:
            raise UserError(
                f"{self._path}: the tensor for {name} has the shape {tuple(value.shape)}, but the "
                f"arguments of the checkpoint say {tuple(shape)}; it belongs to another model, or "
                "--dict names another dictionary"
            )
        self._used[theirs] = Entry(theirs, name, how)
        return value

    def finish(self) -> list[Entry]:
        """Return what became of each tensor, in the order of the file.

        Raises:
            UserError: a tensor of fairseq is used nowhere.
        """
        for name, value in self._state.items():
            if name in self._used:
                continue
            if name in _VERSIONS:
                self._used[name] = Entry(name, "", "left", "version of the names")
            elif name in left_of_adaptive(self._state):
                self._used[name] = Entry(name, "", "left", left_of_adaptive(self._state)[name])
            elif name == _TABLES[0] and torch.equal(value, self._state[_TABLES[1]]):
                self._used[name] = Entry(name, "", "left", "the same as another one")
            else:
                raise UserError(
                    f"{self._path}: has {name}, which no model of ds_seq that its arguments "
                    "describe has; it cannot be imported"
                )
        return [self._used[name] for name in self._state]


def _counterpart(name: str) -> str:
    """Return fairseq's name of the tensor of which ours is made."""
    known = {
        "source_embedding.weight": _TABLES[0],
        "target_embedding.weight": _TABLES[1],
        "output.weight": "decoder.fc_out.weight",
        "output.bias": "decoder.fc_out.bias",
        "decoder.source.keys.weight": "decoder.attention.input_proj.weight",
        "decoder.source.values.weight": "decoder.attention.output_proj.weight",
        "decoder.cells.mix": "decoder.attention.output_proj.weight",
    }
    if name in known:
        return known[name]
    stem, _, kind = name.rpartition(".")
    if stem == "encoder":
        return f"encoder.lstm.{kind}"
    if stem in ("decoder.cells", "decoder"):
        gate, _, layer = kind.rpartition("_l")
        return f"decoder.layers.{layer}.{gate}"
    places = {
        "projection": "decoder.additional_fc",
        "decoder.projection": "decoder.additional_fc",
        "decoder.source.start_hidden": "decoder.encoder_hidden_proj",
        "decoder.source.start_cell": "decoder.encoder_cell_proj",
    }
    return f"{places.get(stem, stem)}.{kind}"


class RecurrentReference:
    """What an LSTM model of fairseq computes, in plain torch, one step at a time.

    An import ends by comparing with it; it shares no code with our models.

    Args:
        state: its tensors by name, in float64.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    @torch.no_grad()
    def logits(self, source: Sequence[int], target: Sequence[int]) -> Tensor:
        """Return the scores (T, V) of the next token of each prefix of a target."""
        state = self._state
        outputs, hidden, cell = self._start(source)
        embedded = state["decoder.embed_tokens.weight"]
        width = state["decoder.layers.0.weight_ih"].size(1)
        fed = hidden[0].new_zeros(width - embedded.size(1))  # empty without a source
        scores = []
        for token in target:
            x = torch.cat([embedded[token], fed])
            for layer in range(len(hidden)):
                weights = [state[f"decoder.layers.{layer}.{kind}"] for kind in LSTM_PARAMETERS]
                hidden[layer], cell[layer] = _cell(x, hidden[layer], cell[layer], weights)
                x = hidden[layer]
            top, fed = x, x if len(fed) else fed
            if "decoder.attention.input_proj.weight" in state:
                query = state["decoder.attention.input_proj.weight"] @ x
                read = (outputs @ query).softmax(0) @ outputs
                joined = state["decoder.attention.output_proj.weight"] @ torch.cat([read, x])
                top = fed = joined.tanh()
            scores.append(self._scores(top))
        return torch.stack(scores)

    def _start(self, source: Sequence[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the encoded source (S, E), and the states of each layer before the first token."""
        outputs, hidden, cell = self._encoded(source)
        if "decoder.encoder_hidden_proj.weight" in self._state:
            hidden = [self._mapped("decoder.encoder_hidden_proj", each) for each in hidden]
            cell = [self._mapped("decoder.encoder_cell_proj", each) for each in cell]
        return outputs, hidden, cell

    def _encoded(self, source: Sequence[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        state = self._state
        inputs = list(state["encoder.embed_tokens.weight"][list(source)])
        hidden, cell, layer = [], [], 0
        while f"encoder.lstm.weight_ih_l{layer}" in state:
            ways = []
            for suffix in ("", "_reverse"):
                if f"encoder.lstm.weight_ih_l{layer}{suffix}" not in state:
                    continue
                weights = [
                    state[f"encoder.lstm.{kind}_l{layer}{suffix}"] for kind in LSTM_PARAMETERS
                ]
                h = c = torch.zeros_like(weights[1][0])
                results = []
                for x in reversed(inputs) if suffix else inputs:
                    h, c = _cell(x, h, c, weights)
                    results.append(h)
                ways.append((results[::-1] if suffix else results, h, c))
            inputs = [torch.cat(each) for each in zip(*(way[0] for way in ways), strict=True)]
            hidden.append(torch.cat([way[1] for way in ways]))
            cell.append(torch.cat([way[2] for way in ways]))
            layer += 1
        return torch.stack(inputs), hidden, cell

    def _mapped(self, name: str, x: Tensor) -> Tensor:
        return self._state[f"{name}.weight"] @ x + self._state[f"{name}.bias"]

    def _scores(self, x: Tensor) -> Tensor:
        if has_adaptive_softmax(self._state):
            return adaptive_scores(self._state, x[None])[0]
        if "decoder.additional_fc.weight" in self._state:
            x = self._mapped("decoder.additional_fc", x)
        if "decoder.fc_out.weight" in self._state:
            return self._mapped("decoder.fc_out", x)
        return self._state["decoder.embed_tokens.weight"] @ x


class RecurrentLmReference(RecurrentReference):
    """A language model of LSTM layers, whose states begin with zeros."""

    def _start(self, source: Sequence[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        layers = sum(name.endswith(".weight_hh") for name in self._state)
        zeros = torch.zeros_like(self._state["decoder.layers.0.weight_hh"][0])
        return zeros, [zeros] * layers, [zeros] * layers


def _cell(x: Tensor, hidden: Tensor, cell: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    of_input, of_state, *biases = weights
    gates = (of_input @ x + of_state @ hidden + biases[0] + biases[1]).chunk(4)
    cell = gates[1].sigmoid() * cell + gates[0].sigmoid() * gates[2].tanh()
    return gates[3].sigmoid() * cell.tanh(), cell
