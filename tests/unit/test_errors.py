"""Where every command ends: one line for a mistake, and reports in any encoding."""

from __future__ import annotations

import io
import sys

import pytest

from ds_seq.cli import main
from ds_seq.errors import UserError, run_command


def test_a_report_survives_a_terminal_that_knows_only_ascii(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    text = f"{tmp_path}/text"
    with open(text, "w", encoding="utf-8") as file:
        file.write("der Mann sieht die Häuser\n" * 4)
    for options in ([], ["--confidence", "--metrics", "bleu", "chrf"]):
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
        assert main(["score", text, text, *options]) == 0
        sys.stdout.flush()
        assert b"100.0" in content.getvalue()
    assert b"\\u03bc = 100.00 \\xb1 0.00" in content.getvalue()


def test_control_characters_of_a_message_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(argv: object) -> int:
        raise UserError("x\x1b[2J: größer\nsecond")

    assert run_command(refuse, []) == 2
    expected = "ds-seq: error: x\\x1b[2J: größer\nds-seq: error: second\n"
    assert capsys.readouterr().err == expected
