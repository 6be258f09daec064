"""Checkpoints read, written, pruned from file to file, and packed."""

import functools
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import jaxprune
from jaxprune import _atomic, budgets, io, patterns
from jaxprune.io import _packed, _safetensors
from jaxprune.rules import Rule, Rules

_DTYPES = [
    "float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "int32", "int64", "uint8",
    "uint16", "bool", "complex64",
]  # fmt: skip
_TARGETS = ["out.safetensors", "out.npz", "out.msgpack", "out"]


def same(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


def same_trees(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return all(map(same, jax.tree.leaves(first), jax.tree.leaves(second)))


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def numbers(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    return (4 * rng.standard_normal(shape)).astype(ml_dtypes.finfo(dtype).dtype if "float" in dtype else dtype)


def decoder(seed=0, dtype=np.float32):
    """Names as a torch checkpoint has them, with ties between and within the arrays."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        return (rng.integers(-40, 40, shape) / 8).astype(dtype)

    return {
        "model": {
            "embed_tokens": {"weight": array(24, 16)},
            "layers": {
                str(i): {
                    "mlp": {"up_proj": {"weight": array(32, 16)}, "down_proj": {"weight": array(16, 32)}},
                    "norm": {"weight": array(16)},
                }
                for i in range(11)
            },
        }
    }


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("dtype", _DTYPES)
def test_every_dtype_and_shape_comes_back(dtype, target, tmp_path):
    if target == "out" and dtype in ("float8_e4m3fn", "float8_e5m2", "complex64"):
        pytest.skip("orbax stores no such dtype")
    tree = {"a": {"b": numbers(dtype, (3, 4)), "c": numbers(dtype, (5,))}, "d": numbers(dtype, ())}
    if target != "out":  # orbax stores no empty arrays
        tree["e"] = numbers(dtype, (0, 4))
    io.save(tmp_path / target, tree)
    assert same_trees(io.load(tmp_path / target), tree)
    shapes = io.shapes(tmp_path / target)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), tree)


def test_the_package_of_the_format_reads_what_is_written_and_writes_what_is_read(tmp_path):
    tree = {"b": numbers("bfloat16", (3, 5)), "a": numbers("float32", (7,)), "ü": numbers("bool", (3,))}
    io.save(tmp_path / "ours.safetensors", tree, metadata={"format": "pt", "note": 'a "quoted" one'})
    theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
    assert all(same(theirs[name], array) for name, array in tree.items())
    with safetensors.safe_open(tmp_path / "ours.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt", "note": 'a "quoted" one'}
    safetensors.numpy.save_file(tree, tmp_path / "theirs.safetensors", metadata={"x": "y"})
    assert same_trees(io.load(tmp_path / "theirs.safetensors"), tree)


def test_a_template_gives_its_structure_and_is_checked(tmp_path):
    params = {"layers": [{"w": jnp.ones((2, 3))}, {"w": jnp.zeros((3, 2))}], "name": "model"}
    io.save(tmp_path / "p.npz", {"layers": params["layers"]})
    loaded = io.load(tmp_path / "p.npz", like=params)
    assert isinstance(loaded["layers"], list)
    assert loaded["name"] == "model"
    assert loaded["layers"][0]["w"].sum() == 6
    with pytest.raises(ValueError, match=r"'layers/0/w' has shape \(2, 4\), float32; .* has shape \(2, 3\), float32"):
        io.load(tmp_path / "p.npz", like={"layers": [{"w": jnp.ones((2, 4))}]})
    with pytest.raises(ValueError, match=r"'other' has shape \(2,\), float32; .* has no such array"):
        io.load(tmp_path / "p.npz", like={"other": jnp.ones(2)})


@pytest.mark.wrong_types
def test_what_cannot_be_saved_says_so(tmp_path):
    with pytest.raises(ValueError, match="is there already, and nothing is written over"):
        io.save(tmp_path, {"a": np.ones(2)})
    with pytest.raises(TypeError, match="'f' must be an array to be saved; got str"):
        io.save(tmp_path / "x.npz", {"f": "text"})
    with pytest.raises(ValueError, match=r"keeps no metadata; only `.safetensors` does"):
        io.save(tmp_path / "x.npz", {"a": np.ones(2)}, metadata={"a": "b"})
    with pytest.raises(ValueError, match="two arrays of one name"):
        io.save(tmp_path / "x.safetensors", {"a": {"b": np.ones(2)}, "a/b": np.ones(2)})
    with pytest.raises(ValueError, match="safetensors has no dtype complex128; got it for 'a'"):
        io.save(tmp_path / "x.safetensors", {"a": np.ones(2, complex)})
    with pytest.raises(ValueError, match=r"x.torch' ends in none of .safetensors, .npz, .msgpack"):
        io.save(tmp_path / "x.torch", {"a": np.ones(2)})
    with pytest.raises(ValueError, match=r"is no folder. Make it first"):
        io.save(tmp_path / "nowhere" / "x.npz", {"a": np.ones(2)})
    io.save(tmp_path / "y.safetensors", {"a": np.ones(2), "a.b": np.ones(2)})
    with pytest.raises(ValueError, match=r"'a.b' lies within or over another array"):
        io.load(tmp_path / "y.safetensors")
    assert listed(tmp_path) == ["y.safetensors"]


_RULES = {
    "uniform": [Rule(sparsity=0.7)],
    "global": [Rule(sparsity=0.7, budget=budgets.global_)],
    "erk": [Rule(sparsity=0.6, budget=budgets.erk)],
    "nm": [Rule("mlp", pattern=patterns.NM(2, 4, axis=-1))],
    "block": [Rule("mlp", pattern=patterns.Block((4, 4)), budget=budgets.global_)],
    "channel": [Rule("mlp", pattern=patterns.Channel(axis=0), sparsity=0.25)],
    "along": [Rule("mlp", pattern=patterns.Along(axis=-1), sparsity=0.55)],
    "lamp": [Rule(method=jaxprune.lamp, sparsity=0.8)],
    "dft": [Rule("mlp", method=jaxprune.dft, sparsity=0.8)],
    "several": [Rule("embed", method=None), Rule("up_proj", sparsity=0.9), Rule(budget=budgets.global_)],
}


@pytest.mark.parametrize("target", _TARGETS)
@pytest.mark.parametrize("name", _RULES)
def test_from_file_to_file_the_masks_are_those_of_the_whole_tree(name, target, tmp_path):
    if target != _TARGETS[0] and name != "several":
        pytest.skip("the kinds of file are told apart after pruning")
    params, rules = decoder(), Rules(_RULES[name])
    io.save(tmp_path / f"in.{target}", params) if target != "out" else io.save(tmp_path / "in", params)
    source = tmp_path / ("in" if target == "out" else f"in.{target}")
    found = io.prune(source, tmp_path / target, rules)
    masks = rules(params)
    expected = jax.tree.map(np.asarray, jaxprune.apply(params, masks))
    assert same_trees(io.load(tmp_path / target), expected)
    assert sum(row.kept for row in found) < sum(row.size for row in found)
    summary = {row.path: row.kept for row in jaxprune.summary(params, masks)}
    assert {row.path: row.kept for row in found} == summary
    if name != "dft":
        decisions = rules.explain(params).decisions
        assert all(d.kept is None or d.kept == summary[d.path] for d in decisions if d.path in summary)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_dtypes_compete_as_in_memory(dtype, tmp_path):
    params = decoder(dtype=dtype)
    params["model"]["embed_tokens"]["weight"] = params["model"]["embed_tokens"]["weight"].astype(np.float32)
    rules = Rules([Rule(sparsity=0.37, budget=budgets.global_)])
    io.save(tmp_path / "in.safetensors", params)
    io.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors", rules)
    with jax.enable_x64(dtype == np.float64):
        expected = jax.tree.map(lambda p, m: p if m is None else np.where(m, p, 0), params, rules(params))
    assert same_trees(io.load(tmp_path / "out.safetensors"), expected)


def test_axes_are_those_of_the_layout_and_unknown_ones_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": rng.standard_normal((8, 12), dtype=np.float32)},
        "b": {"weight": rng.standard_normal((12, 8), dtype=np.float32)},
        "c": {"weight": rng.standard_normal((6, 8, 3, 3), dtype=np.float32)},
        "query": {"kernel": rng.standard_normal((8, 3, 5), dtype=np.float32)},
    }
    io.save(tmp_path / "in.npz", params)
    rules = Rules([Rule(pattern=patterns.NM(2, 4))])
    io.prune(tmp_path / "in.npz", tmp_path / "out.npz", rules)
    pruned = io.load(tmp_path / "out.npz")
    for name, axis in (("a/kernel", 0), ("b/weight", 1), ("c/weight", 1), ("query/kernel", 0)):
        outer, inner = name.split("/")
        groups = np.moveaxis(pruned[outer][inner], axis, -1).reshape(-1, 4)
        assert ((groups != 0).sum(axis=1) == 2).all(), name
    io.save(tmp_path / "unknown.npz", {"mixer": rng.standard_normal((8, 8), dtype=np.float32)})
    with pytest.raises(ValueError, match=r"needs to know which axis of 'mixer', \(8, 8\), is summed over"):
        io.prune(tmp_path / "unknown.npz", tmp_path / "no.npz", rules)
    io.prune(tmp_path / "unknown.npz", tmp_path / "flax.npz", rules, layout="flax")
    groups = io.load(tmp_path / "flax.npz")["mixer"].T.reshape(-1, 4)
    assert ((groups != 0).sum(axis=1) == 2).all()
    assert not (tmp_path / "no.npz").exists()


def sharded(folder, params):
    """A folder as Hugging Face has it, in two files."""
    flat = dict(zip(names(params), jax.tree.leaves(params), strict=True))
    folder.mkdir()
    half = len(flat) // 2
    parts = [dict(itertools.islice(flat.items(), half)), dict(itertools.islice(flat.items(), half, None))]
    places = {}
    for i, part in enumerate(parts, 1):
        shard = f"model-0000{i}-of-00002.safetensors"
        safetensors.numpy.save_file(part, folder / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(a.nbytes for a in flat.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("[]")
    (folder / "pytorch_model.bin").write_bytes(b"the weights again")
    return index


def names(params):
    return [jax.tree_util.keystr(keys, simple=True, separator=".") for keys, _ in jax.tree.leaves_with_path(params)]


def test_a_folder_keeps_its_files_and_its_index(tmp_path):
    params, rules = decoder(), Rules([Rule("mlp", budget=budgets.global_)])
    sharded(tmp_path / "in", params)
    io.prune(tmp_path / "in", tmp_path / "out", rules)
    assert same_trees(io.load(tmp_path / "out"), jax.tree.map(np.asarray, jaxprune.apply(params, rules(params))))
    kept = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.json"))
    assert kept == ["1_Pooling/config.json", "config.json", "model.safetensors.index.json"]
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    with safetensors.safe_open(tmp_path / "out" / "model-00001-of-00002.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["weight_map"].update({"model.embed_tokens.weight": "../x.safetensors"}), "is no file beside it"),
        (lambda i: i["weight_map"].update({"model.embed_tokens.weight": "x.safetensors"}), "which is not there"),
        (lambda i: i["weight_map"].update({"other": "model-00001-of-00002.safetensors"}), "is wrong about 'other'"),
        (lambda i: i["weight_map"].pop("model.embed_tokens.weight"), "is wrong about 'model.embed_tokens.weight'"),
        (lambda i: i["weight_map"].update({"model.embed_tokens.weight": 3}), "is no index"),
        (lambda i: i.pop("weight_map"), "is no index"),
    ],
)
def test_a_wrong_index_is_refused(change, message, tmp_path):
    index = sharded(tmp_path / "in", decoder())
    change(index)
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        io.load(tmp_path / "in")


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


_GOOD = file_of({"a": entry()}, bytes(8))
_BAD = {
    "empty": b"",
    "seven bytes": b"1234567",
    "no header": (8).to_bytes(8, "little"),
    "absurd header": (2**63).to_bytes(8, "little") + b"{}",
    "header beyond the end": (3).to_bytes(8, "little") + b"{}",
    "large header": (200_000_000).to_bytes(8, "little") + bytes(100),
    "cut short": _GOOD[:-1],
    "longer": _GOOD + b"x",
    "no JSON": file_of(b"{{"),
    "a list": file_of([]),
    "a number": file_of(3),
    "no text": file_of(b"\xff\xfe"),
    "deep": file_of(b"[" * 100_000),
    "deep objects": file_of(b'{"a":' * 50_000),
    "null": file_of(b"null"),
    "twice": file_of(b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": 3}', bytes(8)),
    "no entry": file_of({"a": 3}),
    "entry of nothing": file_of({"a": {}}),
    "entry of null": file_of({"a": None}),
    "no dtype": file_of({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": file_of({"a": entry("F4")}, bytes(8)),
    "dtype a number": file_of({"a": entry(3)}, bytes(8)),
    "dtype a list": file_of({"a": entry(["F32"])}, bytes(8)),
    "negative shape": file_of({"a": entry(shape=(-2,))}, bytes(8)),
    "shape of floats": file_of({"a": entry(shape=(2.0,))}, bytes(8)),
    "shape of bools": file_of({"a": entry(shape=(True, 2))}, bytes(8)),
    "huge shape": file_of({"a": entry(shape=(2**40, 2**40))}, bytes(8)),
    "shape beyond 64 bits": file_of({"a": entry(shape=(2**70,))}, bytes(8)),
    "wrong shape": file_of({"a": entry(shape=(3,))}, bytes(8)),
    "shape a text": file_of({"a": {**entry(), "shape": "2"}}, bytes(8)),
    "one offset": file_of({"a": entry(offsets=(0,))}, bytes(8)),
    "three offsets": file_of({"a": entry(offsets=(0, 4, 8))}, bytes(8)),
    "negative offset": file_of({"a": entry(offsets=(-8, 0))}, bytes(8)),
    "backwards": file_of({"a": entry(offsets=(8, 0))}, bytes(8)),
    "overlap": file_of({"a": entry(), "b": entry()}, bytes(16)),
    "half overlap": file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
    "hole": file_of({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "not from the start": file_of({"a": entry(offsets=(8, 16))}, bytes(16)),
    "offset beyond": file_of({"a": entry(offsets=(2**62, 2**62 + 8))}, bytes(8)),
    "metadata a list": file_of({"__metadata__": [], "a": entry()}, bytes(8)),
    "metadata of numbers": file_of({"__metadata__": {"x": 1}, "a": entry()}, bytes(8)),
}


@pytest.mark.parametrize("kind", _BAD)
def test_malformed_safetensors_are_refused(kind, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(_BAD[kind])
    with pytest.raises(ValueError, match=r"bad.safetensors"):
        io.load(path)
    with pytest.raises(ValueError, match=r"bad.safetensors"):
        io.prune(path, tmp_path / "out.safetensors", Rules([Rule()]))
    assert listed(tmp_path) == ["bad.safetensors"]


def test_good_safetensors_of_the_same_kind_are_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(_GOOD)
    assert io.load(tmp_path / "a.safetensors")["a"].tolist() == [0, 0]
    (tmp_path / "none.safetensors").write_bytes(file_of({}))
    assert io.load(tmp_path / "none.safetensors") == {}


@pytest.mark.parametrize("suffix", [".npz", ".msgpack"])
@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "flipped"])
def test_other_damaged_files_are_refused(damage, suffix, tmp_path):
    path = tmp_path / f"bad{suffix}"
    io.save(path, {"a": {"b": np.arange(400.0)}})
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes(255 - b for b in whole[middle : middle + 8]) + whole[middle + 8 :]
    path.write_bytes({"empty": b"", "cut": whole[:-200], "noise": b"noise" * 50, "flipped": flipped}[damage])
    if (damage, suffix) == ("flipped", ".msgpack"):
        pytest.skip("msgpack has no checksum")
    with pytest.raises(ValueError, match=f"bad{suffix}"):
        io.load(path)


def test_objects_and_forgotten_dtypes_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match=r"'a' has dtype object"):
        io.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "void.npz", a=np.ones(3, ml_dtypes.bfloat16))
    with pytest.raises(ValueError, match=r"'a' has dtype .V2, which does not say what it is"):
        io.load(tmp_path / "void.npz")


def test_a_damaged_or_foreign_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no '.*nothing'"):
        io.load(tmp_path / "nothing")
    (tmp_path / "w.pt").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"pickles, as in `.bin` and `.pt`, can run code and are never read"):
        io.load(tmp_path / "w.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is no checkpoint. It has the folders none"):
        io.load(tmp_path / "empty")
    io.save(tmp_path / "orbax", {"a": np.ones(3)})
    (tmp_path / "orbax" / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match="is no intact checkpoint of orbax"):
        io.load(tmp_path / "orbax")


_PROGRAM = """
import sys, time
from jaxprune import io, patterns
from jaxprune.rules import Rule, Rules
print("ready", flush=True)
io.prune(sys.argv[1], sys.argv[2], Rules([Rule(pattern=patterns.NM(2, 4))]), layout="flax")
"""


@pytest.mark.parametrize("moments", [(0.0, 0.05), pytest.param(tuple(np.linspace(0, 0.2, 10)), marks=pytest.mark.slow)])
@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_a_killed_run_leaves_nothing_that_looks_finished(target, moments, tmp_path):
    """Killed at moments spread over a run; then a run to the same target succeeds."""
    params = {f"k{i}": np.ones((512, 512), np.float32) for i in range(24)}
    if target == "out":
        sharded(tmp_path / "in", params)
    else:
        io.save(tmp_path / "in.safetensors", params)
    source = tmp_path / ("in" if target == "out" else "in.safetensors")
    for moment in moments:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(source), str(tmp_path / target)], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (tmp_path / target).exists():  # it was quicker, and then it is complete
            assert len(io.load(tmp_path / target)) == 24
            break
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [source.name]
    if not (tmp_path / target).exists():
        io.prune(source, tmp_path / target, Rules([Rule(pattern=patterns.NM(2, 4))]), layout="flax")
    assert all(array.sum() == 512 * 256 for array in io.load(tmp_path / target).values())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    params = {"a": np.ones((4, 4), np.float32), "z": np.ones((5, 4), np.float32)}
    io.save(tmp_path / "in.npz", params)
    with pytest.raises(ValueError, match=r"needs axis -2 divisible by 4; 'z' has shape \(5, 4\)"):
        io.prune(tmp_path / "in.npz", tmp_path / "out.npz", Rules([Rule(pattern=patterns.NM(2, 4))]), layout="flax")
    assert listed(tmp_path) == ["in.npz"]


def test_a_full_disk_is_seen_before_and_on_the_way(tmp_path, monkeypatch):
    io.save(tmp_path / "in.npz", {"a": np.ones((64, 64), np.float32)})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(OSError, match=r"takes 16,384 bytes, and its disk has 1,000 left"):
            io.prune(tmp_path / "in.npz", tmp_path / "out.npz", Rules([Rule()]))

    def full(self, name, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_safetensors.Writer, "write", full)
    with pytest.raises(OSError, match="No space left"):
        io.prune(tmp_path / "in.npz", tmp_path / "out.safetensors", Rules([Rule()]))
    assert listed(tmp_path) == ["in.npz"]


def test_two_runs_do_not_write_one_target(tmp_path):
    with _atomic.complete(tmp_path / "x", 0) as unfinished:
        unfinished.write_text("first")
        with pytest.raises(ValueError, match="Another run is writing"), _atomic.complete(tmp_path / "x", 0):
            pass
    assert (tmp_path / "x").read_text() == "first"


def bound(array, n=None, m=None):
    """The bytes that the numbers kept and the choice of them need."""
    kept = np.count_nonzero(array)
    choice = array.size / 8 if n is None else array.size / m * math.log2(math.comb(m, n)) / 8
    return kept * array.itemsize + choice


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("axis", "n", "m"), [(None, None, None), (0, 2, 4), (1, 2, 4), (0, 1, 4), (0, 4, 8), (1, 1, 16), (1, 2, 8)]
)
def test_packed_arrays_take_what_the_information_needs(axis, n, m, dtype, tmp_path):
    array = np.random.default_rng(0).standard_normal((256, 512)).astype(dtype)
    pattern = patterns.Unstructured() if n is None else patterns.NM(n, m, axis=axis)
    mask = jaxprune.magnitude({"kernel": array.astype(np.float32)}, pattern=pattern)["kernel"]
    array = np.where(mask, array, np.zeros_like(array))
    array.reshape(-1)[np.flatnonzero(mask)[0]] = -0.0
    io.save(tmp_path / "a.safetensors", {"x": {"kernel": array, "bias": np.zeros(5, np.float32)}})
    io.pack(tmp_path / "a.safetensors", tmp_path / "p.safetensors", layout="flax" if axis == 0 else "torch")
    assert (tmp_path / "p.safetensors").stat().st_size < 1.02 * bound(array, n, m) + 1000
    io.unpack(tmp_path / "p.safetensors", tmp_path / "u.safetensors")
    assert same_trees(io.load(tmp_path / "u.safetensors"), io.load(tmp_path / "a.safetensors"))
    assert same_trees(io.load(tmp_path / "p.safetensors"), io.load(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("shape", [(4,), (0, 4), (3, 5), (4, 4, 4, 8), (2, 8, 8)])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_packing_gives_back_every_bit(share, shape):
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.int32, np.bool_):
        array = np.where(rng.random(shape) < share, rng.standard_normal(shape), 0).astype(dtype)
        if np.issubdtype(dtype, np.floating) and array.size:
            array.reshape(-1)[0] = np.nan
        parts = _packed.packed(array, None)
        assert same(_packed.unpacked(parts), array)
        assert sum(part.nbytes for part in parts.values()) <= array.nbytes + 8 * array.ndim + 24


def test_pruning_packs_in_one_go(tmp_path):
    params, rules = decoder(), Rules([Rule("mlp", pattern=patterns.NM(2, 4)), Rule(sparsity=0.9)])
    io.save(tmp_path / "in.safetensors", params)
    io.prune(tmp_path / "in.safetensors", tmp_path / "packed.safetensors", rules, packed=True)
    io.prune(tmp_path / "in.safetensors", tmp_path / "plain.safetensors", rules)
    assert same_trees(io.load(tmp_path / "packed.safetensors"), io.load(tmp_path / "plain.safetensors"))
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("packed", "plain")]
    assert sizes[0] < sizes[1]
    with pytest.raises(ValueError, match=r"What is packed is a `.safetensors` file"):
        io.pack(tmp_path / "plain.safetensors", tmp_path / "x.npz")


@pytest.mark.parametrize("transform", ["dft", "dct"])
@pytest.mark.parametrize(
    ("shape", "axes"), [((32, 48), (-2, -1)), ((15, 21), (-2, -1)), ((4, 6, 8, 5), (-4, -3)), ((9, 16), (-1,))]
)
def test_kept_frequencies_take_as_many_numbers(shape, axes, transform, tmp_path):
    kernel = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    io.save(tmp_path / "in.safetensors", {"kernel": kernel, "bias": np.ones(3, np.float32)})
    method = functools.partial(jaxprune.dft, axes=axes, transform=transform)
    masks = method({"kernel": kernel}, 0.75)
    expected = np.asarray(jaxprune.apply({"kernel": kernel}, masks)["kernel"])
    parts = _packed.of_frequencies(expected, masks["kernel"])
    assert parts["values"].size == int(masks["kernel"].count(shape)) == round(0.25 * kernel.size)
    assert sum(part.nbytes for part in parts.values()) <= parts["values"].nbytes + kernel.size / 8 + 8 * (
        len(shape) + 4
    )
    np.testing.assert_allclose(_packed.unpacked(parts), expected, atol=2e-6)
    if (axes, transform) == ((-2, -1), "dft"):
        io.prune(
            tmp_path / "in.safetensors",
            tmp_path / "p.safetensors",
            Rules([Rule(method=jaxprune.dft, sparsity=0.75)]),
            packed=True,
        )
        expected = jaxprune.apply({"kernel": kernel}, masks)["kernel"]
        np.testing.assert_allclose(io.load(tmp_path / "p.safetensors")["kernel"], expected, atol=2e-6)
        io.unpack(tmp_path / "p.safetensors", tmp_path / "u.npz")
        np.testing.assert_allclose(io.load(tmp_path / "u.npz")["kernel"], expected, atol=2e-6)


@pytest.mark.parametrize("part", ["shape", "values", "bitmask"])
def test_damaged_packed_files_are_refused(part, tmp_path):
    array = np.where(np.arange(64).reshape(8, 8) % 3, 0, np.ones((8, 8), np.float32))
    parts = {f"k:{name}": values for name, values in _packed.packed(array, None).items()}
    parts[f"k:{part}"] = parts[f"k:{part}"][:-1] * (-1 if part == "shape" else 1)
    safetensors.numpy.save_file(parts, tmp_path / "bad.safetensors", metadata=_packed.PACKED)
    with pytest.raises(ValueError, match=r"bad.safetensors' is damaged"):
        io.load(tmp_path / "bad.safetensors")


def test_inspection_finds_zeros_patterns_and_energy(tmp_path):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((64, 64), dtype=np.float32)
    nm = np.where(jaxprune.magnitude({"kernel": kernel}, pattern=patterns.NM(2, 4))["kernel"], kernel, 0)
    flat = np.where(rng.random((64, 64)) < 0.5, -1, 1).astype(np.float32)
    flat[0, 0] = np.nan
    io.save(
        tmp_path / "a.npz", {"a": {"kernel": kernel}, "b": {"kernel": nm}, "c": {"kernel": flat}, "n": np.arange(4)}
    )
    a, b, c, n = io.inspect(tmp_path / "a.npz").leaves
    assert (a.zeros, a.nm, a.bad) == (0, None, 0)
    largest = np.sort(np.square(kernel.astype(np.float64)), axis=None)[2048:].sum()
    assert a.energy == pytest.approx(largest / np.square(kernel.astype(np.float64)).sum())
    assert a.norm == pytest.approx(np.linalg.norm(kernel.astype(np.float64)))
    assert (b.zeros, b.nm) == (0.5, (2, 4))
    assert (c.energy, c.bad) == (pytest.approx(2048 / 4095), 1)
    assert (n.zeros, n.norm) == (0.25, None)
    assert "2:4" in str(io.inspect(tmp_path / "a.npz"))


def test_comparison_says_what_changed(tmp_path):
    a = {"k": np.array([1.0, 2.0, 0.0, 4.0]), "same": np.ones(3), "gone": np.ones(2), "shape": np.ones(2)}
    b = {"k": np.array([1.0, 0.0, 3.0, 4.0]), "same": np.ones(3), "new": np.ones(2), "shape": np.ones(3)}
    io.save(tmp_path / "a.npz", a)
    io.save(tmp_path / "b.safetensors", b)
    found = {row.path: row for row in io.compare(tmp_path / "a.npz", tmp_path / "b.safetensors").leaves}
    assert found["k"].error == pytest.approx(math.sqrt(13 / 21))
    assert (found["k"].before, found["k"].after, found["k"].overlap) == (0.25, 0.25, 0.5)
    assert found["same"].error == 0
    assert [found[name].note for name in ("gone", "new", "shape")] == [
        "only in the first", "only in the second", "(2,) became (3,)",
    ]  # fmt: skip
    assert not io.compare(tmp_path / "a.npz", tmp_path / "b.safetensors").same
    assert io.compare(tmp_path / "a.npz", tmp_path / "a.npz").same


def test_numbers_that_are_one_float_and_complex_ones_are_told_apart(tmp_path):
    a = {"n": np.array([2**60, 5]), "c": np.array([1 + 2j, 0], np.complex64), "nan": np.array([np.nan, 1])}
    io.save(tmp_path / "a.npz", a)
    io.save(tmp_path / "b.npz", {**a, "n": a["n"] + 1, "c": a["c"] + np.complex64(1j)})
    rows = {row.path: row for row in io.compare(tmp_path / "a.npz", tmp_path / "b.npz").leaves}
    assert [rows[name].same for name in ("n", "c", "nan")] == [False, False, True]
    assert rows["c"].error == pytest.approx(math.sqrt(2 / 5))
    assert io.inspect(tmp_path / "a.npz").leaves[0].zeros == 0.5


def test_progress_counts_bytes(tmp_path):
    calls = []
    io.save(tmp_path / "in.npz", {"a": np.ones((8, 8), np.float32), "b": np.ones((8, 8), np.float32)})
    rules = Rules([Rule(budget=budgets.global_)])
    io.prune(tmp_path / "in.npz", tmp_path / "out.npz", rules, progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 6 * 256, "a")
    assert calls[-1] == (6 * 256, 6 * 256, "done")
    assert all(done <= total for done, total, _ in calls)
