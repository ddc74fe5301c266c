"""What tests of the command line share."""

from __future__ import annotations

import io
import sys

import pytest

from gradest.cli import main
from tests.cli.results import Ran, Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def command(*arguments: str, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "argv", ["gradest", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        if isinstance(ended.value.code, str):  # what the interpreter prints, with exit code 1
            return Ran(1, out, err + ended.value.code + "\n")
        return Ran(ended.value.code or 0, out, err)

    return command
