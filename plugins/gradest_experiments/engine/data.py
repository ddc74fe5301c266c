"""Images: the digits of scikit-learn, which need no download, and MNIST from its IDX files."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from torch import Tensor

from gradest.errors import GradestError, InvalidInput

__all__ = ["Dataset", "DatasetName", "Split", "load", "load_or_fetch", "read_idx"]

DatasetName = Literal["digits", "mnist"]

_CLASSES = 10
_TEST = 10_000  # the last of MNIST's images
_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their classes. x: pixels in [0, 1], `[N, pixels]` float32; y: classes, `[N]` int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """Return the same images on a device."""
        return Split(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits: one to learn from, one to choose a model by, and one to report on."""

    train: Split
    valid: Split
    test: Split
    classes: int = _CLASSES

    @property
    def pixels(self) -> int:
        """The number of pixels of an image."""
        return self.train.x.shape[1]

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same splits on a device."""
        return Dataset(self.train.to(device), self.valid.to(device), self.test.to(device), self.classes)


def load(name: DatasetName, data_dir: str | Path | None = None) -> Dataset:
    """Return the dataset of this name.

    digits: 1797 images of 8x8 pixels from scikit-learn; a fixed permutation splits them into 1197, 300 and 300.
    mnist: 60,000 and 10,000 images of 28x28 pixels from the four IDX files, plain or gzipped, in the first of `data_dir`,
        $GRADEST_DATA and $GRADEST_DATA/mnist that holds them all. The last 10,000 training images are the validation split.

    Raises InvalidInput for another name or a damaged file, and GradestError if scikit-learn or the files are missing.
    """
    if name == "digits":
        return _load_digits()
    if name == "mnist":
        return _load_mnist(_find_mnist(data_dir))
    raise InvalidInput(f"no dataset is named {name!r}; there are: digits, mnist")


def load_or_fetch(data_dir: str | Path | None = None) -> Dataset:
    """Return MNIST from `data_dir` or $GRADEST_DATA as `load` does; if neither is set, let scikit-learn fetch it from OpenML.

    scikit-learn caches what it fetched. Raises what `load` raises, and GradestError if there is no network.
    """
    if data_dir is not None or os.environ.get("GRADEST_DATA"):
        return load("mnist", data_dir)
    try:
        from sklearn.datasets import fetch_openml  # noqa: PLC0415  # an extra

        x, y = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    except (ImportError, OSError) as error:
        raise GradestError(
            f"no folder with MNIST's files was given, and scikit-learn could not fetch them ({error}): give the folder of the "
            "four IDX files as data_dir or in GRADEST_DATA, or pip install 'gradest[data]' on a machine with a network"
        ) from error
    images = Split(torch.from_numpy(x).float() / 255, torch.from_numpy(y.astype("int64")))
    return _split(Split(images.x[:-_TEST], images.y[:-_TEST]), Split(images.x[-_TEST:], images.y[-_TEST:]))


def read_idx(path: str | Path) -> Tensor:
    """Return the unsigned bytes of an IDX file, plain or gzipped, in the shape that its header states.

    The format is: two zero bytes, the type (0x08 is unsigned byte), the number of dimensions, each size as a big-endian 32-bit
    integer, then the data. Raises InvalidInput, which names the file, for any other format and if the file is cut off or too
    long.
    """
    path = Path(path)
    try:
        with path.open("rb") as plain:
            magic = plain.read(2)
            plain.seek(0)
            if magic != _GZIP_MAGIC:
                return _read_idx(plain, path)
            with gzip.open(plain) as unzipped:
                return _read_idx(unzipped, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidInput(f"{path} is a damaged or cut-off gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error


def _read_idx(file: BinaryIO | gzip.GzipFile, path: Path) -> Tensor:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise InvalidInput(f"{path} is not an IDX file: it starts with {head.hex(' ') or 'nothing'}, not with 00 00")
    if head[2] != _UNSIGNED_BYTE:
        raise InvalidInput(f"{path} holds IDX type 0x{head[2]:02x}; only unsigned bytes (0x08) can be read")
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3] or not sizes:
        raise InvalidInput(f"{path} ends within its header or states no dimensions; fetch it again")
    shape = struct.unpack(f">{head[3]}I", sizes)
    wanted = math.prod(shape)
    data = file.read()
    if len(data) != wanted:
        raise InvalidInput(
            f"{path} should hold {wanted} bytes, as its header {list(shape)} says, but holds {len(data)}; fetch it again"
        )
    if not wanted:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape)


def _load_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise GradestError("the digits come with scikit-learn: pip install 'gradest[data]'") from error
    bunch = load_digits()
    x = torch.from_numpy(bunch.data).float() / 16
    y = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, valid, test = (Split(x[part], y[part]) for part in torch.split(order, [1197, 300, 300]))
    return Dataset(train, valid, test)


def _find_mnist(data_dir: str | Path | None) -> tuple[Path, ...]:
    """Return the paths of the four files, in the order of `_MNIST_FILES`."""
    folders = [] if data_dir is None else [Path(data_dir)]
    if home := os.environ.get("GRADEST_DATA"):
        folders += [Path(home), Path(home) / "mnist"]
    for folder in folders:
        found = [
            next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name in _MNIST_FILES
        ]
        if all(found):
            return tuple(path for path in found if path)
    searched = ", ".join(map(str, folders)) or "no folder was given"
    raise GradestError(
        f"MNIST needs {', '.join(_MNIST_FILES)} (plain or .gz) in one folder; searched: {searched}. "
        "Pass that folder as data_dir, or set GRADEST_DATA to it"
    )


def _load_mnist(files: tuple[Path, ...]) -> Dataset:
    return _split(_images_and_labels(files[0], files[1]), _images_and_labels(files[2], files[3]))


def _split(learn: Split, test: Split) -> Dataset:
    held_out = len(learn) // 6  # 10,000 of the 60,000
    cut = len(learn) - held_out
    return Dataset(Split(learn.x[:cut], learn.y[:cut]), Split(learn.x[cut:], learn.y[cut:]), test)


def _images_and_labels(images: Path, labels: Path) -> Split:
    x, y = read_idx(images), read_idx(labels)
    if x.ndim != 3 or y.ndim != 1:
        raise InvalidInput(f"{images} and {labels} must have 3 dimensions and 1, not {x.ndim} and {y.ndim}")
    if len(x) != len(y) or not len(y):
        raise InvalidInput(
            f"{images} holds {len(x)} images and {labels} {len(y)} labels; they must agree, and not be empty"
        )
    if int(y.max()) >= _CLASSES:
        raise InvalidInput(f"{labels} holds the label {int(y.max())}; labels are 0 to {_CLASSES - 1}")
    return Split(x.flatten(1).float() / 255, y.long())
