"""The image of service/Dockerfile: built and run where a Docker daemon is; elsewhere its steps are run in folders.

The folders are what the image would have at /src and /opt/gradest, and the second cannot be written to any more once it is built.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from gradest_service.admit.auth import new_key
from tests.dockerfile import is_sent, read_steps

pytestmark = [pytest.mark.deep, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "service/Dockerfile"
STEPS = read_steps(DOCKERFILE)
SAMPLE = {"neuron": "bernoulli", "a": [[0.5, -1.0]], "seed": 7, "samples": 3}

# counts kernels that are loaded and compiled, of those that some samples take
COUNT = """
import json, gradest, torch
from gradest.kernels.cpu.compilation import background
for name in ("bernoulli", "noisy_rectifier", "gaussian"):
    gradest.sample(name, torch.zeros(3, 5), samples=2, seed=1)
kernels = [kernel for found in background._kernels_by_name().values() for kernel in found]
total = lambda name: sum(sum(getattr(kernel.stats, name).values()) for kernel in kernels)
print(json.dumps([total("cache_hits"), total("cache_misses")]))
"""


class Folders:
    """What the steps make, in folders in place of those of the image."""

    def __init__(self, home):
        self.places = {"/opt/gradest": str(home / "opt"), "/src": str(home / "src")}
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "GRADEST_", "PYTHON"))
        }
        self._rules = DOCKERFILE.with_suffix(".dockerignore")

    def here(self, text):
        for place, folder in self.places.items():
            text = re.sub(rf"{place}(?=[/\s\"':]|$)", folder, text)
        return text

    def take(self, step):
        """Do what the builder does."""
        if step.instruction in ("ENV", "ARG"):
            words = [word.split("=", 1) for word in step.words()]
            known = self.environment
            self.environment |= {
                name: re.sub(r"\$(\w+)", lambda v: known[v[1]], self.here(value)) for name, value in words
            }
        elif step.instruction == "WORKDIR":
            Path(self.here(step.value)).mkdir(parents=True, exist_ok=True)
        elif step.instruction == "COPY" and "--from" not in step.value:
            *sources, target = step.words()
            for source in sources:
                self._copy(source, Path(self.places["/src"]) / target)
        elif step.instruction == "RUN":
            command = self.here(step.command()).replace("python -m venv", f"{shlex.quote(sys.executable)} -m venv")
            done = subprocess.run(
                command, shell=True, cwd=self.places["/src"], env=self.environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    def _copy(self, source, target):
        files = [path for path in [ROOT / source, *(ROOT / source).rglob("*")] if path.is_file()]
        for file in files:
            name = file.relative_to(ROOT).as_posix()
            if not is_sent(name, self._rules):
                continue
            to = target / file.relative_to(ROOT / source) if (ROOT / source).is_dir() else target
            if to.is_dir():  # a file that is copied into a folder
                to /= file.name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, to)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folders = Folders(tmp_path_factory.mktemp("image"))
    for step in STEPS:
        if step.stage == "build":
            folders.take(step)
    shutil.rmtree(folders.places["/src"])
    for step in STEPS:
        if step.stage == "" and step.instruction in ("ARG", "ENV"):
            folders.take(step)
    folders.environment["HOME"] = str(tmp_path_factory.mktemp("tmp"))
    return folders


def read_only(folder, *command):
    """The command, for which the folder is on a read-only file system; needs root, or else takes the right to write."""
    if os.geteuid():
        subprocess.run(["chmod", "-R", "a-w", folder], check=True)
        return list(command)
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, folder, *command]


def test_kernels_are_loaded_from_a_folder_that_cannot_be_written_to(image):
    opt = image.places["/opt/gradest"]
    before = sorted(Path(opt).rglob("*.nbi"))
    command = read_only(opt, f"{opt}/bin/python", "-W", "error", "-c", COUNT)
    done = subprocess.run(command, env=image.environment, cwd="/", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    hits, misses = json.loads(done.stdout)
    assert hits >= 3
    assert misses == 0
    assert sorted(Path(opt).rglob("*.nbi")) == before
    assert list(Path(image.environment["HOME"]).rglob("*.nb?")) == []


def start(image, *arguments, **variables):
    (entry,) = [step.words() for step in STEPS if step.instruction == "ENTRYPOINT"]
    opt = image.places["/opt/gradest"]
    environment = {**image.environment, "GRADEST_SERVICE_PORT": "0", **variables}
    pipe = subprocess.PIPE
    command = read_only(opt, f"{opt}/bin/{entry[0]}", *entry[1:], *arguments)
    return subprocess.Popen(command, env=environment, cwd="/", stdout=pipe, stderr=pipe, text=True)


def test_it_serves_answers_its_health_check_and_ends(image, tmp_path):
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)
    with start(image, GRADEST_SERVICE_API_KEYS=str(tmp_path / "keys")) as process, ended(process):
        port = int(process.stdout.readline().rpartition(":")[2])
        (check,) = [step.command() for step in STEPS if step.instruction == "HEALTHCHECK"]
        command = [
            image.environment["PATH"].split(":")[0] + "/python",
            *json.loads(check.replace(":8000", f":{port}"))[1:],
        ]
        assert subprocess.run(command, env=image.environment).returncode == 0
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/sample", json=SAMPLE, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        assert answer.status_code == 200
        assert httpx.post(f"http://127.0.0.1:{port}/v1/sample", json=SAMPLE, timeout=60).status_code == 401
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert {line["message"] for line in lines} == {"answered"}
    assert subprocess.run(command, env=image.environment, capture_output=True).returncode != 0


def test_without_keys_it_does_not_start(image):
    with start(image) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "api_keys" in errors


@contextmanager
def ended(process):
    """Ends a process in any case, so that a test that fails does not wait for it."""
    try:
        yield
    finally:
        process.kill()


def has_daemon():
    return (
        shutil.which("docker") is not None and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not has_daemon(), reason="needs a Docker daemon")
def test_docker_builds_and_runs_it(tmp_path):
    key, line = new_key("alice")
    (tmp_path / "keys").write_text(line)
    (tmp_path / "keys").chmod(0o644)
    subprocess.run(["docker", "build", "-q", "-f", DOCKERFILE, "-t", "gradest-test", ROOT], check=True)
    options = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "-p", "127.0.0.1::8000"]
    keys = ["-v", f"{tmp_path}/keys:/run/secrets/keys:ro", "-e", "GRADEST_SERVICE_API_KEYS=/run/secrets/keys"]
    run = subprocess.run(
        ["docker", "run", "-d", *options, *keys, "gradest-test"], check=True, capture_output=True, text=True
    )
    name = run.stdout.strip()

    def ask(*words):
        return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout.strip()

    try:
        until = time.monotonic() + 120
        while ask("inspect", "-f", "{{.State.Health.Status}}", name) != "healthy":
            assert time.monotonic() < until
            time.sleep(1)
        address = f"http://{ask('port', name, '8000')}"
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx.post(f"{address}/v1/sample", json=SAMPLE, headers=headers, timeout=60).status_code == 200
        hits, misses = json.loads(ask("exec", name, "python", "-c", COUNT))
        assert hits >= 3
        assert misses == 0
        ask("stop", name)
        assert ask("inspect", "-f", "{{.State.ExitCode}}", name) == "0"
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True)
