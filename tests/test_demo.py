"""The demo, its data and the command line, small."""

import gzip
import io

import numpy as np
import pytest
from rich.console import Console

import jaxprune
from jaxprune import _cli
from jaxprune._demo import data, pictures, publishing
from jaxprune._demo.main import Settings, run
from jaxprune._demo.publishing import Result

pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion(folder):
    rng = np.random.default_rng(0)
    for name, count in (("train", 64), ("t10k", 32)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return images, labels


def test_digits_are_split_by_class_and_standardised():
    digits = data.digits(seed=3)
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert abs(float(digits.train_images.mean())) < 1e-3
    assert np.bincount(digits.test_labels).min() >= 34
    assert not np.array_equal(digits.test_labels, data.digits(seed=4).test_labels)


def test_idx_files_are_read_compressed_or_not(tmp_path):
    images, labels = write_fashion(tmp_path)
    found = data.fashion_mnist(tmp_path)
    assert np.array_equal(found.test_labels, labels)
    order = np.argsort(images.ravel(), kind="stable")
    assert np.all(np.diff(found.test_images.ravel()[order]) >= 0)


def test_missing_or_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no 'train-images-idx3-ubyte' nor .*Point at the folder"):
        data.fashion_mnist(tmp_path)
    write_fashion(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte' is not an idx file .* or is cut short"):
        data.fashion_mnist(tmp_path)


@pytest.mark.whole
def test_the_demo_prunes_shrinks_and_writes_its_files(tmp_path):
    settings = Settings(("global", "slim", "variance"), (0.9,), 0, "digits", tmp_path, tmp_path / "out")
    unstructured, slim, *rest = run(settings)
    dense = unstructured.report.before
    assert dense.accuracy >= 0.97
    assert unstructured.report.after.accuracy >= dense.accuracy - 0.01
    assert sum(leaf.kept for leaf in unstructured.report.leaves) == round(
        0.1 * sum(x.size for x in unstructured.report.leaves)
    )
    assert slim.report.after.macs < 0.1 * dense.macs
    assert slim.report.after.milliseconds is not None
    left = {(result.strategy, result.asked): result.report.after for result in rest}
    assert left["var-small", 0.25].accuracy > left["var-large", 0.25].accuracy + 0.1
    assert left["var-large+mean", 0.25].accuracy > left["var-large", 0.25].accuracy + 0.1
    assert left["var-small+mean", 0.25].macs < 0.7 * dense.macs
    text = (tmp_path / "out" / "report.md").read_text()
    assert "<summary>global at 90 %</summary>" in text
    assert "| sparsity |  | 90.00 % | asked for 90.00 % |" in text
    for name in ("accuracy.png", "masks.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def results(names):
    """Of strategies that keep a quarter of the weights of a small layer, however much was asked for."""
    kernel = {"hidden": {"kernel": np.arange(1.0, 17.0, dtype=np.float32).reshape(4, 4)}}
    masks = {"hidden": {"kernel": np.arange(16).reshape(4, 4) >= 12}}

    def fun(params, x):
        return x @ params["hidden"]["kernel"]

    found = jaxprune.report((fun, kernel), (fun, kernel), np.eye(4, dtype=np.float32), np.arange(4), masks=masks)
    return [Result(name, 0.5, found, masks["hidden"]["kernel"], "a note") for name in names]


def test_the_table_fits_a_terminal_and_the_report_begins_with_it(tmp_path, monkeypatch):
    curves = {}
    monkeypatch.setattr(pictures, "draw_accuracy", lambda points, dense, path: curves.update(points))
    names = ["var-large+mean", "2:4", "1:4", *(f"strategy {i}" for i in range(12))]
    images = np.zeros((4, 8, 8, 1), np.float32)
    held_out = data.Images("digits", images, np.arange(4), images, np.arange(4))
    console = Console(width=80, record=True, file=io.StringIO())
    publishing.publish(console, held_out, results(names), {"2:4": "n:m", "1:4": "n:m"}, tmp_path)
    text = console.export_text()
    assert "strategy sparsity accuracy change recall F1 weights KiB" in " ".join(text.split())
    assert "…" not in text
    assert curves["var-large+mean"] == [(0.75, 0.25)]  # at the weights that are gone, not at what was asked for
    assert len(curves["n:m"]) == 2
    report = (tmp_path / "report.md").read_text()
    assert report.index("| var-large+mean | 75.00 |") < report.index("<details>") < 3000
    assert report.count("<details>") == len(names)


def test_no_two_lines_of_the_picture_look_alike(tmp_path):
    assert len(set(pictures.looks(40))) == 40
    assert len({colour for colour, _ in pictures.looks(20)}) == 20
    pictures.draw_accuracy({str(i): [(0.5, 0.9), (0.7, 0.8)] for i in range(14)}, 0.95, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 1000


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert _cli.main(["demo", "--data", "fashion-mnist", "--folder", str(tmp_path)]) == 2
    assert "has no 'train-images-idx3-ubyte'" in capsys.readouterr().err


def test_report_counts_what_a_person_would(tmp_path):
    weights = {"kernel": np.eye(4, dtype=np.float32)}
    masks = {"kernel": np.eye(4, dtype=bool) & (np.arange(4)[:, None] < 3)}
    masks = {"kernel": jaxprune.magnitude({"kernel": weights["kernel"] * masks["kernel"]}, 13 / 16)["kernel"]}

    def fun(params, x):
        return x @ params["kernel"] - 0.5

    pruned = jaxprune.apply(weights, masks)
    labels = np.array([0, 1, 2, 3])
    found = jaxprune.report(
        (fun, weights), (fun, pruned), np.eye(4, dtype=np.float32), labels, masks=masks, requested=0.8
    )
    assert found.before.accuracy == 1.0
    assert found.after.accuracy == 0.75  # class 3 is gone and taken for class 0
    assert found.after.recall == 0.75
    assert found.after.f1 == pytest.approx((2 / 3 + 1 + 1 + 0) / 4)
    assert (found.before.parameters, found.after.parameters) == (16, 3)
    assert (found.before.bytes, found.after.bytes) == (64, 12 + 2)
    assert (found.before.macs, found.after.macs) == (16, 3)
    assert "asked for 80.00 %" in str(found)
    assert "| kernel | 4×4 | 16 | 3 | 81.25 % |" in found.to_markdown()
    found.plot(tmp_path / "report.svg")
    assert (tmp_path / "report.svg").stat().st_size > 1000
    with pytest.raises(ValueError, match="one label for each input; got 4 inputs, 3 labels"):
        jaxprune.report((fun, weights), (fun, pruned), np.eye(4), labels[:3])
