"""What the documents say about files holds."""

from __future__ import annotations

import re

import pytest

from tests.documents import ROOT, site_pages

FOLDERS = ("", "ds_seq", "ds_seq/moe", "tests/distributed")
DECISION = re.compile(r"^\*\*([A-Z]\d+)\. ", re.MULTILINE)


DOCUMENTS = ("ARCHITECTURE.md", "CONTRIBUTING.md", "README.md")
GUIDES = tuple(
    f"docs/{name}.md"
    for name in (
        "ADAPTERS",
        "API",
        "CONVOLUTIONS",
        "CRITERIONS",
        "DISTILLATION",
        "EXPERTS",
        "LANGUAGE_MODELS",
        "LONG_INPUTS",
        "PRETRAINING",
        "RECIPES",
        "QUICK_START",
        "RECURRENT",
        "RETENTION",
        "RUNS",
        "SERVING",
        "SUMMARIZATION",
        "SURVIVING",
        "TRAINING",
        "TRANSLATING",
    )
)
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("document", [*DOCUMENTS, *GUIDES])
def test_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.-]+\.(?:py|sh|md|yaml))(?:::[\w.]+)?`", text))
    missing = [
        name
        for name in sorted(named)
        if "NAME" not in name
        and not name.startswith(("my", "out."))
        and not any((ROOT / folder / name).exists() for folder in FOLDERS)
    ]
    assert named and not missing


def test_links_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in LINK.findall(document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), (document.name, target)


def test_decisions_are_numbered_and_listed() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text[text.index("## Decisions") :]
    numbers = DECISION.findall(section)
    assert len(numbers) > 30 and len(set(numbers)) == len(numbers)
    table = section[: section.index("### ")]
    assert re.findall(r"\b([A-Z]\d+) ", table) == numbers


def test_every_document_has_one_place_on_the_site() -> None:
    """Those without a place are to be named in mkdocs.yml, below `nav`."""
    pages = site_pages()
    documents = {
        str(path.relative_to(ROOT))
        for folder in ("", "docs", "launch", "prepare_data", "benchmarks")
        for path in (ROOT / folder).glob("*.md")
    }
    assert documents - set(pages) == set()
    assert len(set(pages)) == len(pages)
    assert all((ROOT / page).is_file() for page in pages)
