"""Names of other toolkits are answered with ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds_seq.config.customary import CUSTOMARY
from ds_seq.config.load import load_experiment
from ds_seq.config.schema import paths_of_key, sections
from ds_seq.errors import UserError
from ds_seq.names import ROUTER_LOSSES

PATHS = {section.path for section in sections()} | {
    section.path_of(name) for section in sections() for name in section.config.model_fields
}


def answer(experiment: Path, override: str) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(experiment, [override])
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("key", CUSTOMARY)
def test_each_is_none_of_ours_and_leads_to_some(key: str) -> None:
    assert len(paths_of_key(key)) not in (1, 2), "the loader finds the home of our own keys itself"
    assert "-" not in key
    ours = CUSTOMARY[key]
    named = {ours.split()[0].rstrip(",:"), *re.findall(r"[a-z]+\.[a-z_.]*[a-z]", ours)}
    assert named <= PATHS | {f"criterion.loss_weights.{loss}" for loss in ROUTER_LOSSES}


@pytest.mark.parametrize(
    ("override", "ours"),
    [
        ("optimizer.learning_rate=1", "optimizer.lr"),
        ("learning_rate=1", "optimizer.lr"),
        ("model.hidden_size=8", "model.d_model"),
        ("model.num_layers=3", "model.encoder_layers and model.decoder_layers"),
        ("model.encoder_embed_dim=3", "model.d_model"),
        ("model.decoder-attention-heads=3", "model.num_heads"),
        ("model.intermediate_size=3", "model.ffn_dim"),
        ("model.relu_dropout=0", "model.activation_dropout"),
        ("model.layer_norm_eps=1", "model.norm: {name: layer, eps: ...}"),
        ("train.max_tokens_valid=3", "train.max_tokens"),
        ("train.batch_size=3", "train.max_tokens"),
        ("generation.batch_size=3", "generation.max_sentences"),
        ("train.update_freq=3", "train.accumulate"),
        ("train.max_grad_norm=3", "train.clip_norm"),
        ("train.max_steps=3", "train.max_updates"),
        ("max-update=3", "train.max_updates"),
        ("scheduler.warmup_steps=3", "scheduler.warmup_updates"),
        ("train.save_interval=3", "train.save_every"),
        ("train.log-interval=3", "train.log_every"),
        ("train.fp16=true", "train.precision"),
        ("fp16=true", "train.precision"),
        ("generation.beam_size=3", "generation.beam"),
        ("generation.lenpen=3", "generation.length_penalty"),
        ("generation.top_k=3", "generation.sampling_top_k"),
    ],
)
def test_another_toolkits_name(experiment: Path, override: str, ours: str) -> None:
    assert f"unknown key; ds_seq's name for it is {ours}" in answer(experiment, override)


@pytest.mark.parametrize(
    ("override", "home"),
    [
        ("train.clip-norm=1", "it belongs to train.clip_norm"),
        ("optimizer.clip_norm=1", "it belongs to train.clip_norm"),
        ("train.label_smoothing=0", "criterion.label_smoothing or criterion.base.label_smoothing"),
        ("seed=3", "it belongs to train.seed or generation.seed"),
        ("model.seed=3", "it belongs to train.seed or generation.seed"),
        ("dropout=0", "it belongs to model.dropout"),
        ("patience=3", "it belongs to train.patience"),
        ("train.warmup_updates=3", "it belongs to scheduler.warmup_updates"),
        ("train.beam=3", "it belongs to generation.beam"),
        ("gradient_clipping=3", "ds_seq's name for it is train.clip_norm"),
    ],
)
def test_our_own_name_at_the_wrong_place(experiment: Path, override: str, home: str) -> None:
    assert home in answer(experiment, override)
