"""The steps of `ds-seq prepare`: what each was made from, so that it is not repeated in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict

from ds_seq import files
from ds_seq.errors import UserError
from ds_seq.records import Count, parse_json, read_json, read_limited, record


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
class StepRecord(TypedDict):
    """Content of `clean/train.json`, `clean/valid.overlap.json` and `vocab.json`.

    Of a step that was interrupted while it wrote, only `outputs` and `outputs_before` are known.
    """

    made_from: NotRequired[dict[str, Any]]
    outputs: list[str]
    """SHA-256 of each output, in the order of the step."""
    outputs_before: NotRequired[list[str] | None]
    """What the outputs were before an interrupted step, if a step had made them, too."""
    result: NotRequired[Result]
    sha256: NotRequired[str]
    """Checksum of the rest; not in records of earlier versions."""


def read_step(path: Path) -> StepRecord:
    """Read a record, and make sure that it is as it was written.

    Records of earlier versions, which have no checksum of themselves, need only have the structure.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged.
    """
    content = read_limited(path)
    step = parse_json(content, StepRecord, path, "delete it")
    names = StepRecord.__required_keys__ | StepRecord.__optional_keys__
    if not files.is_sealed(content) and ("sha256" in step or not step.keys() <= names):
        raise UserError(f"{path}: is damaged; delete it and run `ds-seq prepare` again")
    return step


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

    def _read(self) -> StepRecord | None:
        try:
            return read_json(self._path, StepRecord, "delete it")
        except (FileNotFoundError, UserError):
            return None

    def made_outputs(self) -> bool:
        """Return whether the outputs are exactly what this step has written."""
        last = self._read()
        return (
            last is not None
            and all(file.exists() for file in self._outputs)
            and [files.fingerprint(file) for file in self._outputs]
            in (last["outputs"], last.get("outputs_before"))
        )

    def is_recorded(self) -> bool:
        """Return whether this step has been taken before."""
        return self._read() is not None

    def is_damaged(self) -> bool:
        """Return whether there is a record that cannot be read."""
        return self._path.exists() and not self.is_recorded()

    def forget(self) -> None:
        """Remove the record."""
        with files.writing(self._path):
            files.remove(self._path)

    def result_of_last_time(self) -> Result | None:
        """Return the result passed to `record` last time, or None if anything has changed."""
        last = self._read()
        if last is None or not self._matches(last.get("made_from", {})):
            return None
        return last.get("result") if self.made_outputs() else None

    def known(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return options of this step, without those of which the record of last time says nothing.

        An earlier version, whose outputs are kept, had options neither for the rule of the
        vocabulary nor for spaces, and sampled more sentences.
        """
        last = self._read()
        made_from = {} if last is None else last.get("made_from", {})
        unknown = self._unknown(made_from) if made_from else set()
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

    def announce(self, outputs: list[str]) -> None:
        """Record what is about to be written: if it is there after a kill, this step made it.

        Args:
            outputs: SHA-256 of each output.
        """
        last = self._read()
        before = last["outputs"] if last is not None and self.made_outputs() else None
        self._write({"outputs": outputs, "outputs_before": before})

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
        self._write(content)

    def _write(self, content: dict[str, Any]) -> None:
        files.write_bytes(self._path, files.sealed_json(content))
