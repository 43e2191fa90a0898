"""The small summarization task that is made of package descriptions."""

from __future__ import annotations

import lzma
from pathlib import Path
from types import ModuleType

import pytest

from ds_seq.errors import UserError
from tests.unit.data.scripts import load_script

_PLACE = "debian/dists/bookworm/main/i18n/Translation-en.xz"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("synopsis")


def _paragraph(number: int, opening: str) -> str:
    return (
        f"Package: p{number}\nDescription-md5: {number:032x}\n"
        f"Description-en: summary number {number}\n"
        f" {opening} that does something with many files.\n .\n  * part {number}\n\n"
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_descriptions_become_six_files_without_shared_families(
    script: ModuleType, tmp_path: Path
) -> None:
    openings = [f"The package {n // 2} is a small free command line tool" for n in range(40)]
    text = "".join(_paragraph(n, opening) for n, opening in enumerate(openings))
    text += "Package: short\nDescription-en: too short a text\n Nothing to say.\n\n"
    path = tmp_path / "mirror" / _PLACE
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.compress(text.encode()))
    command = ["--out", str(tmp_path), "--held-out", "4", "--mirror", str(tmp_path / "mirror")]
    assert script.main(command) == 0
    splits = {name: _lines(tmp_path / f"{name}.source") for name in ("train", "val", "test")}
    assert {name: len(lines) for name, lines in splits.items()} == {
        "train": 32,
        "val": 4,
        "test": 4,
    }
    families = [{line.split(" is ")[0] for line in lines} for lines in splits.values()]
    assert not families[0] & families[1] and not families[1] & families[2]
    for name, lines in splits.items():
        for source, target in zip(lines, _lines(tmp_path / f"{name}.target"), strict=True):
            assert source.endswith(
                f"with many files. * part {target.removeprefix('summary number ')}"
            )
    before = {path: path.read_bytes() for path in tmp_path.glob("*.source")}
    assert script.main(command) == 0
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.source")}


def test_a_table_of_your_own(script: ModuleType, tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    rows = [f"text number {n} has ten words or more in it\tsummary number {n}\n" for n in range(9)]
    table.write_text("".join(rows))
    assert script.main(["--out", str(tmp_path), "--tsv", str(table), "--held-out", "2"]) == 0
    assert len(_lines(tmp_path / "train.source")) == 5
    with pytest.raises(UserError, match="9 pairs, too few to hold out 2 x 4"):
        script.main(["--out", str(tmp_path), "--tsv", str(table), "--held-out", "4"])
    table.write_text("no tab\n")
    with pytest.raises(UserError, match=r"pairs\.tsv: line 1 has 1 column"):
        script.main(["--out", str(tmp_path), "--tsv", str(table)])
