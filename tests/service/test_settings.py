"""Where settings come from, which source wins, and what an operator is told."""

import os
import subprocess
import sys

import pytest

from gradest.errors import InvalidInput, InvalidOptions
from gradest_service.host.configuration import PREFIX, list_settings, load_settings
from gradest_service.settings import Settings


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "service.toml"
    path.write_text('port = 1\nthreads = 11\nlog_format = "json"\ndocs = false\n')
    return path


def test_flags_go_before_environment_before_file_before_defaults(monkeypatch, file):
    monkeypatch.setenv("GRADEST_SERVICE_PORT", "2")
    monkeypatch.setenv("gradest_service_threads", "12")
    found = load_settings({"port": "3"}, file)
    settings = found.settings
    assert (settings.port, settings.threads, settings.log_format, settings.docs) == (3, 12, "json", False)
    assert settings.max_draws == Settings().max_draws
    assert found.origins == {
        "port": "--port",
        "threads": "GRADEST_SERVICE_THREADS",
        "log_format": f"log_format in {file}",
        "docs": f"docs in {file}",
    }


def test_every_setting_can_come_from_the_environment(monkeypatch, tmp_path):
    (tmp_path / "x").write_text("")
    odd = {
        "host": "127.0.0.9",
        "log_format": "json",
        "log_level": "error",
        "ssl_keyfile_password": "hunter2",
        "device": "auto",
    }
    odd |= dict.fromkeys(("api_keys", "ssl_certfile", "ssl_keyfile"), str(tmp_path / "x"))
    odd |= dict.fromkeys(("page", "docs", "metrics", "batching"), "false")
    odd |= dict.fromkeys(("allow_anonymous", "tracing"), "true")
    for name, field in Settings.model_fields.items():
        number = str((field.default or 6) + 1) if name not in odd else ""
        monkeypatch.setenv(f"GRADEST_SERVICE_{name.upper()}", odd.get(name, number))
    found = load_settings({})
    assert found.origins.keys() == Settings.model_fields.keys()
    for name, field in Settings.model_fields.items():
        assert getattr(found.settings, name) != field.default


def test_the_environment_names_the_file_and_a_flag_another(monkeypatch, file, tmp_path):
    monkeypatch.setenv("GRADEST_SERVICE_CONFIG", str(file))
    assert load_settings({}).settings.threads == 11
    other = tmp_path / "other.toml"
    other.write_text("threads = 13")
    found = load_settings({}, other).settings
    assert (found.threads, found.port) == (13, 8000)


@pytest.mark.parametrize(
    ("flags", "environment", "text", "named"),
    [
        ({"port": "x"}, {}, "", "--port: "),
        ({}, {"PORT": "-1"}, "", "GRADEST_SERVICE_PORT: "),
        ({}, {}, "port = 1.5", "port in .*toml: "),
        ({"port": "x"}, {"THREADS": "0"}, "docs = 7", "--port: .*GRADEST_SERVICE_THREADS: .*docs in "),
        ({}, {}, "prot = 1", "prot in .*toml: "),
        ({}, {"PROT": "1"}, "", "no such setting: GRADEST_SERVICE_PROT"),
        ({}, {"HOST": "0.0.0.0"}, "", "^GRADEST_SERVICE_HOST: .*allow_anonymous"),
        ({"trusted_proxies": "10.0.0.2, 10.0.0.1/8"}, {}, "", "^--trusted-proxies: 10.0.0.1/8 is not a network"),
        ({"api_keys": "/nowhere/keys"}, {}, "", "--api-keys: Path does not point to a file"),
    ],
)
def test_a_fault_is_named_by_its_source(monkeypatch, file, flags, environment, text, named):
    file.write_text(text)
    for name, value in environment.items():
        monkeypatch.setenv(f"GRADEST_SERVICE_{name}", value)
    with pytest.raises(InvalidOptions, match=named):
        load_settings(flags, file)


@pytest.mark.parametrize("text", ["port = = 1", None, b"\xff"])
def test_a_file_that_is_none(file, text):
    file.unlink()
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidInput, match=r"service.toml is not a file of settings"):
        load_settings({}, file)


def test_a_secret_is_shown_nowhere(monkeypatch, tmp_path):
    (tmp_path / "x").write_text("")
    monkeypatch.setenv("GRADEST_SERVICE_SSL_KEYFILE_PASSWORD", "hunter2")
    found = load_settings({"ssl_certfile": str(tmp_path / "x")})
    assert found.settings.ssl_keyfile_password.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{list_settings(found)} {found} {found.settings.model_dump_json()}"
    with pytest.raises(InvalidOptions) as caught:
        load_settings({})
    assert "hunter2" not in str(caught.value)


def test_without_pydantic_settings_flags_still_do(monkeypatch, file):
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    assert load_settings({"port": "3"}).settings.port == 3
    with pytest.raises(InvalidInput, match=r"pip install 'gradest\[serve\]'"):
        load_settings({}, file)
    monkeypatch.setenv("GRADEST_SERVICE_API_KEYS", "x")  # not to be overlooked: it would mean a service without keys
    with pytest.raises(InvalidInput, match=r"gradest\[serve\]"):
        load_settings({"port": "3"})


def test_settings_by_themselves_do_not_look_around(monkeypatch):
    monkeypatch.setenv("GRADEST_SERVICE_PORT", "2")
    assert Settings().port == 8000


def test_the_time_to_stop_exceeds_the_deadline():
    assert Settings(deadline_seconds=90.5).grace() > 90.5
    assert Settings(shutdown_seconds=3).grace() == 3


def gradest(*arguments, **environment):
    command = [sys.executable, "-m", "gradest", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_show_settings(file):
    found = gradest("--show-settings", "--no-metrics", "--config", str(file), GRADEST_SERVICE_MAX_DRAWS="7")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in found.stdout.splitlines() if "│" in line]
    shown = {name: (value, origin) for name, value, origin in rows}
    assert shown.keys() == Settings.model_fields.keys()
    assert shown["metrics"] == ("false", "--metrics")
    assert shown["max_draws"] == ("7", "GRADEST_SERVICE_MAX_DRAWS")
    assert shown["threads"] == ("11", f"threads in {file}")
    assert shown["host"] == ("127.0.0.1", "default")


def test_errors_are_a_line():
    found = gradest("--host", "0.0.0.0", "--port", "0")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("gradest: --host: ")
    assert found.stderr.count("\n") == 1


def test_new_api_key(tmp_path):
    made = gradest("--new-api-key", "alice")
    key = made.stderr.split()[-1]
    (tmp_path / "keys").write_text(made.stdout)
    from gradest_service.admit.auth import ApiKeys

    assert ApiKeys(tmp_path / "keys").identify([f"Bearer {key}"]).name == "alice"
