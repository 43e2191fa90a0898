"""A default is written once, in the schema: parts take values and have no defaults of options.

Compared by name: a parameter, or a field of a dataclass or named tuple, that has a default although
an option of the experiment file bears its name. ``None`` is no such default: it says that there is
nothing.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import ds_seq
import ds_seq.config
from ds_seq.config.base import Config

PACKAGE = Path(ds_seq.__file__).parent

# Names that mean something else than the option of that name, by file and name.
OTHER_MEANINGS = {
    ("api/models.py", "checkpoint"): "of the model that is loaded, not of a teacher",
    ("commands/make_student.py", "checkpoint"): "as in api/models.py",
    ("commands/moe_stats.py", "checkpoint"): "as in api/models.py",
    ("commands/prune_experts.py", "checkpoint"): "as in api/models.py",
    ("commands/prune_heads.py", "checkpoint"): "as in api/models.py",
    ("commands/serve.py", "checkpoint"): "as in api/models.py",
    ("data/sections.py", "offset"): "the section of the first pair, not a position of tokens",
    ("data/binarize.py", "workers"): "processes; the caller turns data.workers into a number",
    ("data/clean.py", "workers"): "processes; the caller turns data.workers into a number",
    ("text/fairseq_tokenizer.py", "language"): "of the rules of a tokenizer, not of all text",
    ("text/sentencepiece.py", "name"): "what messages call a vocabulary",
    ("tasks/translation.py", "source"): "the source itself, not its section",
    ("data/batching.py", "rank"): "of a process, not of a change",
    ("distributed/launch.py", "rank"): "of a process, not of a change",
    ("generation/rescoring.py", "rank"): "of a process, not of a change",
    ("generation/translate.py", "rank"): "of a process, not of a change",
    ("modules/lora.py", "activation"): "as in modules/linear.py",
    ("distill/assembly.py", "workers"): "processes, of a command that has no such option",
    ("distributed/launch.py", "size"): "number of processes, not of subwords",
    ("generation/pipeline.py", "workers"): "searches at a time; data.workers are processes",
    ("scores/significance.py", "seed"): "of the bootstrap, which has one seed for everybody",
    ("generation/translate.py", "workers"): "searches at a time; data.workers are processes",
    ("text/sentencepiece_training.py", "seed"): "of the sample of lines, which has no option",
    ("modules/bitlinear.py", "activation"): "as in modules/linear.py",
    ("modules/weight_norm.py", "activation"): "as in modules/linear.py",
    ("modules/linear.py", "activation"): "fused into the product; no option has the value none",
    ("reports/moe_watch.py", "patience"): "updates an expert may be idle, not validations",
}
# To be emptied: files in which defaults are still doubled.
PENDING: tuple[str, ...] = ()


def options() -> set[str]:
    """Names of all options that have a default in the schema."""
    names = set()
    for info in pkgutil.walk_packages(ds_seq.config.__path__, "ds_seq.config."):
        for section in vars(import_module(info.name)).values():
            if inspect.isclass(section) and issubclass(section, Config):
                fields = section.model_fields.items()
                names |= {name for name, field in fields if not field.is_required()}
    return names


def defaults(tree: ast.AST) -> Iterator[tuple[int, str, ast.expr]]:
    """Line, name and default of each parameter of a function and each field of a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            places = [*node.args.posonlyargs, *node.args.args]
            given = node.args.defaults
            pairs = list(zip(places[len(places) - len(given) :], given, strict=True))
            named = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            pairs += [(place, value) for place, value in named if value is not None]
            yield from ((place.lineno, place.arg, value) for place, value in pairs)
        elif isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    if field.value is not None:
                        yield field.lineno, field.target.id, field.value


def is_default(value: ast.expr) -> bool:
    """Whether it is a value of an option: not None, not an empty tuple, not ``field(...)``."""
    if isinstance(value, ast.Constant):
        return value.value is not None
    return isinstance(value, ast.UnaryOp | ast.Name)


def doubled(source: str, names: set[str]) -> list[tuple[int, str, str]]:
    """Line, name and default of what stands in the schema too."""
    return [
        (line, name, ast.unparse(value))
        for line, name, value in defaults(ast.parse(source))
        if name in names and is_default(value)
    ]


def test_the_search_for_doubled_defaults_finds_them() -> None:
    source = """
def build(seed=1, *, beam: int = BEAM, other=3, max_tokens, patience=None): ...
class Search:
    beam: int = 5
    length_penalty: float = -1.0
    temperature: float
    extra: float = 1.0
    def __init__(self, dropout=0.1): ...
"""
    found = doubled(source, options())
    assert [name for _, name, _ in sorted(found)] == [
        "beam", "seed", "beam", "length_penalty", "dropout",
    ]  # fmt: skip


def test_no_default_is_written_twice() -> None:
    names = options()
    assert {"beam", "seed", "min_capacity", "max_words", "num_prefetch"} <= names
    wrong, used = [], set()
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE).as_posix()
        if relative.startswith("config/"):
            continue
        for line, name, value in doubled(path.read_text(encoding="utf-8"), names):
            if (relative, name) in OTHER_MEANINGS:
                used.add((relative, name))
            elif relative not in PENDING:
                wrong.append(f"{relative}:{line}: {name} = {value}")
    assert not wrong, "defaults that stand in the schema too:\n" + "\n".join(wrong)
    assert used == set(OTHER_MEANINGS), "an exception that is needed no more"
