"""Notes on settings that are allowed, but slow or imprecise on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from ds_seq.config.experiment import ExperimentConfig

_GROUPED_MULTIPLE = 8  # bf16 numbers in 16 bytes, see `ds_seq.moe.grouped`


def gpu_notes(config: ExperimentConfig, stage: int) -> Iterator[str]:
    """Yield notes on an experiment under a ZeRO stage, one line each."""
    train, moe = config.train, config.model.moe
    if moe is not None:
        wide = [width for width in _widths(config) if width % _GROUPED_MULTIPLE]
        if train.precision != "bf16":
            yield (
                "train.precision: on a GPU, the experts of a layer run one after another in "
                f"{train.precision}, and in one kernel in bf16 (with 8 experts, a step in fp16 "
                "takes 1.5 times as long)"
            )
        elif wide:
            yield (
                "model.d_model, ffn_dim: on a GPU, experts run in one kernel if both are "
                f"multiples of {_GROUPED_MULTIPLE}, unlike {wide[0]}; now one after another"
            )
    if train.precision != "fp32" and train.accumulate > 1 and stage == 0:
        yield (
            f"train.accumulate: ZeRO stage 0 adds up the gradients of {train.accumulate} batches "
            f"in {train.precision}; stages 1, 2 and 3 do in fp32"
        )


def _widths(config: ExperimentConfig) -> Iterator[int]:
    """Yield the widths of the experts' products."""
    model = config.model
    assert model.moe is not None
    yield model.d_model
    yield model.inner_width(model.moe.ffn_dim or model.ffn_dim)
