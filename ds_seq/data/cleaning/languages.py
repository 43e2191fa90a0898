"""The language of a text, by one of several libraries or by code of the user.

None of the libraries is required, and none is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ds_seq.errors import UserError
from ds_seq.plugins import import_object, trusting
from ds_seq.text.languages import primary_language

Identifier = Callable[[str], tuple[str, float]]
"""Returns the language code of a text and its probability."""

_WHERE = "data.clean.language_id"


@dataclass(frozen=True)
class OtherLanguage:
    """Drops pairs with a side that is in another language than expected.

    Attributes:
        source: expected language of the source.
        target: expected language of the target.
        identifier: library, or `package.module:Name` of a class whose objects are called with a
            text and return its language code and a probability.
        model: file of a model; empty for identifiers that bring their own.
        least: smallest probability.
    """

    source: str
    target: str
    identifier: str
    model: str
    least: float
    reason: ClassVar[str] = "language"

    def __call__(self, source: str, target: str) -> bool:
        """Return whether to drop the pair."""
        identify = _loaded(self.identifier, self.model)
        return any(
            self._is_other(identify(text), expected)
            for text, expected in ((source, self.source), (target, self.target))
        )

    def _is_other(self, found: tuple[str, float], expected: str) -> bool:
        code, probability = found
        return primary_language(code) != primary_language(expected) or probability < self.least

    def load(self) -> None:
        """Load the identifier, and what it loads when it is first called."""
        _loaded(self.identifier, self.model)("This is a text.")

    def check(self) -> None:
        """Check that the identifier can be used, before any process is started.

        Raises:
            UserError: the library or its model is missing, or code from outside is not trusted.
        """
        if ":" in self.identifier:
            import_object(self.identifier, _WHERE)
        elif find_spec(self.identifier) is None:
            raise UserError(
                f"{_WHERE}: {self.identifier} is not installed; run `pip install "
                f"{_PACKAGES.get(self.identifier, self.identifier)}`, or give another identifier"
            )
        if self.model and not Path(self.model).is_file():
            raise UserError(f"{_WHERE}_model: {self.model}: no such file; check the path")


_PACKAGES = {"lingua": "lingua-language-detector"}


@cache
def _loaded(name: str, model: str) -> Identifier:
    """Return an identifier; each process loads it once."""
    if name in _LIBRARIES:
        return _LIBRARIES[name](model)
    with trusting([name]):  # the main process has asked, see `check`
        kind = import_object(name, _WHERE)
    identifier: Identifier = kind(model) if model else kind()
    return identifier


def _fasttext(model: str) -> Identifier:
    import fasttext  # type: ignore[import-not-found]

    # the method of the C++ object: the one around it fails with numpy 2
    predict = fasttext.load_model(model).f.predict

    def identify(text: str) -> tuple[str, float]:
        found = predict(f"{text}\n", 1, 0.0, "strict")
        if not found:
            return "", 0.0
        probability, label = found[0]
        return str(label).removeprefix("__label__"), float(probability)

    return identify


def _lingua(model: str) -> Identifier:
    from lingua import LanguageDetectorBuilder  # type: ignore[import-not-found]

    detector = LanguageDetectorBuilder.from_all_languages().build()

    def identify(text: str) -> tuple[str, float]:
        found = detector.compute_language_confidence_values(text)
        if not found:
            return "", 0.0
        return found[0].language.iso_code_639_1.name.lower(), float(found[0].value)

    return identify


def _langid(model: str) -> Identifier:
    from langid import langid  # type: ignore[import-not-found]

    identifier: Any = langid.LanguageIdentifier.from_modelstring(langid.model, norm_probs=True)

    def identify(text: str) -> tuple[str, float]:
        code, probability = identifier.classify(text)
        return code, float(probability)

    return identify


def _pycld2(model: str) -> Identifier:
    import pycld2  # type: ignore[import-not-found]

    def identify(text: str) -> tuple[str, float]:
        try:
            details = pycld2.detect(text, bestEffort=True)[2]
        except pycld2.error:  # characters that it refuses
            return "", 0.0
        _, code, percent, _ = details[0]
        return code, percent / 100

    return identify


_LIBRARIES: Mapping[str, Callable[[str], Identifier]] = {
    "fasttext": _fasttext,
    "lingua": _lingua,
    "langid": _langid,
    "pycld2": _pycld2,
}
