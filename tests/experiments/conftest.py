"""Settings of small runs, and the folder of MNIST, if this machine has it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradest_experiments.gated.settings import GatedSettings

SMALL = {"data": "digits", "epochs": 3, "hidden": 8, "gates": 20}


@pytest.fixture
def small() -> Callable[..., GatedSettings]:
    """Return settings of a run that takes a second."""
    return lambda **options: GatedSettings.build(**{**SMALL, **options})


@pytest.fixture
def mnist_home(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder $GRADEST_DATA; skip the test if it is not set."""
    home: Any = os.environ.get("GRADEST_DATA")
    if not home:
        pytest.skip("needs the IDX files of MNIST: set GRADEST_DATA")
    return Path(home)
