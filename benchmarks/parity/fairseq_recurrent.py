"""LSTM models with and without attention, compared with fairseq's.

    python benchmarks/parity/fairseq_recurrent.py --python VENV/bin/python   # with fairseq-fixed

Outputs and gradients of models with the same weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.copied_weights import Cases, Names, Part, linear, parser_of, report
from parity.fairseq_axes import EMBEDDINGS

SIDE = Path(__file__).with_name("fairseq_recurrent_side.py")
_KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _case(
    encoder: int, decoder: int, output: int, layers: int = 1, **fields: object
) -> tuple[dict[str, object], Names]:
    """Return the fields of a model and where its weights come from.

    Args:
        encoder: width of the encoder's states.
        decoder: width of the decoder's states.
        output: width before the vocabulary.
        layers: layers of either side.
        fields: further fields.
    """
    section: dict[str, object] = {
        "name": "recurrent",
        "encoder_embedding_dim": 32,
        "decoder_embedding_dim": 32,
        "encoder_hidden_dim": encoder,
        "decoder_hidden_dim": decoder,
        "output_dim": output,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "bidirectional": False,
        "share_embeddings": "none",
        "dropout": 0.0,
        **fields,
    }
    both_ways, sharing = section["bidirectional"], str(section["share_embeddings"])
    source = encoder * (2 if both_ways else 1)
    tables = {ours: theirs for ours, theirs in EMBEDDINGS[sharing].items() if ours != "output"}
    names: Names = {f"{ours}.weight": [Part(f"{theirs}.weight")] for ours, theirs in tables.items()}
    for layer in range(layers):
        for kind in _KINDS:
            for way in ("", "_reverse") if both_ways else ("",):
                name = f"{kind}_l{layer}{way}"
                names[f"encoder.{name}"] = [Part(f"encoder.lstm.{name}")]
            names[f"decoder.cells.{kind}_l{layer}"] = [Part(f"decoder.layers.{layer}.{kind}")]
    if section.get("attention", True):
        reads, joins = "decoder.attention.input_proj.weight", "decoder.attention.output_proj.weight"
        names["decoder.source.keys.weight"] = [Part(reads, last_first=True)]
        names["decoder.source.values.weight"] = [Part(joins, columns=slice(source))]
        names["decoder.cells.mix"] = [Part(joins, columns=slice(source, None))]
    if source != decoder:
        for state in ("hidden", "cell"):
            ours, theirs = f"decoder.source.start_{state}", f"decoder.encoder_{state}_proj"
            names |= linear(ours, theirs, bias=True)
    if decoder != output:
        names |= linear("decoder.projection", "decoder.additional_fc", bias=True)
    if sharing == "none":
        names |= linear("output", "decoder.fc_out", bias=True)
        section["output_bias"] = True
    return section, names


CASES: Cases = {
    "lstm": _case(32, 32, 32),
    "two layers, both ways": _case(12, 20, 16, 2, bidirectional=True),
    "both ways, shared": _case(16, 32, 32, bidirectional=True, share_embeddings="all"),
    "no attention": _case(32, 32, 32, 3, attention=False, share_embeddings="decoder"),
}


def main(argv: Sequence[str]) -> int:
    """Compare all cases, and return 1 if one differs."""
    options = parser_of(__doc__, "fairseq-fixed").parse_args(argv)
    return report(CASES, options.python, SIDE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
