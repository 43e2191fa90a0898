"""A row of the table of names of other toolkits, and the rows for tasks other than translation."""

from __future__ import annotations

from typing import NamedTuple

TOOLKITS = ("fairseq", "Hugging Face", "OpenNMT-py", "Marian")
"""The toolkits with a column of their own; names of others are in `Row.other`."""


class Row(NamedTuple):
    """Options of other toolkits that mean the same.

    Attributes:
        ours: the option of ds_seq; a remark may follow in parentheses.
        fairseq: names in fairseq, separated by spaces, spelled as on its command line.
        hugging_face: names in the Hugging Face Trainer, its model configs and its `generate`.
        opennmt: names in OpenNMT-py.
        marian: names in Marian.
        other: names in joeynmt and in common training scripts.
    """

    ours: str
    fairseq: str = ""
    hugging_face: str = ""
    opennmt: str = ""
    marian: str = ""
    other: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names by toolkit, in the order of `TOOLKITS`."""
        return self.fairseq, self.hugging_face, self.opennmt, self.marian


# fmt: off
ONE_SIDED: tuple[Row, ...] = (
    Row("data.language (instead of source_lang and target_lang)", "only-source"),
    Row("task.name (translation, language_modeling, denoising, masked_language_modeling)",
        "task", "", "model_task"),
    Row("task.block_tokens", "tokens-per-sample", "block_size max_seq_length", "", "",
        "seq_length sequence_length"),
    Row("task.blocks (tokens, document, line)", "sample-break-mode"),
    Row("task.blocks: line", "", "line_by_line"),
    Row("task.context_window (`ds-seq perplexity --context-window`, or --stride)",
        "context-window", "", "", "", "stride"),
    Row("task.predicted (of masked_language_modeling)", "mask-prob",
        "mlm_probability"),
    Row("task.kept_tokens (of masked_language_modeling)", "leave-unmasked-prob"),
    Row("task.random_tokens (of masked_language_modeling)", "random-token-prob"),
    Row("task.whole_words (of masked_language_modeling; of denoising: task.noise.whole_words)",
        "mask-whole-words mask-length"),
    Row("task.noise: {name: bart, span_mean: ...}", "poisson-lambda"),
    Row("task.noise: {name: bart, random: ...}", "mask-random"),
    Row("task.noise: {name: t5, density: ...}", "noise-density", "noise_density"),
    Row("task.noise: {name: t5, span_mean: ...}", "mean-noise-span-length",
        "mean_noise_span_length"),
)
"""Language models and pre-training: text of one side, its noise."""
# fmt: on
