"""The presets, compared with fairseq's architectures: fields and numbers of parameters.

    python benchmarks/parity/fairseq_presets.py --python VENV/bin/python

`--golden` prints the numbers as `tests/unit/config/test_presets.py` has them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ds_seq.config.model import TransformerConfig

SIDE = Path(__file__).with_name("fairseq_presets_side.py")
VOCAB = 1000


def as_fairseq(model: TransformerConfig) -> dict[str, Any]:
    """Return the fields of a model by fairseq's names."""
    fields: dict[str, Any] = {
        "no_scale_embedding": not model.embedding_scale,
        "layernorm_embedding": model.embedding_norm,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "activation_dropout": model.activation_dropout,
        "activation_fn": model.activation,
    }
    for stack in model.stacks:
        fields |= {
            f"{stack}_embed_dim": model.d_model,
            f"{stack}_ffn_embed_dim": model.ffn_dim,
            f"{stack}_layers": model.layers_of(stack),
            f"{stack}_attention_heads": model.num_heads,
            f"{stack}_normalize_before": model.norm_position == "pre",
            f"{stack}_learned_pos": model.positions.name == "learned",
        }
        convolution = model.convolution_of(stack)
        if convolution is not None:
            fields |= {
                f"{stack}_conv_type": convolution.name.removesuffix("_convolution"),
                f"{stack}_kernel_size_list": convolution.sizes(model.layers_of(stack)),
                f"{stack}_glu": convolution.glu,
                "weight_dropout": convolution.dropped(model.attention_dropout),
                "input_dropout": convolution.input_dropout,
            }
    return fields


def differences(preset: str, theirs: Mapping[str, Any]) -> list[str]:
    """Return a line for each field and each number of parameters that is not theirs."""
    model = TransformerConfig(preset=preset)
    ours, found = as_fairseq(model), theirs["fields"]
    lines = [
        f"{preset}: {name} {ours.get(name)!r}, not {found[name]!r}"
        for name in found
        if ours.get(name) != found[name]
    ]
    for sharing, count in theirs["params"].items():
        size = TransformerConfig(preset=preset, share_embeddings=sharing).num_params(VOCAB)
        if size.total != count:
            lines.append(f"{preset}, embeddings shared: {sharing}: {size.total:,}, not {count:,}")
    return lines


def main(argv: Sequence[str]) -> int:
    """Compare all architectures, and return 1 if one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="interpreter that has fairseq")
    parser.add_argument("--golden", action="store_true", help="print the numbers as JSON")
    args = parser.parse_args(argv)
    done = subprocess.run(
        [args.python, str(SIDE), str(VOCAB)], check=True, stdout=subprocess.PIPE, text=True
    )
    document = json.loads(done.stdout.splitlines()[-1])
    architectures = document["architectures"]
    if args.golden:
        print(json.dumps({name: found["params"] for name, found in architectures.items()}))
        return 0
    print(f"fairseq {document['version']}, vocabulary of {VOCAB:,}")
    lines = [line for name, found in architectures.items() for line in differences(name, found)]
    for name, found in architectures.items():
        counts = "".join(f"{count:>14,}" for count in found["params"].values())
        print(f"{name:<24}{len(found['fields'])} fields{counts}")
    print("\n".join(lines) or "all equal")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
