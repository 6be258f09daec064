"""A shrunk model in a folder: whole or not at all, and read back in a new process."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxprune
from jaxprune import _atomic, structured
from jaxprune.structured import _folder
from jaxprune.structured._leaf_plan import LeafPlan

PLAN = jaxprune.Plan({"a/w": LeafPlan((2, 4), {1: np.array([0, 2])}), "b": LeafPlan((3,))}, units={"a/w": (4, 2)})
PARAMS = {"a": {"w": jnp.array([[1.0, 2.5], [3.0, -0.0]], jnp.bfloat16)}, "b": jnp.array([1, 2, 3], jnp.int32)}


def fun(params, x):
    return (x @ params["a"]["w"]).sum() * params["b"].astype(x.dtype)


def bits(values):
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(values)]


def test_a_folder_is_read_back_bit_by_bit(tmp_path):
    structured.save(tmp_path / "small", PARAMS, PLAN)
    small, params, plan = structured.load(tmp_path / "small", fun)
    assert bits(params) == bits(PARAMS)
    assert jax.tree.structure(params) == jax.tree.structure(PARAMS)
    assert plan.sizes() == PLAN.sizes()
    assert small(params, jnp.ones((1, 2), jnp.bfloat16)).tolist() == [6.5, 13.0, 19.5]
    record = json.loads((tmp_path / "small" / "model.json").read_text())
    assert record["versions"]["jaxprune"] == jaxprune.__version__
    assert record["units"] == {"a/w": [4, 2]}
    assert record["shapes"]["a/w"] == [[2, 4], [2, 2]]
    with np.load(tmp_path / "small" / "params.npz") as file:
        assert file["b"].tolist() == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


@pytest.mark.parametrize("dtype", ["float64", "float16", "float8_e4m3fn", "bool", "complex64", "int4"])
def test_every_dtype_comes_back(tmp_path, dtype):
    values = {"a/w": np.arange(4).reshape(2, 2).astype(jnp.dtype(dtype)), "scalar": np.zeros((), jnp.dtype(dtype))}
    records = _folder._write_arrays(tmp_path / "params.npz", values)
    with jax.enable_x64(True):
        assert bits(_folder._read_arrays(tmp_path / "params.npz", records)) == bits(values)


def test_a_new_process_needs_the_function_alone(tmp_path):
    structured.save(tmp_path / "small", PARAMS, PLAN)
    program = """
        import sys, jax.numpy as jnp
        from jaxprune import structured
        fun = lambda params, x: (x @ params["a"]["w"]).sum() * params["b"].astype(x.dtype)
        small, params, _ = structured.load(sys.argv[1], fun)
        print(small(params, jnp.ones((1, 2), jnp.bfloat16)).tolist())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[6.5, 13.0, 19.5]"


def test_a_module_is_filled_from_its_shapes(tmp_path):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)])
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.layers[1](self.drop(jnp.tanh(self.layers[0](x)), deterministic=True))

    def run(state, x):
        return nnx.merge(graph, state)(x)

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    x = jnp.ones((2, 3))
    coupling = jaxprune.couple(run, state, x)
    small, params, plan = jaxprune.shrink(run, state, jaxprune.slim(state, 0.5, coupling=coupling), coupling)
    structured.save(tmp_path / "small", params, plan)
    with pytest.raises(ValueError, match=r"more than dictionaries of arrays\. Give `like=`"):
        structured.load(tmp_path / "small", run)
    again, loaded, _ = structured.load(tmp_path / "small", run, nnx.eval_shape(lambda: nnx.state(Net(nnx.Rngs(0)))))
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    assert (again(loaded, x) == small(params, x)).all()
    assert plan.sizes().units == {"layers/0/kernel": (8, 4)}


def test_nothing_is_written_over_and_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(ValueError, match="is there already, and nothing is written over"):
        structured.save(taken, PARAMS, PLAN)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is there already"):
        structured.save(tmp_path / "link", PARAMS, PLAN)
    with pytest.raises(ValueError, match=r"missing' is no folder"):
        structured.save(tmp_path / "missing" / "small", PARAMS, PLAN)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_folder._documents, "write", full)
    with pytest.raises(OSError, match="No space left"):
        structured.save(tmp_path / "small", PARAMS, PLAN)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "taken"]
    assert not any(taken.iterdir())


def test_files_are_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(_atomic, "_sync", lambda path: order.append((path.name, (tmp_path / "small").exists())))
    structured.save(tmp_path / "small", PARAMS, PLAN)
    assert {name for name, named in order if not named} >= {"model.json", "params.npz", "plan.json"}
    assert order[-1] == (tmp_path.name, True)


def test_what_is_not_of_the_plan_is_refused(tmp_path):
    wide = {**PARAMS, "b": jnp.zeros(4)}
    with pytest.raises(ValueError, match=r"'b' has shape \(4,\); by the plan it is \(3,\)"):
        structured.save(tmp_path / "small", wide, PLAN)
    with pytest.raises(ValueError, match="'b' is not in the parameters"):
        structured.save(tmp_path / "small", {"a": PARAMS["a"]}, PLAN)
    with pytest.raises(ValueError, match="'c' is not in the plan"):
        structured.save(tmp_path / "small", {**PARAMS, "c": PARAMS["b"]}, PLAN)
    structured.save(tmp_path / "small", PARAMS, PLAN)
    with pytest.raises(ValueError, match="'b' is not in `like`"):
        structured.load(tmp_path / "small", fun, {"a": PARAMS["a"]})


def swap(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("params.npz", lambda data: data[:-30], "params.npz' is damaged"),
        ("params.npz", lambda data: data.replace(b"\x01\0\0\0\x02\0\0\0", b"\x09\0\0\0\x02\0\0\0"), "is damaged"),
        ("params.npz", lambda _: b"", "is damaged"),
        ("model.json", lambda data: data.replace(b'"jax"', b'"xla"'), "model.json' is damaged"),
        ("model.json", lambda _: b"{}", "is not a version 1 jaxprune small model"),
        ("plan.json", lambda data: data.replace(b"[0, 2]", b"[0, 3]"), "plan.json' is damaged"),
    ],
    ids=["cut", "flipped", "empty", "record", "other", "plan"],
)
def test_a_damaged_folder_is_named(tmp_path, name, change, words):
    structured.save(tmp_path / "small", PARAMS, PLAN)
    swap(tmp_path / "small", name, change)
    with pytest.raises(ValueError, match=words):
        structured.load(tmp_path / "small", fun)


def test_files_of_two_models_do_not_mix(tmp_path):
    structured.save(tmp_path / "one", PARAMS, PLAN)
    structured.save(tmp_path / "two", {**PARAMS, "b": PARAMS["b"] + 1}, PLAN)
    (tmp_path / "one" / "params.npz").replace(tmp_path / "two" / "params.npz")
    with pytest.raises(ValueError, match="'b' does not have the checksum written with it"):
        structured.load(tmp_path / "two", fun)
