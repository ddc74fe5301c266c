"""Limits that processes share through files: what stands in the way is said at the start, with a remedy."""

import errno
import fcntl
import gc
import os
import tempfile

import pytest

from gradest.errors import InvalidInput
from gradest_service.admit import auth
from gradest_service.admit.auth import ApiKeys, new_key
from gradest_service.host.workers import shared_folder
from gradest_service.problems import Problem
from gradest_service.resources.budgets import TokenBucket, check_folder, folder_of_machine


def failing(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


FAULTS = [
    (fcntl, "flock", errno.ENOLCK),
    (fcntl, "flock", errno.EOPNOTSUPP),
    (os, "pwrite", errno.ENOSPC),
    (os, "open", errno.EROFS),
    (os, "open", errno.EMFILE),
]


@pytest.mark.parametrize(("module", "call", "code"), FAULTS)
def test_the_reason_and_the_remedy_are_said(monkeypatch, capfd, tmp_path, module, call, code):
    with monkeypatch.context() as patched:
        patched.setattr(module, call, failing(code))
        with pytest.raises(InvalidInput, match="TMPDIR") as found:
            check_folder(tmp_path)
    assert os.strerror(code) in str(found.value)
    del found
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(InvalidInput, match="TMPDIR"):
            TokenBucket(1, 1, shared=(folder, "name"))


def test_a_disk_that_fills_up_later_does_no_harm(monkeypatch, tmp_path):
    bucket = TokenBucket(1, 10, shared=(tmp_path, "name"))
    (file,) = tmp_path.iterdir()
    size = file.stat().st_size
    bucket.take(5)
    assert file.stat().st_size == size > 0


def test_the_files_are_closed(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    buckets = [TokenBucket(1, 1, shared=(tmp_path, str(name))) for name in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before + 20
    del buckets
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_workers_say_what_is_wrong_with_their_folder(monkeypatch, tmp_path):
    with shared_folder(2) as folder:
        assert list(folder.iterdir()) != [folder / "space"]
    assert not folder.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(InvalidInput, match=r"TMPDIR.* 2 MB"), shared_folder(2):
        pass


def test_a_full_disk_is_found_before_counts_are_mapped(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("pathlib.Path.write_bytes", failing(errno.ENOSPC))
    with pytest.raises(InvalidInput, match=r"No space left.*workers=1"), shared_folder(2):
        pass
    assert not list(tmp_path.iterdir())


def test_keys_stay_in_force_while_new_ones_cannot_be_shared(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(auth, "_RETRY_SECONDS", 0)
    shared, file = tmp_path / "shared", tmp_path / "keys"
    shared.mkdir()
    (old, first), (new, second) = new_key("old"), new_key("new")
    file.write_text(first)
    keys = ApiKeys(file, shared)
    shared.rename(tmp_path / "away")
    (tmp_path / "more").write_text(f"{first}\n{second} requests_per_second=5")
    (tmp_path / "more").rename(file)
    assert keys.identify([f"Bearer {old}"]).name == "old"
    assert "stay as they were" in caplog.text
    assert "TMPDIR" in caplog.text
    shared.mkdir()
    assert keys.identify([f"Bearer {new}"]).name == "new"  # without a further change of the file


def test_a_limit_that_no_request_could_keep_is_refused(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{new_key('a')[1]} elements_per_minute=0.5")
    with pytest.raises(InvalidInput, match="at least 1"):
        ApiKeys(file)


def test_processes_of_a_machine_share_by_name(monkeypatch, tmp_path):
    """As the replicas of a service on Ray do, each of which builds an application of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    key, line = new_key("a")
    file = tmp_path / "keys"
    file.write_text(f"{line} requests_per_second=1")
    first, second = (ApiKeys(file, folder_of_machine("one")).identify([f"Bearer {key}"]) for _ in range(2))
    other = ApiKeys(file, folder_of_machine("other")).identify([f"Bearer {key}"])
    first.admit()
    with pytest.raises(Problem, match="requests a second"):
        second.admit()
    other.admit()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(InvalidInput, match="TMPDIR"):
        folder_of_machine("one")
