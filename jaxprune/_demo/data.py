"""Real images for the demo and the benchmarks, from local files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """A data set for classification.

    Attributes:
      name: For tables and titles.
      train_images: float32 `(n, height, width, 1)`, standardised by the training pixels.
      train_labels: int32 `(n,)`.
      test_images: As the training images; never seen in training.
      test_labels: int32 `(m,)`.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def digits(seed: int = 0) -> Images:
    """1,797 handwritten digits of 8x8 pixels, a fifth of each class held out.

    Args:
      seed: Of the split.

    References:
      Alpaydin and Kaynak, 1998, "Optical Recognition of Handwritten Digits", UCI; carried by scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = (np.asarray(array) for array in load_digits(return_X_y=True))
    parts = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=seed)
    train, test = (np.asarray(part) for part in parts)
    images = images.reshape(-1, 8, 8)
    return _standardised("digits", images[train], labels[train], images[test], labels[test])


def fashion_mnist(folder: str | Path) -> Images:
    """60,000 + 10,000 images of clothing, 28x28 pixels, from idx files, compressed or not.

    Args:
      folder: Holds `train-images-idx3-ubyte` and the other three files, with or without `.gz`; Debian's package
        `dataset-fashion-mnist` puts them in `/usr/share/datasets/fashion-mnist`.

    Raises:
      ValueError: A file is missing or is not in the idx format.

    References:
      Xiao et al., 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms".
    """
    folder = Path(folder)
    train, train_labels = _idx(folder, "train-images-idx3-ubyte"), _idx(folder, "train-labels-idx1-ubyte")
    test, test_labels = _idx(folder, "t10k-images-idx3-ubyte"), _idx(folder, "t10k-labels-idx1-ubyte")
    return _standardised("fashion-mnist", train, train_labels, test, test_labels)


def _standardised(
    name: str, train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> Images:
    mean, deviation = train.mean(), train.std()
    train, test = (((images - mean) / deviation).astype(np.float32)[..., None] for images in (train, test))
    return Images(name, train, train_labels.astype(np.int32), test, test_labels.astype(np.int32))


def _idx(folder: Path, name: str) -> np.ndarray:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.exists()), None)
    if path is None:
        raise ValueError(
            f"'{folder}' has no '{name}' nor '{name}.gz'. Point at the folder of the four idx files; Debian's package "
            f"dataset-fashion-mnist has them."
        )
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    axes = content[3] if len(content) > 4 else 0
    shape = tuple(int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, axes + 1))
    if content[:3] != b"\0\0\x08" or len(content) != 4 + 4 * axes + int(np.prod(shape)):
        raise ValueError(f"'{path}' is not an idx file of unsigned bytes, or is cut short. Fetch it again.")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
