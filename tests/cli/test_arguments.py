"""How numbers, options and specs are read from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gradest
from gradest.cli.arguments import read_numbers, read_options, read_spec
from gradest.errors import InvalidInput, InvalidOptions


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1", [1]),
        ("-1e-3,.5", [-0.001, 0.5]),
        (" 1 , 2 ", [1, 2]),
        ("[[1], [2]]", [[1], [2]]),
        (" [1]", [1]),
        ("[]", []),
    ],
)
def test_read_numbers(text: str, numbers: list[Any]) -> None:
    assert read_numbers(text) == numbers


def test_read_numbers_of_a_file_with_a_lone_number(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("3")
    assert read_numbers(str(tmp_path / "a")) == [3]
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(InvalidInput, match="is neither numbers"):
        read_numbers(str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("rloo", {"name": "rloo"}),
        (" rloo : samples=4", {"name": "rloo", "samples": 4}),
        ("x:a=1,b=text,c=[1,2],d={\"e\": [3, 4]},f=null,g=1.5e-3,h=true", {
            "name": "x", "a": 1, "b": "text", "c": [1, 2], "d": {"e": [3, 4]}, "f": None, "g": 0.0015, "h": True,
        }),
        ('{"name": "rloo", "samples": 4}', {"name": "rloo", "samples": 4}),
        ("x:a=b=c", {"name": "x", "a": "b=c"}),
        ("x:", {"name": "x"}),
    ],
)  # fmt: skip
def test_read_spec(text: str, spec: dict[str, Any]) -> None:
    assert read_spec(text) == spec


@pytest.mark.parametrize("text", ["x:a", "x:=1", "{", "{]"])
def test_read_spec_refuses_what_is_none(text: str) -> None:
    with pytest.raises(InvalidOptions):
        gradest.estimator(read_spec(text))


def test_read_options_takes_the_last_of_two() -> None:
    assert read_options(["a=1", "a=2"]) == {"a": 2}
