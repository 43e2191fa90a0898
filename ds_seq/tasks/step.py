"""The steps of `ds-seq prepare`: what each was made from, so that it is not repeated in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.records import Count, read_json, record


@record
class Result(TypedDict, total=False):
    """Figures of a finished step; clean text also has counts of what was dropped.

    `total`, `pairs` and `sources` are those of an `Overlap`.
    """

    kept: Count
    size: Count
    total: Count
    pairs: Count
    sources: Count


@record
class _StepRecord(TypedDict):
    """Content of `clean/train.json`, `clean/valid.overlap.json` and `vocab.json`."""

    made_from: dict[str, Any]
    outputs: list[str]
    result: Result


class Step:
    """A step from input to output files, and the record that allows skipping it next time.

    Args:
        path: file of the record.
        inputs: SHA-256 of each input.
        options: options of the step, as JSON has them.
        outputs: files that the step writes.
    """

    def __init__(
        self, path: Path, inputs: list[str], options: dict[str, Any], outputs: list[Path]
    ) -> None:
        self._path = path
        self._outputs = outputs
        self._options = options
        self._made_from = {"inputs": inputs, "options": options}

    def _read(self) -> _StepRecord | None:
        try:
            return read_json(self._path, _StepRecord, "delete it")
        except (FileNotFoundError, UserError):
            return None

    def made_outputs(self) -> bool:
        """Return whether the outputs are exactly what this step wrote last time."""
        last = self._read()
        return (
            last is not None
            and all(file.exists() for file in self._outputs)
            and last["outputs"] == [files.fingerprint(file) for file in self._outputs]
        )

    def result_of_last_time(self) -> Result | None:
        """Return the result passed to `record` last time, or None if anything has changed."""
        last = self._read()
        if last is None or not self._matches(last["made_from"]):
            return None
        return last["result"] if self.made_outputs() else None

    def known(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return options of this step, without those of which the record of last time says nothing.

        An earlier version, whose outputs are kept, had options neither for the rule of the
        vocabulary nor for spaces, and sampled more sentences.
        """
        last = self._read()
        unknown = set() if last is None else self._unknown(last["made_from"])
        return {key: value for key, value in options.items() if key not in unknown}

    def _unknown(self, made_from: dict[str, Any]) -> set[str]:
        missing = {"normalization", "fold_spaces"} & (
            self._options.keys() - made_from["options"].keys()
        )
        return {*missing, "input_sentence_size"} if missing else set()

    def _matches(self, made_from: dict[str, Any]) -> bool:
        """Return whether a record is of the same inputs and options, as far as it knows them."""
        if not isinstance(made_from.get("options"), dict):
            return False
        ignored = self._unknown(made_from)
        before, now = (
            {key: value for key, value in options.items() if key not in ignored}
            for options in (made_from["options"], self._options)
        )
        return made_from.get("inputs") == self._made_from["inputs"] and before == now

    def record(self, result: dict[str, Any]) -> None:
        """Record that the step is done.

        Args:
            result: JSON-serializable result, which `result_of_last_time` returns.
        """
        content = {
            "made_from": self._made_from,
            "outputs": [files.fingerprint(file) for file in self._outputs],
            "result": result,
        }
        files.write_json(self._path, content)
