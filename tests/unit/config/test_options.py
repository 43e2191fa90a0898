"""The table of options is complete and the file that holds it is current."""

from __future__ import annotations

from pathlib import Path

from ds_seq.config.options import options_table
from ds_seq.config.schema import section_classes, sections

OPTIONS_FILE = Path(__file__).parents[3] / "configs" / "OPTIONS.md"


def test_each_option_has_a_row() -> None:
    table = options_table()
    missing = [
        section.path_of(name)
        for section in sections()
        for name, field in section.config.model_fields.items()
        if not section_classes(field.annotation) and f"| `{section.path_of(name)}` |" not in table
    ]
    assert not missing


def test_required_and_default_are_distinguished() -> None:
    table = options_table()
    assert "| `data.source_lang` | text | required |" in table
    assert "| `train.max_updates` | int >= 1 | `100000` |" in table
    assert '| `model.norm_position` | `pre`, `post`, `deepnorm`, `subln` | `"post"` |' in table
    assert "| `model.moe` | section or null | `null` |" in table


def test_the_file_is_current() -> None:
    assert OPTIONS_FILE.read_text(encoding="utf-8") == options_table(), (
        "run: ds-seq check --options > configs/OPTIONS.md"
    )
