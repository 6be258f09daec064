"""Damaged files and folders: what is read is right or a clear error, nothing is removed, nothing hangs."""

import gc
import json
import os
import pathlib
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import targets
from jaxprune.structured._plan import LeafPlan

pytestmark = [
    pytest.mark.dtype_promotion,  # optax promotes integers by itself
    # Where a folder is damaged, orbax leaves some of its readers unfinished.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def collected():
    """Lets them be found here, not in another file."""
    yield
    gc.collect()


DENSE = {"w": jnp.arange(1.0, 13.0).reshape(3, 4), "b": jnp.ones(2)}
TARGET = targets.AtSparsity(0.75, rounds=2)
OPTIMIZER = optax.sgd(0.1)
PLAN = jaxprune.Plan(
    {"layers/w": LeafPlan((2, 4, 6), {1: np.array([[0, 2], [1, 3]]), 2: np.array([0, 1, 4])}, 0), "b": LeafPlan((6,))}
)


@pytest.fixture(autouse=True)
def no_hang():
    """Ends a test that waits, such as for the writer of a pipe."""

    def stop(*_):
        raise TimeoutError("it hangs")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


def edited(path, old, new, count=1):
    """Replaces text in a file, which must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def flipped(path, at):
    """Flips a bit of the byte at a fraction of a file."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def truncated(path, at):
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])


def replaced(path, by):
    """Puts something of another kind in a file's or folder's place; the original stays beside it."""
    path.rename(path.with_name("before"))
    if by == "link":
        path.symlink_to(path.with_name("before"))
    elif by == "dangling":
        path.symlink_to(path.with_name("nowhere"))
    elif by == "loop":
        path.symlink_to(path)
    elif by == "folder":
        path.mkdir()
    elif by == "file":
        path.write_text("a file")
    elif by == "pipe":
        os.mkfifo(path)


def attempt(function):
    """What a function returns, or the message of a clear error."""
    try:
        return function(), ""
    except (ValueError, OSError) as error:
        return None, str(error)


# Rounds on disk


@jax.jit
def step(params, state, batch):
    updates, state = jaxprune.masked(OPTIMIZER, None).update(params, state, params)
    return optax.apply_updates(params, updates), state


def run(folder):
    trainer = jaxprune.Trainer(
        init=lambda params, masks: jaxprune.masked(OPTIMIZER, masks).init(params),
        step=step,
        batches=lambda index, epoch: [0],
        evaluate=lambda params: jnp.sum(params["w"]),
    )
    return jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer, TARGET, epochs=1, folder=folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A finished run's folder, and what it found."""
    folder = tmp_path_factory.mktemp("written")
    return folder, run(folder)


OTHERS = ("link", "dangling", "loop", "folder", "file", "pipe")


def record(folder, index=1):
    return folder / f"round_{index:04d}" / "jaxprune.json"


def swapped(first, second):
    first.rename(first.with_name("swap"))
    second.rename(first)
    first.with_name("swap").rename(second)


def with_record(folder, change, index=1):
    document = json.loads(record(folder, index).read_text())
    change(document)
    record(folder, index).write_text(json.dumps(document))


FOLDERS = {
    **{f"record flipped at {i}": (lambda f, i=i: flipped(record(f), i / 12)) for i in range(13)},
    **{f"record cut at {i}": (lambda f, i=i: truncated(record(f), i / 5)) for i in range(5)},
    **{f"dense record flipped at {i}": (lambda f, i=i: flipped(record(f, 0), i / 7 + 0.05)) for i in range(6)},
    **{f"record is a {by}": (lambda f, by=by: replaced(record(f), by)) for by in OTHERS},
    **{f"round is a {by}": (lambda f, by=by: replaced(f / "round_0001", by)) for by in OTHERS},
    **{f"arrays are a {by}": (lambda f, by=by: replaced(f / "round_0001/arrays", by)) for by in OTHERS},
    "record missing": lambda f: record(f).unlink(),
    "dense record missing": lambda f: record(f, 0).unlink(),
    "arrays missing": lambda f: shutil.rmtree(f / "round_0001/arrays"),
    "middle round missing": lambda f: shutil.rmtree(f / "round_0001"),
    "dense round missing": lambda f: shutil.rmtree(f / "round_0000"),
    "last round missing": lambda f: shutil.rmtree(f / "round_0002"),
    "rounds swapped": lambda f: swapped(f / "round_0001", f / "round_0002"),
    "records swapped": lambda f: swapped(record(f, 1), record(f, 2)),
    "arrays swapped": lambda f: swapped(f / "round_0001/arrays", f / "round_0002/arrays"),
    "a round twice": lambda f: shutil.copytree(f / "round_0002", f / "round_0003"),
    "a file for a round": lambda f: (f / "round_0003").write_text("x"),
    "record is binary": lambda f: record(f).write_bytes(bytes(range(256))),
    "record is empty": lambda f: record(f).write_text(""),
    "record is a list": lambda f: record(f).write_text("[]"),
    "record is deep": lambda f: record(f).write_text("[" * 100_000),
    "record is a plan": lambda f: PLAN.save(record(f)),
    "record lacks its round": lambda f: with_record(f, lambda d: d.pop("round")),
    "record has a list of masks": lambda f: with_record(f, lambda d: d.update(masks=[1])),
    "record has a metric of text": lambda f: with_record(f, lambda d: d["round"].update(metric="high")),
    "record of the dense model has no run": lambda f: with_record(f, lambda d: d.update(run=None), 0),
    "index is a truth": lambda f: with_record(f, lambda d: d.update(index=True)),
}  # fmt: skip


def listing(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("damage", FOLDERS.values(), ids=FOLDERS)
def test_a_damaged_folder_of_rounds(damage, written, tmp_path):
    check_run(damage, written, tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves coroutines behind
def test_damaged_arrays_of_a_round(written, tmp_path):
    """Each file of a round, cut short, flipped in the middle and gone."""
    names = sorted(
        str(path.relative_to(written[0])) for path in (written[0] / "round_0001/arrays").rglob("*") if path.is_file()
    )
    assert len(names) > 4
    for i, name in enumerate(names):
        for j, harm in enumerate((lambda p: truncated(p, 0.5), lambda p: flipped(p, 0.7), pathlib.Path.unlink)):
            check_run(lambda folder, name=name, harm=harm: harm(folder / name), written, tmp_path / f"{i}{j}")


def check_run(damage, written, folder):
    """The run ends as it did, or says which folder is damaged; whatever was there is there."""
    source, expected = written
    shutil.copytree(source, folder, dirs_exist_ok=True)
    damage(folder)
    before = listing(folder)
    found, message = attempt(lambda: run(folder))
    if found is None:
        assert re.search(r"round_000\d", message), message
    else:
        assert found.history == expected.history
        jax.tree.map(np.testing.assert_array_equal, (found.params, found.masks), (expected.params, expected.masks))
    assert before <= listing(folder)


def test_the_damage_is_seen(written, tmp_path):
    """Few of the damages above leave a run as it was."""
    harmless = set()
    for name, damage in FOLDERS.items():
        folder = tmp_path / name.replace(" ", "_")
        shutil.copytree(written[0], folder)
        damage(folder)
        found, _ = attempt(lambda folder=folder: run(folder))
        harmless |= set() if found is None else {name}
    assert harmless == {"record is a link", "round is a link", "arrays are a link", "last round missing"}


# Plans


def saved(plan, path):
    plan.save(path)
    return path


def with_plan(path, change):
    """Edits a plan and takes its checksum away, as a plan written by hand has none."""
    document = json.loads(path.read_text())
    del document["crc32"]
    change(document)
    path.write_text(json.dumps(document))


def at(*keys, value):
    """Sets one entry of a plan."""

    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return lambda path: with_plan(path, change)


LEAF, KEEP = ("leaves", "layers/w"), ("leaves", "layers/w", "keep")
PLANS = {
    **{f"flipped at {i}": (lambda p, i=i: flipped(p, i / 18)) for i in range(19)},
    **{f"cut at {i}": (lambda p, i=i: truncated(p, i / 8)) for i in range(8)},
    **{f"is a {by}": (lambda p, by=by: replaced(p, by)) for by in ("link", "dangling", "loop", "folder", "pipe")},
    **{f"leaves are {value!r}": at("leaves", value=value) for value in (None, 1, "w", [1], [["b", {}]])},
    **{f"a leaf is {value!r}": at(*LEAF, value=value) for value in (None, 1, "w", [1], {})},
    **{f"keep is {value!r}": at(*KEEP, value=value) for value in (None, 1, [[0]], {"x": [0]}, {"7": [0]}, {"-1": [0]})},
    **{
        f"kept are {value!r:.20}": at(*KEEP, "2", value=value)
        for value in (None, 0, [], [[]], ["0"], [0.5], [True], [1, 0], [0, 0], [-1, 2], [9], [10**30], [[0], [1, 2]],
                      [[[0]]], [1e400], {"0": 1})
    },
    **{
        f"shape is {value!r:.20}": at(*LEAF, "shape", value=value)
        for value in (None, 6, "246", [2, 4], [2, 4, 6.0], [2, 4, -6], [2, 4, "6"], [2, 4, True], [2, 4, 10**400],
                      {"0": 2})
    },
    **{f"stack is {value!r}": at(*LEAF, "stack", value=value) for value in (True, "0", 0.0, [0], 5, -1, 1, None)},
    **{f"semantics are {value!r}": at("semantics", value=value) for value in (None, "other", ["masked"], 1)},
    **{f"version is {value!r}": at("version", value=value) for value in (2, "1", None)},
    "an axis twice": at(*KEEP, value={"1": [[0, 2], [1, 3]], "01": [[0, 1], [1, 2]]}),
    "no semantics": lambda p: with_plan(p, lambda d: d.pop("semantics")),
    "no leaves": lambda p: with_plan(p, lambda d: d.pop("leaves")),
    "binary": lambda p: p.write_bytes(bytes(range(256))),
    "UTF-16": lambda p: p.write_text(p.read_text(), encoding="utf-16"),
    "deep": lambda p: p.write_text('{"format": ' + "[" * 100_000),
    "many digits": lambda p: edited(p, "[2, 4, 6]", f"[2, 4, {'6' * 5000}]"),
    "not a number": lambda p: edited(p, "[2, 4, 6]", "[2, 4, NaN]"),
    "a number": lambda p: p.write_text("1"),
    "nothing": lambda p: p.write_text(""),
}  # fmt: skip


@pytest.mark.parametrize("damage", PLANS.values(), ids=PLANS)
def test_a_damaged_plan(damage, tmp_path):
    path = saved(PLAN, tmp_path / "plan.json")
    damage(path)
    before = listing(tmp_path)
    found, message = attempt(lambda: jaxprune.Plan.load(path))
    assert repr(found) == repr(PLAN) if found is not None else str(path) in message, message
    assert before == listing(tmp_path)


def test_a_plan_without_damage(tmp_path):
    path = saved(PLAN, tmp_path / "plan.json")
    assert repr(jaxprune.Plan.load(path)) == repr(PLAN)
    with_plan(path, lambda document: None)
    assert repr(jaxprune.Plan.load(path)) == repr(PLAN)


# Packed masks


PACKED = {
    "a row less": lambda b, s: (b[:-1], s),
    "a row more": lambda b, s: (np.concatenate([b, b[:1]]), s),
    "a column less": lambda b, s: (b[..., :-1], s),
    "a column more": lambda b, s: (np.concatenate([b, b[..., :1]], -1), s),
    "flat": lambda b, s: (b.reshape(-1) if b.ndim > 1 else b[None], s),
    "an axis more": lambda b, s: (b[..., None], s),
    "half": lambda b, s: (b[: len(b) // 2], s),
    "nothing": lambda b, s: (b[:0], s),
    "signed": lambda b, s: (b.astype(np.int8), s),
    "wide": lambda b, s: (b.astype(np.int32), s),
    "floating": lambda b, s: (b.astype(np.float32), s),
    "boolean": lambda b, s: (b.astype(bool), s),
    "another size": lambda b, s: (b, (*s[:-1], s[-1] + 8)),
    "a size less": lambda b, s: (b, (*s[:-1], max(s[-1] - 8, 1))),
}
SHAPES = [(5, 16), (3, 5), (16, 3), (20,)]


@pytest.mark.wrong_types
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("damage", PACKED.values(), ids=PACKED)
def test_a_damaged_packed_mask(damage, shape):
    mask = np.arange(np.prod(shape)).reshape(shape) % 3 == 0
    packed = jaxprune.pack({"w": jnp.asarray(mask)})["w"]
    assert np.array_equal(jaxprune.unpack({"w": packed})["w"], mask)
    damaged = jaxprune.Packed(*damage(np.asarray(packed.bits), packed.shape))
    with pytest.raises((ValueError, TypeError), match=r"bits|shape"):
        jaxprune.unpack({"w": damaged})
