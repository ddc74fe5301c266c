"""Real plugin distributions: wheels written here, installed by pip into a folder of their own."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from gradest.discovery.registry import Registry

PRELUDE = """
import gradest
from gradest.contract.estimator import Bias, MonteCarlo
from gradest.contract.neuron import LogisticBinary
from gradest.contract.objective import Separable


def neuron(name):
    return type("Coin", (LogisticBinary,), {"name": name, "summary": "a coin", "__module__": __name__})


class Damped(MonteCarlo):
    name, summary, needs = "acme_unused", "half of straight-through", frozenset({"grad"})

    def bias(self, neuron):
        return Bias.BIASED

    def backward(self, draw, feedback, state):
        return 0.5 * feedback.get_grad().mean(0), state
"""


@dataclass(frozen=True)
class Distribution:
    """A distribution of modules, with entry points in the group `gradest`."""

    name: str
    modules: dict[str, str]
    entry_points: dict[str, str]
    version: str = "1.0"

    @classmethod
    def of_one_module(cls, name: str, source: str, entry_point: str = "plugin") -> Distribution:
        """The common case: one module, named like the distribution, behind one entry point."""
        module = name.replace("-", "_")
        return cls(name, {module: PRELUDE + dedent(source)}, {entry_point: module})

    def build(self, folder: Path) -> Path:
        """A wheel."""
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        points = "".join(f"{name} = {target}\n" for name, target in self.entry_points.items())
        files = {
            **{f"{module}.py": source for module, source in self.modules.items()},
            f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {self.name}\nVersion: {self.version}\n",
            f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{stem}.dist-info/entry_points.txt": f"[gradest]\n{points}",
        }
        record = "".join(f"{path},,\n" for path in [*files, f"{stem}.dist-info/RECORD"])
        wheel = folder / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in {**files, f"{stem}.dist-info/RECORD": record}.items():
                archive.writestr(path, text)
        return wheel


def install(distributions: list[Distribution], folder: Path) -> Path:
    """Build the distributions and let pip install them under `folder`/site."""
    site = folder / "site"
    wheels = [distribution.build(folder) for distribution in distributions]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--target", site, *wheels], check=True, capture_output=True, text=True)
    return site


GOOD = """
    class Cubic(Separable):
        name, summary = "acme_cubic", "a cube"

        def per_unit(self, h):
            return h**3

    class AcmeDamped(Damped):
        name = "acme_damped"

    @gradest.hookimpl
    def gradest_neurons():
        return [neuron("acme_coin")]

    @gradest.hookimpl
    def gradest_estimators():
        return (AcmeDamped,)

    @gradest.hookimpl
    def gradest_objectives():
        yield Cubic
"""


def offering(name: str, api: int = 2) -> str:
    """A module whose one neuron has this name, written for this plugin API."""
    return f"""
        GRADEST_PLUGIN_API = {api}

        @gradest.hookimpl
        def gradest_neurons():
            return [neuron("{name}")]
    """


CURIOUS = """
    Bernoulli = type(gradest.neuron("bernoulli"))

    @gradest.hookimpl
    def gradest_neurons():
        return [type("Heir", (Bernoulli,), {"name": "acme_heir", "summary": "an heir", "__module__": __name__})]
"""


def returning(expression: str) -> str:
    """A module whose estimator hook returns this expression."""
    return f"""
        @gradest.hookimpl
        def gradest_estimators():
            return {expression}
    """


DISTRIBUTIONS = [
    Distribution.of_one_module("acme-good", GOOD),
    Distribution.of_one_module("acme-curious", CURIOUS),  # looks a built-in up while it is imported
    Distribution.of_one_module("acme-twin", offering("acme_twin")),  # has an entry point of the same name
    Distribution.of_one_module("acme-rival-a", offering("acme_contested"), "rival_a"),
    Distribution.of_one_module("acme-rival-b", offering("acme_contested"), "rival_b"),
    Distribution.of_one_module("acme-thief", offering("bernoulli")),
    Distribution.of_one_module("acme-broken", "import a_module_that_is_not_there"),
    Distribution.of_one_module("acme-exits", "raise SystemExit('no licence')"),
    Distribution("acme-absent", {}, {"plugin": "acme_no_such_module"}),
    Distribution.of_one_module("acme-future", offering("acme_future", api=3)),
    Distribution.of_one_module("acme-past", offering("acme_past", api=1)),
    Distribution.of_one_module("acme-misspelt", "@gradest.hookimpl\ndef gradest_neuron():\n    return [neuron('acme_x')]"),
    Distribution.of_one_module("acme-argument", "@gradest.hookimpl\ndef gradest_neurons(verbose):\n    return []"),
    Distribution.of_one_module("acme-unmarked", offering("acme_x") + "    def gradest_estimators():\n            return []"),
    Distribution.of_one_module("acme-hookless", ""),
    Distribution.of_one_module("acme-raises", returning("[1 / 0]")),
    Distribution.of_one_module("acme-raises-late", returning("(1 / 0 for _ in [0])")),
    Distribution.of_one_module("acme-returns-none", returning("None")),
    Distribution.of_one_module("acme-returns-text", returning("'acme_x'")),
    Distribution.of_one_module("acme-returns-instance", returning("[neuron('acme_x')()]")),
    Distribution.of_one_module("acme-abstract", returning("[type('Half', (MonteCarlo,), {'name': 'x', 'summary': 'y'})]")),
    Distribution.of_one_module("acme-bad-name", returning("[type('Named', (Damped,), {'name': 'Acme-Damped'})]")),
    Distribution.of_one_module("acme-nameless", returning("[type('Nameless', (Damped,), {'name': None, 'summary': ''})]")),
    Distribution.of_one_module("acme-needless", returning("[type('Needless', (Damped,), {'needs': {'gradient'}})]")),
    Distribution.of_one_module(
        "acme-required", "class Picky(Damped):\n    strength: float\n" + dedent(returning("[Picky]"))
    ),
    Distribution.of_one_module(
        "acme-doubled", returning("[Damped, type('Another', (Damped,), {'summary': 'of the same name'})]")
    ),
    Distribution(
        "acme-mixed",
        {
            "acme_mixed_a": PRELUDE + dedent(offering("acme_mixed")),
            "acme_mixed_b": PRELUDE + dedent(returning("[Damped, type('Bad', (Damped,), {'name': 'No'})]")),
        },
        {"a_fine_one": "acme_mixed_a", "b_bad_one": "acme_mixed_b"},
    ),
]  # fmt: skip


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH in which one good plugin is installed among all kinds of bad ones."""
    return install(DISTRIBUTIONS, tmp_path_factory.mktemp("plugins"))


@pytest.fixture
def load(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Registry]:
    """A fresh registry that sees, of the third-party plugins, the named distributions alone."""

    def fresh(*distributions: str) -> Registry:
        monkeypatch.syspath_prepend(site)
        monkeypatch.setenv("GRADEST_LOAD_PLUGINS", ",".join(distributions))
        importlib.invalidate_caches()
        return Registry()

    return fresh


@pytest.fixture
def install_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Registry]:
    """Installs a distribution of one module, and returns a fresh registry that sees it."""

    def fresh(name: str, source: str) -> Registry:
        monkeypatch.syspath_prepend(install([Distribution.of_one_module(name, source)], tmp_path))
        monkeypatch.setenv("GRADEST_LOAD_PLUGINS", name)
        importlib.invalidate_caches()
        return Registry()

    return fresh
