"""The files by which the service is deployed: they fit the service, each other and the guide that shows them.

`test_image` runs the steps of the Dockerfile, and `test_proxies` the proxies.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gradest_service.admit.metrics import Metrics
from gradest_service.routes import router
from gradest_service.settings import Settings
from tests.dockerfile import is_sent, read_steps

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "service/deploy"
GUIDE = (ROOT / "docs/guides/deploy.md").read_text()
STEPS = read_steps(ROOT / "service/Dockerfile")
FINAL = [step for step in STEPS if step.stage == ""]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OBJECTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
UNIT = (DEPLOY / "gradest.service").read_text()
PREFIX = "GRADEST_SERVICE_"
STOP_SECONDS = Settings().drain_seconds + Settings().grace()
EMPTY_BYTES = 600 << 20  # of a process before its first request
FILES = [ROOT / "service/Dockerfile", ROOT / "docs/guides/deploy.md", *sorted(DEPLOY.iterdir())]


def only(instruction, steps=FINAL):
    (found,) = [step for step in steps if step.instruction == instruction]
    return found


def environment(stage):
    words = [word for step in STEPS if (step.stage, step.instruction) == (stage, "ENV") for word in step.words()]
    return dict(word.split("=", 1) for word in words)


def test_every_copied_file_exists_and_is_sent_to_the_builder():
    copied = [step.words() for step in STEPS if step.instruction == "COPY" and "--from" not in step.value]
    sources = [source for *found, _ in copied for source in found]
    assert {"constraints.txt", "pyproject.toml", "gradest", "plugins", "service/gradest_service"} <= set(sources)
    rules = ROOT / "service/Dockerfile.dockerignore"
    for source in sources:
        assert (ROOT / source).exists()
        assert is_sent(source, rules)
    assert is_sent("gradest/kernels/cpu/noise.py", rules)
    for path in (".git/config", "tests/dockerfile.py", "gradest/__pycache__/x.pyc", "service/deploy/keys", ".venv/x"):
        assert not is_sent(path, rules)


def test_the_image_runs_as_a_user_without_rights():
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", only("USER").value)
    names = [step.instruction for step in FINAL]
    assert names.index("USER") > names.index("COPY")
    assert "RUN" not in names
    assert only("ENTRYPOINT").words() == ["gradest", "serve"]


def test_the_image_asks_for_its_own_health():
    port = environment("")[f"{PREFIX}PORT"]
    assert only("EXPOSE").value == port
    (path,) = re.findall(rf"http://127\.0\.0\.1:{port}(/\w+)", only("HEALTHCHECK").value)
    assert path in {route.path for route in router.routes}


def test_kernels_are_looked_for_where_they_are_kept():
    kept = {name: value for name, value in environment("build").items() if name.startswith("NUMBA_")}
    assert kept == {name: value for name, value in environment("").items() if name.startswith("NUMBA_")}
    assert kept["NUMBA_CACHE_DIR"].startswith("/opt/gradest/")
    assert "--from=build /opt/gradest /opt/gradest" in {step.value for step in FINAL}
    assert [step.value for step in STEPS if step.stage == "build"][-1] == "/opt/gradest/bin/gradest warm"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_settings_and_metrics_exist_and_no_index_is_named(file):
    text = file.read_text()
    named = {name.lower() for name in re.findall(rf"{PREFIX}([A-Z_]+)", text)}
    assert named <= Settings.model_fields.keys()
    metrics = Metrics().render().decode()
    assert all(f"{name} " in metrics for name in re.findall(r"`(gradest_\w+(?:bytes|seconds|total))`", text))
    assert "index-url" not in text
    assert "FROM" not in text or re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert not [
        image for image in re.findall(r"(?:FROM|image:) (\S+)", text) if "." in image.partition("/")[0] and "/" in image
    ]


def container_of(kind="Deployment"):
    (found,) = [item for item in OBJECTS if item["kind"] == kind]
    pod = found["spec"]["template"]["spec"]
    return pod, pod["containers"][0]


def seconds(text):
    return float(re.fullmatch(r"(\d+)s?", str(text))[1])


def test_what_stops_the_service_waits_for_its_requests():
    pod, container = container_of()
    wait = seconds(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > wait + STOP_SECONDS
    assert seconds(COMPOSE["services"]["gradest"]["stop_grace_period"]) > STOP_SECONDS
    assert seconds(re.search(r"^TimeoutStopSec=(.*)$", UNIT, re.MULTILINE)[1]) > STOP_SECONDS


def test_all_have_the_same_limits():
    gradest, (_, container) = COMPOSE["services"]["gradest"], container_of()
    limits = container["resources"]["limits"]
    settings = Settings()
    taken = EMPTY_BYTES + settings.max_memory_bytes + settings.max_pending_bytes
    assert 1.25 * taken < 3 << 30 < 2 * taken
    assert limits["memory"] == "3Gi"
    assert gradest["mem_limit"] == gradest["memswap_limit"] == "3g"
    assert "\nMemoryMax=3G\n" in UNIT
    assert str(gradest["cpus"]) == limits["cpu"] == gradest["environment"]["OMP_NUM_THREADS"] == "2"
    assert "\nCPUQuota=200%\n" in UNIT
    assert "OMP_NUM_THREADS=2" in UNIT


def test_compose():
    gradest, prometheus = COMPOSE["services"]["gradest"], COMPOSE["services"]["prometheus"]
    for service in (gradest, prometheus):
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert set(service["secrets"]) <= COMPOSE["secrets"].keys()
    assert gradest["environment"][f"{PREFIX}API_KEYS"] == f"/run/secrets/{gradest['secrets'][0]}"
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {f"service/deploy/{secret['file'].removeprefix('./')}" for secret in COMPOSE["secrets"].values()} <= set(
        ignored
    )
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"gradest:{environment('')[f'{PREFIX}PORT']}"]}]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{prometheus['secrets'][0]}"


def test_kubernetes():
    pod, container = container_of()
    kinds = {item["kind"]: item for item in OBJECTS}
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    (port,) = container["ports"]
    assert str(port["containerPort"]) == environment("")[f"{PREFIX}PORT"]
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert probes == {
        "startup": {"path": "/livez", "port": "http"},
        "liveness": {"path": "/livez", "port": "http"},
        "readiness": {"path": "/readyz", "port": "http"},
    }
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == only("USER").value
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    (keys,) = [variable["value"] for variable in container["env"] if variable["name"] == f"{PREFIX}API_KEYS"]
    assert str(Path(keys).parent) == mounts["keys"]
    assert f"--from-file={Path(keys).name}" in GUIDE


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path):
    file = tmp_path / "gradest.service"
    user = "daemon"  # no user of the guide's exists here
    file.write_text(
        re.sub("(User|Group)=gradest", rf"\1={user}", UNIT).replace("/opt/gradest/bin/gradest", sys.executable)
    )
    found = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True)
    about = [line for line in found.stderr.splitlines() if "gradest" in line]
    assert about == []
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", file]  # 1.5 of 10
    assert subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(("language", "file"), [("nginx", "nginx.conf"), ("caddy", "Caddyfile")])
def test_the_guide_shows_the_very_file(language, file):
    (shown,) = re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    assert shown == (DEPLOY / file).read_text()


def test_the_guide_names_files_that_exist():
    named = set(re.findall(r"service/(?:deploy/[\w.-]+|Dockerfile)", GUIDE))
    assert len(named) >= 4
    assert all((ROOT / path).exists() for path in named)
