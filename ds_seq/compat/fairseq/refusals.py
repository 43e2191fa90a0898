"""What cannot be translated, collected so that all of it is reported together."""

from __future__ import annotations

from ds_seq.errors import UserError


class Refusals:
    """Collects what cannot be translated, so that all of it is reported together."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Note that something cannot be translated."""
        self.lines.append(line)

    def raise_any(self, command: str) -> None:
        """Raise what was noted, one line each.

        Raises:
            UserError: something was noted.
        """
        if self.lines:
            raise UserError("\n".join(f"{command}: {line}" for line in self.lines))
