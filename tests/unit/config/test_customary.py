"""Names of other toolkits are answered with ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ds_seq import cli
from ds_seq.config.coming_from import names_page
from ds_seq.config.customary import COMMANDS, CUSTOMARY, customary_command, rows
from ds_seq.config.load import load_experiment
from ds_seq.config.schema import paths_of_key, sections
from ds_seq.errors import UserError
from ds_seq.names import ROUTER_LOSSES

ROOT = Path(__file__).parents[3]
PATHS = {section.path for section in sections()} | {
    section.path_of(name) for section in sections() for name in section.config.model_fields
}


def answer(experiment: Path, override: str) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(experiment, [override])
    (line,) = str(caught.value).splitlines()
    return line


def test_each_row_leads_to_options_of_ours() -> None:
    known = PATHS | {f"criterion.loss_weights.{loss}" for loss in ROUTER_LOSSES}
    for row in rows():
        named = {row.ours.split()[0].rstrip(",:"), *re.findall(r"[a-z_]+\.[a-z_.]*[a-z]", row.ours)}
        assert named <= known | {"zero_optimization.stage"}, row


def test_no_name_has_two_meanings() -> None:
    meanings: dict[str, set[str]] = {}
    for row in rows():
        for name in " ".join((*row.columns, row.other)).replace("-", "_").split():
            meanings.setdefault(name, set()).add(row.ours)
    assert not {name: ours for name, ours in meanings.items() if len(ours) > 1}
    assert {name: ours for name, (ours,) in meanings.items()} == CUSTOMARY


def test_each_name_is_answered(experiment: Path) -> None:
    """Of our own keys, the home is named."""
    keys = [key for key in CUSTOMARY if len(paths_of_key(key)) not in (1, 2)]
    answers: dict[str, str] = {}
    for some in (keys[start : start + 25] for start in range(0, len(keys), 25)):
        with pytest.raises(UserError) as caught:
            load_experiment(experiment, [f"train.{key}=1" for key in some])
        answers |= dict(
            line.removeprefix("command line: train.").split(": ", 1)
            for line in str(caught.value).splitlines()
        )
    assert len(keys) > 200
    assert not [key for key in keys if CUSTOMARY[key].split()[0] not in answers.get(key, "")]


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


def test_the_page_is_current_and_named_in_the_readme() -> None:
    page = ROOT / "docs" / "COMING_FROM.md"
    assert page.read_text(encoding="utf-8") == names_page(), (
        "run: ds-seq check --names > docs/COMING_FROM.md"
    )
    assert "docs/COMING_FROM.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_of_other_toolkits(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(COMMANDS) <= set(cli.COMMANDS)
    assert customary_command("fairseq-preprocess") == customary_command("preprocess") == "prepare"
    assert cli.main(["fairseq-generate"]) == 2
    assert (
        "no command 'fairseq-generate'; ds_seq's name for it is generate" in capsys.readouterr().err
    )
