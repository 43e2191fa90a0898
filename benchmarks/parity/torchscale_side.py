"""torchscale_axes.py: models of TorchScale, run by the interpreter of their own environment.

    python torchscale_side.py OUT.safetensors

TorchScale imports fairscale and timm for wrappers and for drop path; neither is used here, so that
empty stand-ins do. Its DeepNorm decoder keeps norms in front of the sub-layers, which is corrected
here.
"""

from __future__ import annotations

import json
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.peer_tensors import drawn, save_cases


def _stand_in(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module


_stand_in("fairscale")
_stand_in("fairscale.nn", checkpoint_wrapper=lambda m, **_: m, wrap=lambda m, **_: m)
_stand_in("timm")
_stand_in("timm.models")
_stand_in("timm.models.layers", drop_path=lambda x, *_: x)

from torchscale.architecture.config import (  # noqa: E402
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
)
from torchscale.architecture.decoder import Decoder  # noqa: E402
from torchscale.architecture.encoder import Encoder  # noqa: E402
from torchscale.architecture.encoder_decoder import EncoderDecoder  # noqa: E402
from torchscale.component.embedding import TextEmbedding  # noqa: E402

VOCAB, WIDTH = 40, 32
_DECODER = {
    "vocab_size": VOCAB,
    "decoder_embed_dim": WIDTH,
    "decoder_attention_heads": 4,
    "decoder_ffn_embed_dim": 48,
    "decoder_layers": 2,
    "dropout": 0.0,
}
_BOTH = {
    **_DECODER,
    "encoder_embed_dim": WIDTH,
    "encoder_attention_heads": 4,
    "encoder_ffn_embed_dim": 48,
    "encoder_layers": 3,
    "share_all_embeddings": True,
}


def _both(**options: Any) -> nn.Module:
    config = EncoderDecoderConfig(**_BOTH, **options)
    config.decoder_normalize_before = config.encoder_normalize_before = not config.deepnorm
    table = TextEmbedding(VOCAB, WIDTH)
    return EncoderDecoder(config, encoder_embed_tokens=table, decoder_embed_tokens=table)


def _decoder(**options: Any) -> nn.Module:
    config = DecoderConfig(**_DECODER, no_output_layer=True, subln=False, **options)
    return Decoder(config, embed_tokens=TextEmbedding(VOCAB, WIDTH))


def _encoder(**options: Any) -> nn.Module:
    sizes = {name: value for name, value in _BOTH.items() if name.startswith("encoder")}
    config = EncoderConfig(**sizes, dropout=0.0, no_output_layer=True, **options)
    return Encoder(config)


CASES = {
    "subln": lambda: _both(subln=True, deepnorm=False),
    "deepnorm": lambda: _both(subln=False, deepnorm=True),
    "multiway, encoder": lambda: _encoder(multiway=True, subln=True),
    "xpos, decoder": lambda: _decoder(xpos_rel_pos=True, xpos_scale_base=512),
}


def _run(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    if isinstance(model, EncoderDecoder):
        source = torch.randint(4, VOCAB, (3, 9), generator=generator)
        target = torch.randint(4, VOCAB, (3, 6), generator=generator)
        ones = {"source_mask": torch.ones(3, 9).bool(), "target_mask": torch.ones(3, 6).bool()}
        output = model(source, target)[0].flatten(0, 1)
        return {"source": source, "target": target, **ones, "output": output}
    x = torch.randn(2, 50, WIDTH, generator=generator).double()
    if isinstance(model, Encoder):  # one split for a batch: each sequence alone
        splits = torch.tensor([17, 0, 50, 31])
        x = torch.randn(len(splits), 50, WIDTH, generator=generator).double()
        found = [
            model(None, token_embeddings=row, multiway_split_position=split, features_only=True)
            for row, split in zip(x.split(1), splits.tolist(), strict=True)
        ]
        return {"x": x, "splits": splits, "output": torch.cat([y["encoder_out"] for y in found])}
    tokens = torch.full((2, 50), 5)
    return {"x": x, "output": model(tokens, token_embeddings=x, features_only=True)[0]}


def main(out: str) -> None:
    """Run all cases."""
    found = {}
    for case, make in CASES.items():
        model = drawn(make())
        found[case] = (model, _run(model))
    save_cases(found, out)
    print(json.dumps({"torchscale": version("torchscale")}))


if __name__ == "__main__":
    main(sys.argv[1])
