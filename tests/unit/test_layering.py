"""The rules of structure in ARCHITECTURE.md, read from the source with `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from ds_seq.config.base import EXTERNAL_TAG
from ds_seq.config.criterion import CriterionConfig
from ds_seq.config.data import SourceConfig
from ds_seq.config.model import ModelConfig
from ds_seq.config.optim import OptimizerConfig, SchedulerConfig
from ds_seq.config.task import TaskConfig
from ds_seq.criterions import CRITERIONS
from ds_seq.data.open import SOURCES as DATA_SOURCES
from ds_seq.models import MODELS
from ds_seq.names import HUGGINGFACE
from ds_seq.optim import OPTIMIZERS, SCHEDULERS
from ds_seq.tasks import TASKS
from tests.fresh import words_printed_by

PACKAGE = Path(__file__).resolve().parents[2] / "ds_seq"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A part may import parts of earlier rows only, never one of its own row.
RANKS: list[set[str]] = [
    {"__init__", "errors", "environment"},
    {"names", "records", "activity"},
    {"files"},
    {"launcher", "mpi"},
    {"plugins", "distributed", "supervision"},
    {"config"},
    {"text"},
    {"data"},
    {"modules", "compat"},
    {"moe"},
    {"models"},
    {"weights"},
    {"search", "scores"},
    {"criterions", "optim"},
    {"generation"},
    {"tasks"},
    {"runs", "reports"},
    {"surgery"},
    {"distill"},
    {"training", "serving"},
    {"commands"},
    {"train", "generate", "trained_model"},
    {"api"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, parts in enumerate(RANKS) for part in parts}

# These take plain values, although config stands below them.
CONFIG_FREE = ("text", "data", "modules", "moe", "search", "scores", "generation", "models")
CONFIG_ALLOWED = {
    "models/__init__.py",
    "text/build.py",
    "text/raw.py",
    "data/expected.py",
    "data/cleaning/build.py",
    "generation/build.py",
}
CONFIG_ALLOWED_FOLDERS = ("models/build/",)

DEEPSPEED_ALLOWED = {
    "distributed/group.py",
    "distributed/quiet.py",
    "distill/sharded.py",
    "moe/engine.py",
}
DEEPSPEED_ALLOWED_FOLDERS = ("training/",)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(path: Path) -> str:
    """The row entry a file belongs to: its top-level folder, or its own name at the top."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module name) for each import, those inside functions included."""
    package = ["ds_seq", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from ds_seq import cli` names a module, `from ds_seq.cli import main` does not;
                # the longer name gives the same part in both cases.
                yield node.lineno, f"{module}.{alias.name}"


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, part of ds_seq) for each import of our own code."""
    for line, module in imported_modules(path):
        names = module.split(".")
        if names[0] != "ds_seq":
            continue
        is_part = len(names) > 1 and names[1] in RANK
        yield line, names[1] if is_part else "__init__"


def imports_of(path: Path, package: str) -> list[str]:
    return [
        f"{relative(path)}:{line} imports {module}"
        for line, module in imported_modules(path)
        if module == package or module.startswith(f"{package}.")
    ]


def test_every_file_has_a_rank() -> None:
    strangers = {relative(path) for path in SOURCES if part_of(path) not in RANK}
    assert not strangers, f"give these a row in RANKS and in ARCHITECTURE.md: {sorted(strangers)}"


def test_parts_import_only_lower_ranks() -> None:
    # the package itself names its library, which is imported at its first use: see
    # `test_importing_the_package_imports_nothing_else`
    wrong = [
        f"{relative(path)}:{line} ({part_of(path)}) imports {part}"
        for path in SOURCES
        if path != PACKAGE / "__init__.py"
        for line, part in imported_parts(path)
        if part != part_of(path) and RANK[part] >= RANK[part_of(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_components_never_import_config() -> None:
    wrong = [
        message
        for path in SOURCES
        if part_of(path) in CONFIG_FREE
        and relative(path) not in CONFIG_ALLOWED
        and not relative(path).startswith(CONFIG_ALLOWED_FOLDERS)
        for message in imports_of(path, "ds_seq.config")
    ]
    assert not wrong, "\n".join(wrong)


def test_deepspeed_is_imported_in_few_places() -> None:
    wrong = [
        message
        for path in SOURCES
        if relative(path) not in DEEPSPEED_ALLOWED
        and not relative(path).startswith(DEEPSPEED_ALLOWED_FOLDERS)
        for message in imports_of(path, "deepspeed")
    ]
    assert not wrong, "\n".join(wrong)


def test_files_are_short() -> None:
    lines = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    long = {name: count for name, count in lines.items() if count > MAX_FILE_LINES}
    assert not long, f"more than {MAX_FILE_LINES} lines: {long}"


def test_functions_are_short() -> None:
    wrong = [
        f"{relative(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not wrong, f"more than {MAX_FUNCTION_LINES} lines:\n" + "\n".join(wrong)


def closed_sets(path: Path) -> Iterator[tuple[str, ...]]:
    """The words of each `Literal` of several words, and of each constant tuple of such."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        words: ast.expr | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            words = node.slice if node.value.id == "Literal" else None
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            words = node.value if node.targets[0].id.isupper() else None
        if isinstance(words, ast.Tuple):
            values = [word.value for word in words.elts if isinstance(word, ast.Constant)]
            if len(values) == len(words.elts) > 1:
                yield tuple(map(str, values))


def test_a_closed_set_of_words_is_spelled_once() -> None:
    """What the config and a part both use stands in `names.py`."""
    places: dict[tuple[str, ...], list[str]] = {}
    for path in SOURCES:
        for words in closed_sets(path):
            places.setdefault(words, []).append(relative(path))
    assert len(places) > 20
    assert not {words: files for words, files in places.items() if len(files) > 1}


def test_no_getattr_with_a_default() -> None:
    """A default hides a misspelt name; a typed attribute or a Protocol does not."""
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "getattr"
        and len(node.args) == 3
        and isinstance(node.args[1], ast.Constant)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_unpickled() -> None:
    """Unpickling runs code of whoever wrote the file; ruff looks for the other ways.

    One module reads pickles, by a list of names that it looks up itself: see its tests.
    """
    by_list = PACKAGE / "runs" / "formats" / "fairseq" / "plain.py"
    unpickles = {("torch", "load"), ("np", "load"), ("dist", "load"), ("pickle", "Unpickler")}
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        if path != by_list
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in unpickles
    ]
    assert not wrong, "\n".join(wrong)


def modules_after(statement: str) -> set[str]:
    """Run ``statement`` in a fresh interpreter and return the top-level names in sys.modules."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return {name.split(".")[0] for name in words_printed_by(code)}


def test_check_imports_no_torch() -> None:
    """`ds-seq check` must answer at once, on a login node too."""
    names = [relative(path).removesuffix(".py").replace("/", ".") for path in SOURCES]
    config = [f"ds_seq.{name}".removesuffix(".__init__") for name in names if "config." in name]
    assert len(config) > 5
    loaded = modules_after("import ds_seq.cli, ds_seq.commands.check, " + ", ".join(config))
    assert "pydantic" in loaded
    assert not loaded & {"torch", "deepspeed", "numpy", "sentencepiece", "sacrebleu"}


def test_data_is_prepared_without_torch() -> None:
    """Each worker process would load it, which takes longer than most texts."""
    loaded = modules_after("import ds_seq.commands.prepare, ds_seq.data.binarize")
    assert "sentencepiece" in loaded and not loaded & {"torch", "deepspeed", "sacrebleu"}


def test_importing_the_config_builds_no_schema() -> None:
    """Building them is what `ds-seq check` spends its time on: that of the experiment, once."""
    code = (
        "import ds_seq.commands.check\n"
        "from ds_seq.config.schema import sections\n"
        "print(*{s.config.__name__ for s in sections() if s.config.__pydantic_complete__})"
    )
    assert words_printed_by(code) == []


def test_importing_the_package_imports_nothing_else() -> None:
    ours = modules_after("import ds_seq")
    assert ours - modules_after("pass") == {"ds_seq"}


def union_tags(union: object) -> set[str]:
    """The names a discriminated union of the config knows, without that of outside code."""
    members = get_args(get_args(union)[0])
    return {tag.tag for member in members for tag in get_args(member)[1:]} - {EXTERNAL_TAG}


def test_every_name_in_the_config_has_an_implementation() -> None:
    """A new plug-in needs a config class and a line in its table; neither can be forgotten."""
    # a folder of transformers is expanded into a Transformer while the experiment is loaded
    assert union_tags(ModelConfig) == {*MODELS, HUGGINGFACE}
    assert union_tags(CriterionConfig) == set(CRITERIONS)
    assert union_tags(TaskConfig) == set(TASKS)
    assert union_tags(SourceConfig) == set(DATA_SOURCES)
    assert union_tags(OptimizerConfig) == set(OPTIMIZERS)
    assert union_tags(SchedulerConfig) == set(SCHEDULERS)
