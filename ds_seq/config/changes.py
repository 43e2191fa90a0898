"""What a change of the experiment means for a run that resumes with it.

Some changes leave training as it is (`train.keep_last`). Others change it from here on
(`optimizer.lr`): they are recorded. The rest make nonsense of the weights, the optimizer's state or
the position in the data (`model.num_heads`, `train.seed`): they are refused unless the user allows
them. Every option of the schema has a rule here; a test finds those without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ds_seq.config.experiment import ExperimentConfig
from ds_seq.config.text_files import DETAILS, FORMS
from ds_seq.errors import UserError
from ds_seq.names import LOSS, STACKS
from ds_seq.plugins import nearest

HARMLESS = ""
TRAINING = "training"
_MODEL, _ORDER, _TASK = "another model", "another order of the data", "another task"

DATA = "data.train"
"""Key of the fingerprint of the training data, which is compared like an option."""
VALID_DATA = "data.valid"
"""Key of the fingerprint of the validation data."""
TEACHER = "weights of the teacher"
"""Key of the fingerprint of the weights of all teachers, or of those whose outputs are cached."""
GROUP = "batches per update"
"""Key of the number of batches per update: ranks times `train.accumulate`."""

_RULES: dict[str, str] = {
    GROUP: TRAINING,
    DATA: _ORDER,
    VALID_DATA: HARMLESS,
    TEACHER: TRAINING,
    "deepspeed": HARMLESS,  # the layout; precision, clipping and accumulation are in `train`
    "deepspeed.fp16": TRAINING,
    "deepspeed.bf16": TRAINING,
    "name": HARMLESS,
    "run_dir": HARMLESS,
    "data.language": _TASK,
    "data.source_lang": _TASK,
    "data.target_lang": _TASK,
    "data.max_source_length": _ORDER,
    "data.max_target_length": _ORDER,
    "data.long_pairs": _ORDER,
    # what these say is in the shards, whose fingerprint is compared
    **dict.fromkeys(
        ("data.dir", "data.source", "data.raw", "data.clean", "data.shard_size", "data.workers"),
        HARMLESS,
    ),
    "data.language_tags": HARMLESS,  # they only say which sources to report
    # what they change is in the order, whose fingerprint is in the state of the stream
    "data.corpora": _ORDER,
    # but where its text is, and how it was cleaned, is in the shards
    **dict.fromkeys(
        (f"data.corpora.NAME.{key}" for key in (*FORMS, "target", *DETAILS, "clean")), HARMLESS
    ),
    "data.mixing": _ORDER,
    "data.modify": TRAINING,
    "data.vocab": HARMLESS,  # another vocabulary never passes, see `check_vocab`
    "task": _TASK,
    "task.context_window": HARMLESS,  # of validations
    "task.samples": HARMLESS,
    "model": _MODEL,
    "model.preset": HARMLESS,
    "model.activation_checkpointing": HARMLESS,
    "model.encoder_input.path": HARMLESS,  # of the first weights
    "model.encoder_input.weights": TRAINING,
    "model.encoder_input.model.preset": HARMLESS,
    "model.encoder_input.model.activation_checkpointing": HARMLESS,
    "model.encoder_mixer.chunk_size": HARMLESS,
    "model.decoder_mixer.chunk_size": HARMLESS,
    **dict.fromkeys(
        (
            "model.dropout",
            "model.attention_dropout",
            "model.encoder_mixer.weight_dropout",
            "model.encoder_mixer.input_dropout",
            "model.decoder_mixer.weight_dropout",
            "model.decoder_mixer.input_dropout",
            "model.activation_dropout",
            *(f"model.{s}_dropout_{place}" for s in STACKS for place in ("in", "out")),
            "model.moe.noise",
            "model.moe.expert_dropout",
            "model.moe.second_expert",
            "model.moe.bias_rate",
            "model.moe.capacity_factor",
            "model.moe.eval_capacity_factor",
            "model.moe.min_capacity",
            "model.moe.drop",
            "model.moe.conditional_budget",
            "model.moe.conditional_dropout",
            "model.moe.output_masking",
            "model.moe.load_balance",
            "criterion",
            "optimizer",
            "scheduler",
        ),
        TRAINING,
    ),
    "train.seed": _ORDER,
    "train.max_tokens": _ORDER,
    "train.max_sentences": _ORDER,
    "train.sentence_multiple": _ORDER,
    "train.batch_order": _ORDER,
    "train.precision": TRAINING,
    "train.clip_norm": TRAINING,
    "train.return_lr_factor": TRAINING,
    "train.sparse_clip": TRAINING,
    "train.freeze": TRAINING,
    "train.trainable": TRAINING,
    "train.ema": TRAINING,
    "train.ema.validate_raw": HARMLESS,
    **dict.fromkeys(
        (
            "train.deepspeed",
            "train.accumulate",  # see GROUP
            "train.batches_per_update",
            "train.global_batch_tokens",
            "train.largest_first",  # of the first epoch
            "train.init_from",
            "train.init_checkpoint",
            "train.allow_missing",
            "train.allow_unexpected",
            "train.upcycle_noise",
            "train.max_updates",  # but see `_effect`
            "train.max_epochs",
            "train.max_hours",
            "train.patience",
            "train.on_divergence",
            "train.max_skips",
            "train.max_returns",
            "train.on_out_of_memory",
            "train.loss_spike",
            "train.norm_spike",
            "train.log_every",
            "train.validate_every",
            "train.save_every",
            "train.keep_last",
            "train.keep_best",
            "train.keep_best_state",
            "train.background_save",
            "train.on_save_error",
            "train.sanity_validation_batches",
            "train.expert_parallel",
            "train.num_prefetch",
            "train.hang_seconds",
            "train.peak_tflops",
            "train.profile",
            "train.tensorboard",
            "train.trackers",
            "validation",
            "generation",
        ),
        HARMLESS,
    ),
}

_SCORE_OPTIONS = ("validation.best", VALID_DATA)
_LENGTHS = ("data.max_source_length", "data.max_target_length", "data.long_pairs")
_LOSS_OPTIONS = (*_SCORE_OPTIONS, *_LENGTHS, "criterion", TEACHER)
_METRIC_OPTIONS = (
    *_SCORE_OPTIONS,
    "generation",
    "validation.max_sentences",
    "validation.average",
    "data.target_lang",
)
_SECTION = "a section"
_BATCH_SIZE = ("generation.max_tokens", "generation.max_sentences")


class Change(NamedTuple):
    """A setting that differs between two versions of a run's config."""

    key: str
    old: Any
    new: Any
    effect: str
    """`HARMLESS`, `TRAINING`, or what makes nonsense of the run."""

    @property
    def is_refused(self) -> bool:
        """Whether a run resumes with it only if the user allows it."""
        return self.effect not in (HARMLESS, TRAINING)

    def __str__(self) -> str:
        if _is_below(self.key, DATA) or self.key == VALID_DATA:
            return f"{self.key}: other shards"
        if self.key == TEACHER:
            return f"{self.key}: others"
        return f"{self.key}: {_text(self.old)} -> {_text(self.new)}"


Settings = Mapping[str, Any]
"""Values by dotted key, as returned by `settings`."""


def settings(config: ExperimentConfig, facts: Settings) -> dict[str, Any]:
    """Return all options of an experiment by dotted key, and what else a run is made of.

    Args:
        config: the experiment.
        facts: values of `DATA`, `VALID_DATA`, `TEACHER`, `GROUP` and `deepspeed`, as far as they
            are known.
    """
    return dict(_leaves({**config.model_dump(mode="json"), **facts}, ""))


def _leaves(section: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def rule_of(key: str) -> str | None:
    """Return the effect of a change of an option: the rule of the longest prefix of its key."""
    parts = key.split(".")
    if parts[:2] == ["data", "corpora"]:
        parts[2:3] = ["NAME"]  # whatever the corpus is called
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((_RULES[prefix] for prefix in prefixes if prefix in _RULES), None)


def changes(old: Settings, new: Settings) -> list[Change]:
    """Compare two versions of the settings of a run; facts that one of them lacks are left out.

    A section that is null in one of them, such as `model.moe`, is a single change.
    """
    keys = {**old, **new}
    null = [key for key in keys if any(_is_below(other, key) for other in keys if other != key)]
    return [
        Change(key, _value(key, old), _value(key, new), _effect(key, old, new))
        for key in keys
        if old.get(key) != new.get(key) or key in null
        if not any(_is_below(key, section) for section in null if section != key)
        if not _is_unknown(key, old, new)
    ]


def _value(key: str, known: Settings) -> Any:
    """Return the value of an option; of a section, that it is one."""
    if key not in known and any(_is_below(name, key) for name in known):
        return _SECTION
    return known.get(key)


def _is_unknown(key: str, old: Settings, new: Settings) -> bool:
    if key in (DATA, VALID_DATA, TEACHER):
        return None in (old.get(key), new.get(key))
    is_fact = key == GROUP or _is_below(key, "deepspeed")
    return is_fact and (GROUP not in old or GROUP not in new)


def _effect(key: str, old: Settings, new: Settings) -> str:
    # a schedule that decays until the last update
    if key == "train.max_updates" and new.get("scheduler.total_updates", 0) is None:
        return TRAINING
    if key == "model.moe.capacity_factor" and old.get("model.moe.router") == "expert_choice":
        return _MODEL
    effect = rule_of(key)
    assert effect is not None, f"{key}: has no rule"
    return effect


def refuse(found: Sequence[Change], allowed: Sequence[str], known: Settings, where: str) -> None:
    """Refuse changes with which a run makes no sense.

    Args:
        found: changes of the settings.
        allowed: keys, or sections, whose changes the user allows.
        known: all settings.
        where: name of the run for the message.

    Raises:
        UserError: there are such changes, or an allowed key does not exist; one line for each.
    """
    errors = []
    for name in allowed:
        if not any(_is_below(key, name) for key in known):
            hint = nearest(name, list(known))
            errors.append(f"--allow-change {name}: no such option{hint}")
    for change in found:
        if change.is_refused and not any(_is_below(change.key, name) for name in allowed):
            errors.append(
                f"{change}: is {change.effect} than {where} has been trained with; set it back, "
                f"start another run with another name=, or give --allow-change {change.key}"
            )
    if errors:
        raise UserError("\n".join(errors))


def score_changes(found: Sequence[Change], figure: str) -> list[Change]:
    """Return the changes after which a score means something else than before.

    Args:
        found: changes of the settings.
        figure: the figure that selects the best checkpoint: `loss` or a metric.
    """
    options = _LOSS_OPTIONS if figure == LOSS else _METRIC_OPTIONS
    return [
        change
        for change in found
        if change.key not in _BATCH_SIZE and any(_is_below(change.key, key) for key in options)
    ]


def _is_below(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _text(value: Any) -> str:
    return "not set" if value is None else str(value)
