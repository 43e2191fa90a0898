"""torchscale_axes.py: models of TorchScale, run by the interpreter of their own environment.

    python torchscale_side.py OUT.safetensors [--longnet]

TorchScale imports fairscale and timm for wrappers and for drop path; neither is used here, so that
empty stand-ins do. Its DeepNorm decoder keeps norms in front of the sub-layers, which is corrected
here. Its dilated attention calls flash-attn, in whose place the definition stands here, and takes
the weights of its mix as constants, which is undone.
"""

from __future__ import annotations

import json
import math
import sys
import types
from contextlib import nullcontext
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
    RetNetConfig,
)
from torchscale.architecture.decoder import Decoder  # noqa: E402
from torchscale.architecture.encoder import Encoder  # noqa: E402
from torchscale.architecture.encoder_decoder import EncoderDecoder  # noqa: E402
from torchscale.architecture.retnet import RetNetDecoder  # noqa: E402
from torchscale.component.embedding import TextEmbedding  # noqa: E402

VOCAB, WIDTH = 40, 32
TINY = 1e-14  # with which the norm of heads hides that the three forms divide by other numbers
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


def _retnet(eps: float, chunk: int | None = None) -> nn.Module:
    config = RetNetConfig(
        decoder_embed_dim=WIDTH,
        decoder_value_embed_dim=48,
        decoder_retention_heads=2,
        decoder_ffn_embed_dim=48,
        decoder_layers=2,
        activation_fn="swish",
        layernorm_eps=eps,
        no_output_layer=True,
        chunkwise_recurrent=chunk is not None,
        recurrent_chunk_size=chunk or 0,
    )
    return RetNetDecoder(config, embed_tokens=TextEmbedding(VOCAB, WIDTH))


def _longnet(segment_length: str, dilated_ratio: str) -> nn.Module:
    # not in the releases
    from torchscale.component import dilated_attention, multihead_attention
    from torchscale.model.LongNet import LongNetDecoder

    multihead_attention.flash_attn_func = _flash
    dilated_attention.torch = _WithGradients()
    config = DecoderConfig(
        **_DECODER,
        no_output_layer=True,
        subln=False,
        flash_attention=True,
        segment_length=segment_length,
        dilated_ratio=dilated_ratio,
    )
    return LongNetDecoder(config, embed_tokens=TextEmbedding(VOCAB, WIDTH))


def _flash(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, bias: None, scale: None, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attend like flash-attn: (B, T, H, Dh) -> the same, and logarithms of divisors (B, H, T)."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.size(-1))
    assert causal and not dropout
    scores = scores.masked_fill(torch.ones_like(scores).bool().triu(1), -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value), scores.logsumexp(-1)


class _WithGradients:
    """Stands for torch, but that gradients pass where there would be none."""

    no_grad = nullcontext

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


class _Stepwise(nn.Module):
    """Runs a decoder token by token."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder


CASES = {
    "subln": lambda: _both(subln=True, deepnorm=False),
    "deepnorm": lambda: _both(subln=False, deepnorm=True),
    "multiway, encoder": lambda: _encoder(multiway=True, subln=True),
    "xpos, decoder": lambda: _decoder(xpos_rel_pos=True, xpos_scale_base=512),
    "retnet, parallel": lambda: _retnet(1e-6),
    "retnet, no eps, recurrent": lambda: _Stepwise(_retnet(TINY)),
    "retnet, no eps, chunkwise": lambda: _retnet(TINY, chunk=10),
}
LONGNET = {
    "longnet, one segment": lambda: _longnet("[64]", "[1]"),
    "longnet, two lengths": lambda: _longnet("[8,64]", "[1,4]"),
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
    if isinstance(model, _Stepwise):
        return {"x": x, "output": _by_steps(model.decoder, tokens, x)}
    return {"x": x, "output": model(tokens, token_embeddings=x, features_only=True)[0]}


def _by_steps(decoder: nn.Module, tokens: Tensor, x: Tensor) -> Tensor:
    state: dict[str, Any] = {}
    outputs = [
        decoder(
            tokens[:, : step + 1],
            incremental_state=state,
            token_embeddings=x[:, step : step + 1],
            features_only=True,
        )[0]
        for step in range(x.size(1))
    ]
    return torch.cat(outputs, 1)


def _disagreement() -> dict[str, str]:
    """Return by how much two forms of retention differ from the parallel one, as they begin."""
    torch.manual_seed(1)
    parallel = _retnet(1e-6).double().eval()
    recurrent, chunkwise = _Stepwise(_retnet(1e-6)).double(), _retnet(1e-6, chunk=10).double()
    recurrent.decoder.load_state_dict(parallel.state_dict())
    chunkwise.load_state_dict(parallel.state_dict())
    expected, found = _run(parallel)["output"], {}
    for name, model in {"recurrent": recurrent, "chunkwise": chunkwise}.items():
        error = float((_run(model)["output"] - expected).abs().max() / expected.abs().max())
        found[f"its initial {name} form differs from the parallel one by"] = f"{error:.1e}"
    return found


def main(out: str, *options: str) -> None:
    """Run all cases, or those of LongNet."""
    found = {}
    for case, make in (LONGNET if options else CASES).items():
        model = drawn(make())
        found[case] = (model, _run(model))
    save_cases(found, out)
    if options:
        print(json.dumps({"torchscale": "of its repository"}))
        return
    print(json.dumps({"torchscale": version("torchscale"), **_disagreement()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
