from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import pytest
import torch

from gradest.errors import GradestError, InvalidInput
from gradest_experiments.engine.data import load, load_or_fetch, read_idx

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(values: torch.Tensor, kind: int = 0x08) -> bytes:
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, kind, values.ndim, *values.shape)
    return head + values.to(torch.uint8).numpy().tobytes()


def write_mnist(folder: Path, train: int = 12, test: int = 5, zipped: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = {}
    for name, count in zip(NAMES, (train, train, test, test), strict=True):
        shape, top = ((count, 4, 3), 256) if "images" in name else ((count,), 10)
        values[name] = torch.randint(0, top, shape, generator=generator)
        data = idx(values[name])
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return values


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "mnist_home" not in request.fixturenames:
        monkeypatch.delenv("GRADEST_DATA", raising=False)


def test_digits_are_split_without_overlap_and_always_alike():
    data = load("digits")
    assert [len(split) for split in (data.train, data.valid, data.test)] == [1197, 300, 300]
    assert data.pixels == 64
    everything = torch.cat([data.train.x, data.valid.x, data.test.x])
    assert everything.dtype == torch.float32
    assert everything.min() == 0
    assert everything.max() == 1
    assert len(torch.unique(everything, dim=0)) == 1797  # all images differ, so none is in two splits
    assert set(data.test.y.tolist()) == set(range(10))
    again = load("digits")
    assert torch.equal(again.test.x, data.test.x)
    assert torch.equal(again.train.y, data.train.y)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(GradestError, match=r"pip install 'gradest\[data\]'"):
        load("digits")


def test_an_unknown_name_is_refused():
    with pytest.raises(InvalidInput, match="there are: digits, mnist"):
        load("cifar")


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_read_from_files(tmp_path, zipped):
    written = write_mnist(tmp_path, zipped=zipped)
    data = load("mnist", tmp_path)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [10, 2, 5]
    images = written[NAMES[0]].flatten(1).float() / 255
    assert torch.equal(data.train.x, images[:10])
    assert torch.equal(data.valid.x, images[10:])
    assert torch.equal(data.valid.y, written[NAMES[1]][10:])
    assert torch.equal(data.test.y, written[NAMES[3]])


@pytest.mark.parametrize("below", ["", "mnist"])
def test_mnist_is_found_through_the_environment(tmp_path, monkeypatch, below):
    folder = tmp_path / below
    folder.mkdir(exist_ok=True)
    write_mnist(folder)
    monkeypatch.setenv("GRADEST_DATA", str(tmp_path))
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    assert len(load("mnist", empty).train) == 10


def test_a_given_folder_goes_before_the_environment(tmp_path, monkeypatch):
    given, home = tmp_path / "given", tmp_path / "home"
    for folder, count in ((given, 6), (home, 12)):
        folder.mkdir()
        write_mnist(folder, train=count)
    monkeypatch.setenv("GRADEST_DATA", str(home))
    assert len(load("mnist", given).train) == 5


def test_missing_files_name_the_folders_and_the_way_out(tmp_path):
    with pytest.raises(GradestError, match=r"no folder was given.*set GRADEST_DATA"):
        load("mnist")
    write_mnist(tmp_path)
    (tmp_path / f"{NAMES[3]}.gz").unlink()
    with pytest.raises(GradestError, match=str(tmp_path)):
        load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "not an IDX file.*nothing"),
        (lambda data: b"PK\3\4" + data[4:], "not an IDX file.*50 4b 03 04"),
        (lambda data: data[:2] + b"\x0d" + data[3:], "type 0x0d"),
        (lambda data: data[:9], "within its header"),
        (lambda data: data[:3] + b"\0", "no dimensions"),
        (lambda data: data[:-1], "should hold 24 bytes.*holds 23"),
        (lambda data: data + b"\0", "holds 25"),
        (lambda data: gzip.compress(data)[:-12], "cut-off gzip"),
        (lambda data: gzip.compress(data)[:10] + b"\xff" * 30, "cut-off gzip"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "holds 24"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, damage, message):
    path = tmp_path / "images"
    path.write_bytes(damage(idx(torch.arange(24).reshape(2, 4, 3))))
    with pytest.raises(InvalidInput, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_an_absent_file_and_an_empty_array(tmp_path):
    with pytest.raises(InvalidInput, match=r"cannot read .*nowhere"):
        read_idx(tmp_path / "nowhere")
    (tmp_path / "empty").write_bytes(idx(torch.zeros(0, 28, 28)))
    assert read_idx(tmp_path / "empty").shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (NAMES[1], torch.zeros(11), "12 images and .* 11 labels"),
        (NAMES[1], torch.zeros(12, 1), "3 dimensions and 1, not 3 and 2"),
        (NAMES[1], torch.full((12,), 10), "label 10"),
        (NAMES[0], torch.zeros(12, 4), "not 2 and 1"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, name, values, message):
    write_mnist(tmp_path)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
    with pytest.raises(InvalidInput, match=message):
        load("mnist", tmp_path)


def test_the_real_files(mnist_home):
    data = load("mnist", mnist_home)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [50_000, 10_000, 10_000]
    assert data.pixels == 784
    assert data.test.y[:5].tolist() == [7, 2, 1, 0, 4]
    assert float(data.train.x.mean()) == pytest.approx(0.1307, abs=2e-3)


def test_mnist_is_fetched_where_no_folder_is_given(tmp_path, monkeypatch):
    """Of the first 60,000 images the last sixth is for validation; the last 10,000 of all are the test images."""
    asked = []

    def fetch(name, **options):
        asked.append((name, options["version"]))
        x = numpy.arange(70_000, dtype=numpy.float64)[:, None] % 256
        return x, numpy.array([str(image % 10) for image in range(70_000)], dtype=object)

    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    data = load_or_fetch()
    assert asked == [("mnist_784", 1)]
    for split, first, count in ((data.train, 0, 50_000), (data.valid, 50_000, 10_000), (data.test, 60_000, 10_000)):
        image = torch.arange(first, first + count)
        torch.testing.assert_close(split.x, (image % 256)[:, None] / 255)
        assert torch.equal(split.y, image % 10)
    write_mnist(tmp_path)
    assert len(load_or_fetch(tmp_path).test) == 5
    monkeypatch.setenv("GRADEST_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(GradestError, match="searched"):
        load_or_fetch()
    assert len(asked) == 1


def test_without_a_network_mnist_says_what_to_do(monkeypatch):
    pytest.importorskip("sklearn")

    def fetch(*given, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    with pytest.raises(GradestError, match=r"no route to host.*GRADEST_DATA"):
        load_or_fetch()
