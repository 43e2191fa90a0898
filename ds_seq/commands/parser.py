"""The parser of a command; does not import torch, for a fast `ds-seq check`."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ds_seq.errors import UserError
from ds_seq.plugins import nearest, trust

OVERRIDES = "key=value"
_KINDS = {"int": "a whole number", "float": "a number"}
"""What to write, by the name of the function that converts it."""
_WORDS = (
    (r"argument (\S+): expected one argument", r"\1: needs a value"),
    (r"argument (\S+): expected at least one argument", r"\1: needs one value or more"),
    (r"argument (\S+): not allowed with argument (\S+)", r"\1 and \2 cannot be combined"),
    (r"the following arguments are required: (.*)", r"missing: \1"),
    (r"unrecognized arguments: (-\S+).*", r"no option \1"),
    (r"unrecognized arguments: (.*)", r"too many arguments: \1"),
    (r"argument (\S+): (.*)", r"\1: \2"),
)
"""Messages of argparse, and how they are reported here."""


_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Number:
    """The `type` of an option that is a number: finite, and within its bounds.

    Attributes:
        least: smallest value; None for any.
        most: largest value; by default the largest of 64 bits, as in experiment files.
        is_whole: whether fractions are refused.
    """

    least: float | None
    most: float = _LARGEST
    is_whole: bool = True

    def __call__(self, text: str) -> float:
        """Read the value; its bounds are checked by `check`."""
        try:
            return int(text) if self.is_whole else float(text)
        except ValueError:
            kind = "a whole number" if self.is_whole else "a number"
            raise argparse.ArgumentTypeError(f"should be {kind}, not {text!r}") from None

    def check(self, option: str, value: float) -> None:
        """Check the value of `option`.

        Raises:
            UserError: the value makes no sense.
        """
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option} {value}: must be a finite number")
        if self.least is not None and value < self.least:
            raise UserError(f"{option} {value}: must be at least {self.least:g}")
        if value > self.most:
            raise UserError(f"{option} {value}: must be at most {self.most:g}")


COUNT = Number(1)
"""The `type` of an option that counts something."""


class CommandParser(argparse.ArgumentParser):
    """A parser that reports each mistake in one line, with the nearest option.

    It also checks the bounds of the options whose type is a `Number`.

    Raises:
        UserError: from `parse_args` and its like, where argparse would print its usage and exit.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse`; looks for unknown options first, which may hide other mistakes."""
        self._check_options(args or [])
        parsed, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = vars(parsed).get(action.dest)
            if isinstance(action.type, Number) and isinstance(value, int | float):
                action.type.check(action.option_strings[0], value)
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` with the message in one line."""
        invalid = re.fullmatch(r"argument (\S+): invalid (\w+) value: (.*)", message)
        choice = re.fullmatch(r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", message)
        if invalid is not None and invalid[2] in _KINDS:
            message = f"{invalid[1]}: should be {_KINDS[invalid[2]]}, not {invalid[3]}"
        elif choice is not None:
            known = re.findall(r"[\w.+-]+", choice[3])
            meant = nearest(choice[2].strip("'"), known)
            message = f"{choice[1]}: no {choice[2]}{meant}; there are {', '.join(known)}"
        else:
            for pattern, words in _WORDS:
                if re.fullmatch(pattern, message):
                    message = re.sub(pattern, words, message)
                    break
        message = message.replace(f", {OVERRIDES}", "")  # which argparse calls required, too
        raise UserError(f"{message}; see {self.prog} --help")

    def _check_options(self, args: Sequence[str]) -> None:
        known = list(self._option_string_actions)
        for argument in args:
            if argument == "--":
                return
            name = argument.partition("=")[0]
            if not re.fullmatch(r"--[\w.-]+", name) or name in known:
                continue
            if self.allow_abbrev and any(option.startswith(name) for option in known):
                continue
            raise UserError(f"no option {name}{self._meant(name, known)}; see {self.prog} --help")

    def _meant(self, name: str, known: Sequence[str]) -> str:
        option = f"--{name[2:].replace('_', '-')}"
        takes_settings = any(action.dest == "overrides" for action in self._actions)
        setting = _setting(name[2:]) if takes_settings and option not in known else None
        if setting is not None:
            return f"; settings are given without dashes: {setting}=VALUE"
        return _customary_option(name[2:], known) or nearest(option, known)


def _customary_option(name: str, known: Sequence[str]) -> str:
    """Return a hint for an option that other toolkits call `name`, or an empty string."""
    from ds_seq.config.customary import customary

    *_, last = (customary(name.replace("-", "_"), "generation") or "").split()[:1] or [""]
    option = f"--{last.rpartition('.')[2].replace('_', '-')}"
    return f"; ds_seq's name for it is {option}" if option in known else ""


def _setting(name: str) -> str | None:
    """Return the setting that was given like an option, under any toolkit's name for it."""
    from ds_seq.config.customary import customary  # needed for a mistake only
    from ds_seq.config.schema import paths_of_key

    *_, key = name.replace("-", "_").split(".")
    homes = paths_of_key(key)
    if name in homes:
        return name
    if homes:
        return homes[0]
    ours = customary(key, "")
    return None if ours is None or "." not in ours else ours.split()[0].rstrip(",:")


class _Trust(argparse.Action):
    """Allows the code with a name as soon as its option is parsed, so no command can forget it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        trust([str(values)])


def command_parser(
    name: str,
    description: str,
    *,
    usage: str | None = None,
    epilog: str | None = None,
    abbreviations: bool = False,
    reads_experiments: bool = True,
) -> CommandParser:
    """Return a parser with no argument but `--trust`.

    Args:
        name: name of the command.
        description: text at the top of `--help`.
        usage: usage line of `--help`; None: generated by argparse.
        epilog: text at the bottom of `--help`.
        abbreviations: whether options may be abbreviated.
        reads_experiments: whether the command reads experiments or trained models, which may name
            code from outside ds_seq; it then has the option `--trust`.
    """
    parser = CommandParser(
        prog=f"ds-seq {name}",
        usage=usage,
        description=description,
        epilog=epilog,
        allow_abbrev=abbreviations,
    )
    if reads_experiments:
        parser.add_argument("--trust", action=_Trust, default=argparse.SUPPRESS, metavar="NAME",
            help="run the code from outside ds_seq with this name (`package.module:Name`) if the "
            "experiment or the trained model names it; may be repeated")  # fmt: skip
    return parser


def add_overrides(parser: argparse.ArgumentParser, help: str = "dotted overrides") -> None:
    """Add the overrides that follow an experiment file."""
    parser.add_argument("overrides", nargs="*", metavar=OVERRIDES, help=help)
