"""Hold what gradest computes and answers at one commit against another: for changes that must not change any of it.

    python tests/compare_commits.py OLD NEW        compares
    python tests/compare_commits.py dump FILE      writes what this interpreter's gradest gives, as JSON

OLD and NEW are each one of

    a .json file         that `dump` wrote before;
    a Python executable  whose environment has the gradest that is meant, such as ../old/.venv/bin/python;
    a git reference      of this repository: its tree is built and installed, without dependencies, into a temporary folder, which
                         goes before everything else on this interpreter's path. Needs hatchling, of the extra `dev`.

What is compared: the OpenAPI documents, `gradest list --json`, `gradest describe NAME --json` of every plugin, the certificates,
the answers of the service to requests of each kind, good and bad, the bits of samples of every neuron and of a gradient of each
estimator on every neuron that it accepts (with the kernels for the CPU and with the reference), and a comparison without its
times. Only public names are used, so that both commits have them.

A difference in words meant for people (descriptions, summaries, the detail of an error) is listed, and is no failure. The exit
code is 1 if anything else differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

PROSE = ("description", "summary", "reference", "detail", "message", "error")
"""The keys whose texts are for people."""

SHAPES = ((), (1,), (5,), (3, 0), (2, 3), (2, 1, 4))
"""Of the batch, before the event."""

EVENTS = {1: (5,), 2: (3, 4)}
"""By the number of event dims."""

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/sample", {"neuron": "bernoulli", "a": [[0.5, -1, 2]], "samples": 3, "seed": 7}),
    ("/v1/sample", {"neuron": {"name": "noisy_rectifier"}, "a": [], "shape": [0, 3], "dtype": "bfloat16", "seed": 1}),
    ("/v1/sample", {"neuron": "bernuli", "a": [0.0]}),
    ("/v1/sample", {"neuron": "bernoulli", "a": [[0.0], [1.0, 2.0]]}),
    ("/v1/sample", {"neuron": "bernoulli", "a": [0.0], "sample": 3}),
    ("/v1/sample", {"neuron": "bernoulli", "a": [0.0], "samples": 100_000}),
    ("/v1/sample", {"neuron": {"name": "gaussian", "wrong": 1}, "a": [0.0]}),
    ("/v1/mean", {"neuron": "bernoulli", "a": [[0.5, -1, 2]], "dtype": "float64"}),
    ("/v1/forward", {"neuron": "bernoulli", "estimator": "rloo", "a": [[0.5, -1, 2]], "seed": 7}),
    ("/v1/forward", {"neuron": "gaussian", "estimator": "arm", "a": [[0.5]], "seed": 7}),
    (
        "/v1/backward",
        {"neuron": "bernoulli", "estimator": "rloo", "a": [[0.5, -1, 2]], "seed": 7, "loss": [[0.2], [0.3]]},
    ),
    ("/v1/backward", {"neuron": "bernoulli", "estimator": "rloo", "a": [[0.5, -1, 2]], "seed": 7, "loss": [[0.2]]}),
    ("/v1/backward", {"neuron": "bernoulli", "estimator": "reinforce_average", "a": [[0.5]], "seed": 7, "loss": [[2]]}),
    (
        "/v1/estimate",
        {
            "neuron": "bernoulli",
            "estimator": "nvil",
            "objective": {"name": "quadratic", "target": 0.499},
            "a": [[0.5, -1]],
            "draws": 50,
            "seed": 3,
        },
    ),
    (
        "/v1/compare",
        {
            "neuron": "bernoulli",
            "objective": {"name": "quadratic", "target": 0.499},
            "estimators": ["rloo", "straight_through"],
            "a": [[0.5, -1]],
            "draws": 50,
            "seed": 3,
        },
    ),
    ("/v1/compare", {"neuron": "bernoulli", "objective": "quadratic", "estimators": "rloo", "a": [0.5]}),
]

QUERIES = (
    "/v1/neurons",
    "/v1/estimators",
    "/v1/objectives",
    "/v1/plugins",
    "/v1/neurons/bernoulli",
    "/v1/estimators/rlo",
    "/v1/recommend?neuron=bernoulli&bring=loss,grad&evaluations=4",
    "/v1/recommend?objective=quadratic",
    "/livez",
    "/readyz",
    "/nowhere",
)


# --- what one commit gives ---


def dump() -> dict[str, Any]:
    """All that is compared, of the gradest of this interpreter."""
    import torch

    torch.set_num_threads(1)
    found = {"command line": command_line(), "service": service(), "certificates": certificates(), **numbers()}
    os.environ["GRADEST_KERNELS"] = "reference"
    found["with the reference kernels"] = numbers()
    return json.loads(json.dumps(found))


def command_line() -> dict[str, Any]:
    """`gradest list` and `gradest describe`, each in JSON."""
    listing = command("list", "--json")
    return {
        "list": listing,
        "describe": {
            f"{kind} {plugin['name']}": command("describe", plugin["name"], "--kind", kind, "--json")
            for kind in ("neuron", "estimator", "objective")
            for plugin in listing[f"{kind}s"]
        },
    }


def command(*arguments: str) -> Any:
    """The JSON that `python -m gradest` prints, run in this process."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = ["gradest", *arguments]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            runpy.run_module("gradest", run_name="__main__")
    finally:
        sys.argv = before
    return json.loads(printed.getvalue())


def certificates() -> dict[str, Any]:
    """The certificates of each package of built-in plugins that has some."""
    from importlib.resources import files

    import gradest

    packages = sorted({cls.__module__.partition(".")[0] for cls in gradest.registry.estimators.values()})
    return {package: json.loads(files(package).joinpath("certificates.json").read_text()) for package in packages}


def service() -> dict[str, Any]:
    """The OpenAPI documents, and answers."""
    import logging

    import httpx

    from gradest_service.app import create_app, running
    from gradest_service.settings import Settings

    logging.getLogger("gradest_service").setLevel(logging.CRITICAL)
    documents = {
        "default": create_app(Settings()).openapi(),
        "without metrics": create_app(Settings(metrics=False)).openapi(),
        "settings": Settings.model_json_schema(),
    }
    with running(Settings(port=0)) as url, httpx.Client(base_url=url, timeout=60) as client:
        asked = {
            f"{number} POST {path}": client.post(path, json=body, headers={"Accept": "application/json"})
            for number, (path, body) in enumerate(REQUESTS)
        }
        asked |= {f"GET {path}": client.get(path) for path in QUERIES}
    answers = {
        name: {
            "status": answer.status_code,
            "headers": sorted(answer.headers.keys()),
            "media type": answer.headers["content-type"],
            "body": without(answer.json(), "seconds", "request_id"),
        }
        for name, answer in asked.items()
    }
    return {"openapi": documents, "answers": answers}


def without(value: Any, *names: str) -> Any:
    """The value without the fields of these names."""
    if isinstance(value, dict):
        return {key: without(part, *names) for key, part in value.items() if key not in names}
    return [without(part, *names) for part in value] if isinstance(value, list) else value


def numbers() -> dict[str, Any]:
    """Bits of samples and gradients, and a comparison."""
    import torch

    import gradest

    objective = gradest.objective("quadratic", target=0.499)
    a = torch.linspace(-2, 2, 6).reshape(2, 3)
    table = gradest.compare(objective, a, draws=100, seed=11)
    return {"samples": samples(), "gradients": gradients(), "compare": without(table.to_dict(), "seconds")}


def samples() -> dict[str, Any]:
    """Of each neuron in each of its examples, at each shape and dtype."""
    import torch

    import gradest

    found = {}
    for cls in gradest.registry.neurons.values():
        for options in cls.examples:
            neuron = cls.build(**options)
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                for shape in SHAPES:
                    a = pre_activations((*shape, *EVENTS[neuron.event_ndim])).to(dtype)
                    key = gradest.Key(5, stream=1) if shape == (5,) else 2**40 + 17
                    name = f"{neuron.label()} {dtype} {list(a.shape)}"
                    found[name] = bits(gradest.sample(neuron, a, samples=3, seed=key))
    return found


def gradients() -> dict[str, Any]:
    """Of each estimator in each of its examples on each neuron: the value, the gradient and the next state."""
    import torch

    import gradest

    found = {}
    for cls in gradest.registry.estimators.values():
        for options in cls.examples:
            estimator = cls.build(**options)
            for kind in gradest.registry.neurons.values():
                neuron = kind()
                if estimator.accepts(neuron):
                    for dtype in (torch.float32, torch.float64):
                        name = f"{estimator.label()} {neuron.label()} {dtype}"
                        found[name] = gradient(neuron, estimator, dtype)
    return found


def gradient(neuron: Any, estimator: Any, dtype: Any) -> dict[str, Any]:
    """What one draw gives, and what the estimate of 300 does."""
    import torch

    import gradest

    a = pre_activations((2, *EVENTS[neuron.event_ndim])).to(dtype).requires_grad_()
    weights = torch.linspace(-1, 1, a[0].numel(), dtype=dtype).reshape(a[0].shape)

    def loss(points: Any) -> Any:
        return ((weights * points).flatten(points.ndim - neuron.event_ndim).sum(-1) - 0.3).tanh() ** 2

    value, state = gradest.expect(loss, a, neuron, estimator, seed=9)
    value.sum().backward()
    mean = gradest.estimate(loss, a.detach(), neuron, estimator, draws=30, seed=9, warm_up=2)
    return {
        "value": bits(value),
        "gradient": bits(a.grad),
        "state": {name: bits(part) for name, part in state.items()},
        "mean": bits(mean.gradient),
        "variance": bits(mean.variance),
        "evaluations": mean.evaluations,
    }


def pre_activations(shape: tuple[int, ...]) -> Any:
    """Numbers of moderate size, without randomness."""
    import math

    import torch

    return (torch.arange(1, 1 + math.prod(shape)) * 0.7).sin().reshape(shape) * 2


def bits(x: Any) -> str:
    """The dtype, the shape, a digest of the bytes, and the first numbers, for people."""
    import torch

    x = x.detach().contiguous()
    digest = hashlib.sha256(x.flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b"").hexdigest()[:16]
    return f"{x.dtype} {list(x.shape)} {digest} {[float(f'{float(value):.9g}') for value in x.flatten()[:3]]}"


# --- the comparison ---


def differences(old: Any, new: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Where two values of JSON differ, with what is there."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key, "(missing)"), new.get(key, "(missing)"), (*place, key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, (*place, str(number)))
    elif old != new:
        yield place, old, new


def is_prose(place: tuple[str, ...], old: Any, new: Any) -> bool:
    """Whether only words for people differ there."""
    return place[-1] in PROSE and isinstance(old, str) and isinstance(new, str) and "(missing)" not in (old, new)


def report(old: Any, new: Any) -> int:
    """Print what differs; 1 if anything but prose does."""
    found = list(differences(old, new))
    prose = [difference for difference in found if is_prose(*difference)]
    faults = [difference for difference in found if not is_prose(*difference)]
    for title, listed in (("words for people", prose), ("DIFFERENCES", faults)):
        print(f"{title}: {len(listed)}")
        for place, before, after in listed:
            print(f"  {' > '.join(place)}\n    - {shown(before)}\n    + {shown(after)}")
    print(f"sections: {', '.join(f'{name} ({count(part)} values)' for name, part in new.items())}")
    return 1 if faults else 0


def shown(value: Any) -> str:
    """On one line, and not longer than it helps."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}..."


def count(value: Any) -> int:
    """The values in it."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if parts is None else sum(map(count, parts))


def dumped(argument: str) -> Any:
    """What this argument of the command line gives."""
    if argument.endswith(".json"):
        return json.loads(Path(argument).read_text())
    with tempfile.TemporaryDirectory() as folder:
        # absolute, as it is started from another folder; not resolved, as the link of an environment leads out of it
        python, environment = str(Path(argument).absolute()), dict(os.environ)
        if not os.access(argument, os.X_OK):
            python, site = sys.executable, Path(folder, "site")
            environment["PYTHONPATH"] = str(site)
            install(argument, Path(folder, "tree"), site)
        file = Path(folder, "dump.json")
        # from a folder that holds no gradest, and with this file's folder, whose names are those of libraries, off the path
        subprocess.run([python, "-P", __file__, "dump", file], check=True, cwd=folder, env=environment)
        return json.loads(file.read_text())


def install(reference: str, tree: Path, site: Path) -> None:
    """Put the package of a commit into a folder."""
    tree.mkdir()
    archive = subprocess.run(["git", "archive", reference], cwd=REPOSITORY, check=True, capture_output=True).stdout
    subprocess.run(["tar", "x"], cwd=tree, input=archive, check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*pip, tree], check=True)


def main(arguments: list[str]) -> int:
    """The command line."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    if arguments[0] == "dump":
        Path(arguments[1]).write_text(json.dumps(dump(), ensure_ascii=False, indent=1))
        return 0
    old, new = map(dumped, arguments)
    return report(old, new)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
