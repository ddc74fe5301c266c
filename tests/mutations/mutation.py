"""One fault, and how it is put into a file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A fault.

    file: where it is. old: what stands there, once. new: what takes its place. breaks: what goes wrong then. tests: the arguments
    of pytest for the tests that are to notice, separated by spaces.
    """

    file: str
    old: str
    new: str
    breaks: str
    tests: str

    def applied(self, text: str) -> str:
        """The text of the file with the fault in it."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {text.count(self.old)} times, not once")
        return text.replace(self.old, self.new)
