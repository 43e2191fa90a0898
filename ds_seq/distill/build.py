"""Build the teacher that the config section of a criterion describes."""

from __future__ import annotations

from dataclasses import replace

import torch

from ds_seq.config.distillation import DistillationConfig
from ds_seq.criterions import matched_layers
from ds_seq.distill.teacher import LiveTeacher, Loading, Student, load_teacher
from ds_seq.names import Capture


def build_teacher(
    config: DistillationConfig, vocab_hash: str, device: torch.device, student: Student | None
) -> LiveTeacher:
    """Load the live teachers of a distillation; a collective.

    Args:
        config: config section that names teachers and no cache.
        vocab_hash: `Tokenizers.fingerprint` that all teachers must have.
        device: device of this rank.
        student: the student that learns from them, or None; the section names the layers that it
            imitates.

    Raises:
        UserError: a teacher cannot be loaded or does not fit, see `load_teacher`.
    """
    hidden, attention = (
        None if section is None else matched_layers(section)
        for section in (config.hidden, config.attention)
    )
    capture: Capture = "none"
    if attention is not None:
        capture = "attention"
    elif hidden is not None:
        capture = "hidden"
    if student is not None:
        student = replace(
            student,
            hidden=hidden,
            attention=attention,
            projects=config.hidden is not None and config.hidden.projection != "none",
            attention_kinds=[] if config.attention is None else config.attention.kinds,
        )
    loading = Loading(
        config.checkpoint,
        config.teacher_precision,
        config.teacher_expert_parallel,
        config.teacher_zero3,
    )
    return load_teacher(config.teachers, loading, vocab_hash, device, student, capture)
