"""Plans: what they take, and what they refuse to be."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import plain
from zoo.case import floats, randomised, unit_masks

from jaxprune.structured._coupling import couple
from jaxprune.structured._factored import least_factored
from jaxprune.structured._plan import LeafPlan, Plan
from jaxprune.structured._shrink import shrink, shrink_fun


@pytest.fixture
def saved(tmp_path):
    """A valid plan and its file."""
    plan = Plan({"layer/kernel": LeafPlan((3, 6), {1: np.array([0, 2, 5])}), "layer/bias": LeafPlan((6,))})
    plan.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def changed(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_a_saved_plan_is_read_back(saved):
    plan = Plan.load(saved)
    assert plan.leaves["layer/kernel"].small == (3, 3)
    assert plan.leaves["layer/kernel"].keep[1].tolist() == [0, 2, 5]
    assert plan.leaves["layer/bias"] == LeafPlan((6,))
    assert plan.semantics == "masked"


def test_a_damaged_file_is_named(saved):
    saved.write_text(saved.read_text()[:-20])
    with pytest.raises(ValueError, match=r"plan\.json' is not JSON .*Give a file written by `Plan\.save`"):
        Plan.load(saved)


@pytest.mark.parametrize(
    "change",
    [lambda d: d.update(version=2), lambda d: d.update(format="other"), lambda d: d.pop("version")],
    ids=["version", "format", "none"],
)
def test_another_version_or_format_is_refused(saved, change):
    with pytest.raises(ValueError, match="is not a version 1 jaxprune plan"):
        Plan.load(changed(saved, change))


@pytest.mark.parametrize("document", ["[]", "3", "null"])
def test_other_json_is_refused(saved, document):
    saved.write_text(document)
    with pytest.raises(ValueError, match="is not a version 1 jaxprune plan"):
        Plan.load(saved)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("leaves"),
        lambda d: d.pop("semantics"),
        lambda d: d.update(leaves=[1]),
        lambda d: d["leaves"]["layer/kernel"].pop("shape"),
        lambda d: d["leaves"]["layer/kernel"].update(keep=[0, 1]),
        lambda d: d["leaves"]["layer/kernel"].update(keep={"one": [0]}),
        lambda d: d["leaves"]["layer/kernel"].update(keep={"1": [0, "b"]}),
        lambda d: d["leaves"]["layer/kernel"].update(keep={"1": [[0], [0, 1]]}),
        lambda d: d["leaves"]["layer/kernel"].update(stack="first"),
        lambda d: d["leaves"]["layer/kernel"].update(stack=7),
        lambda d: d.update(semantics="other"),
    ],
    ids="leaves semantics list shape keep axis index ragged stack_word stack_range semantics_word".split(),
)
def test_a_part_that_is_missing_or_garbled_is_refused(saved, change):
    with pytest.raises(ValueError, match=r"plan\.json|layer/kernel"):
        Plan.load(changed(saved, change))


def test_a_size_is_below_what_an_index_can_hold(saved):
    def resized(size):
        return changed(saved, lambda d: (d.pop("crc32", None), d["leaves"]["layer/kernel"].update(shape=[size, 6])))

    assert Plan.load(resized(2**63 - 1)).leaves["layer/kernel"].small == (2**63 - 1, 3)
    with pytest.raises(ValueError, match="9223372036854775808 is not a size or an index"):
        Plan.load(resized(2**63))


def test_a_part_belongs_to_the_last_parameter_on_its_path():
    plan = Plan({"w": LeafPlan((4,), {0: np.array([1, 3])}), "a/w": LeafPlan((4,), {0: np.array([0, 2])})})
    four = jnp.arange(4.0)
    state = {"w": {"m": four}, "s": {"a": {"w": {"n": {"m": four}}}}, "x": {"m": four}}
    taken = plan.take(state)
    assert taken["w"]["m"].tolist() == [1, 3]
    assert taken["s"]["a"]["w"]["n"]["m"].tolist() == [0, 2]
    assert taken["x"]["m"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"1": [0, 6]}, r"'layer/kernel' axis 1 needs increasing indices below 6; got \[0, 6\]"),
        ({"1": [-1, 2]}, r"'layer/kernel' axis 1 needs increasing indices below 6; got \[-1, 2\]"),
        ({"1": [2, 2]}, r"'layer/kernel' axis 1 needs increasing indices below 6; got \[2, 2\]"),
        ({"2": [0]}, r"'layer/kernel' names axis 2; the leaf has shape \(3, 6\)"),
        ({"1": []}, r"'layer/kernel' axis 1 keeps nothing"),
        ({"1": [[0], [1]]}, r"'layer/kernel' axis 1 has 2 rows of indices; its stack has 1 layers"),
    ],
)
def test_indices_out_of_range_are_refused(saved, keep, message):
    with pytest.raises(ValueError, match=message):
        Plan.load(changed(saved, lambda d: d["leaves"]["layer/kernel"].update(keep=keep)))


def test_a_plan_of_another_model_is_refused(tmp_path):
    fun, shapes, args = plain.mlp()
    params = randomised(shapes)
    coupling = couple(fun, shapes, *args)
    _, small_params, plan = shrink(fun, params, unit_masks(coupling, params), coupling)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    other, shapes, _ = plain.glu()
    with pytest.raises(ValueError, match="The plan does not have 'down'"):
        jax.eval_shape(shrink_fun(other, loaded), shapes, floats(2, 3))
    with pytest.raises(ValueError, match=r"removes index \d of axis 0 of 'bias', which must stay: the function never"):
        # The same leaves, read by another function.
        jax.eval_shape(shrink_fun(lambda p, x: x @ p["first"], loaded), small_params, floats(2, 3))
    with pytest.raises(ValueError, match=r"'first' has shape \(3, 9\); the plan's .* has shape \(3, 8\)"):
        loaded.take({"first": jnp.ones((3, 9))})


@pytest.mark.dtype_promotion
@pytest.mark.rank_promotion
def test_the_factored_state_of_adafactor_takes_a_step_on_what_is_kept():
    fun, shapes, args = plain.mlp()
    params = randomised(shapes)
    coupling = couple(fun, shapes, *args)
    masks = unit_masks(coupling, params)
    _, small_params, plan = shrink(fun, params, masks, coupling)
    optimizer = optax.adafactor(1e-2, min_dim_size_to_factor=2, momentum=0.9, multiply_by_parameter_scale=False)
    generator = np.random.default_rng(0)
    state = jax.tree.map(
        lambda s: jnp.asarray(generator.random(s.shape), s.dtype) if s.ndim else s, optimizer.init(params)
    )
    small = plan.take(state)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, optimizer.init(small_params))
    kept = plan.leaves["first"].keep[1]
    factored, reduced = (next(s for s in jax.tree.leaves(s, is_leaf=_factored) if _factored(s)) for s in (state, small))
    for name in ("v_row", "v_col"):
        whole, part = getattr(factored, name)["first"], getattr(reduced, name)["first"]
        expected = whole[kept] if whole.shape == (8,) else whole
        assert (np.asarray(part) == np.asarray(expected)).all()
    assert {getattr(reduced, name)["first"].shape for name in ("v_row", "v_col")} == {(3,), (4,)}


def _factored(state):
    return hasattr(state, "v_row")


def test_what_mirrors_a_parameter_may_lack_its_first_key():
    """As moments do that were made of `variables["params"]`; not where two parameters end alike."""
    kept = LeafPlan((4,), {0: np.array([1, 3])})
    leaves = {"params/a/kernel": kept, "params/b/kernel": kept, "params/deep/c/kernel": kept, "x/d": kept, "y/d": kept}
    moments = {"mu": {"a": {"kernel": jnp.arange(4)}, "c": {"kernel": jnp.arange(4)}, "d": jnp.arange(4)}}
    taken = Plan(leaves).take(moments)["mu"]
    assert [taken["a"]["kernel"].tolist(), taken["c"]["kernel"].tolist()] == [[1, 3], [0, 1, 2, 3]]
    assert taken["d"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("factored", "unfactored", "least"),
    [([300], [129], 130), ([300], [], 128), ([16], [9], 10), ([16], [], 2), ([], [], 128), ([200], [50], 128)],
)
def test_the_least_size_that_is_factored_shows_in_a_state(factored, unfactored, least):
    shapes = {str(size): (size, 1000) for size in factored + unfactored} | {"bias": (7,)}
    moments = {str(size): jnp.zeros(size) for size in factored} | {str(size): jnp.zeros(1) for size in unfactored}
    assert least_factored(shapes, moments) == least
