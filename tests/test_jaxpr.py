"""The walker, the forest and the tables of rules, each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo.case import floats, kernels

from jaxprune._jaxpr import products
from jaxprune._jaxpr.coupling import biases, collectives, integers, labels, ordering
from jaxprune._jaxpr.coupling.forest import Forest
from jaxprune._jaxpr.primitives import (
    CALLS,
    COMPOSED,
    CONTRACTIONS,
    CONTROL,
    GENERATED,
    MATRICES,
    MAY_MULTIPLY,
    factors,
)
from jaxprune._jaxpr.roles import rules as roles
from jaxprune._jaxpr.roles import stored
from jaxprune._jaxpr.shrinking import removed
from jaxprune._jaxpr.shrinking import rules as shrinking
from jaxprune._jaxpr.staging.flattening import flatten
from jaxprune._jaxpr.tracing import trace
from jaxprune._jaxpr.walker import jaxpr_and_constants, walk
from jaxprune.structured._coupling import couple


def spread(forest, *arrays):
    return [forest.find(np.asarray(x)).tolist() for x in arrays]


def test_joined_labels_have_one_root_the_smallest():
    forest = Forest()
    a, b, c = (forest.fresh(3) for _ in range(3))
    forest.union(b, c)
    forest.union(c[::-1], a)
    assert spread(forest, a, b, c) == [[1, 2, 3], [3, 2, 1], [3, 2, 1]]


def test_a_join_keeps_the_larger_tag_whichever_side_it_is_on():
    for order in (1, -1):
        forest = Forest()
        a, b = forest.fresh(2, tag=1), forest.fresh(2)
        forest.tag[b] = [5, 0]
        forest.union(*(a, b)[::order])
        assert forest.tags(a).tolist() == forest.tags(b).tolist() == [5, 1]


def test_a_join_keeps_the_reasons_that_are_there():
    forest = Forest()
    a, b = forest.fresh(3), forest.fresh(3)
    forest.freeze(b[1:], "first")
    forest.freeze(a[2:], "second")
    forest.union(a, b)
    assert forest.is_frozen(a).tolist() == [False, True, True]
    assert forest.why(int(a[1])) == "first"
    assert [forest.why(int(labels[2])) for labels in (a, b)] == ["second", "first"]
    forest.freeze(a, "third")
    assert [forest.why(int(label)) for label in b] == ["third", "first", "first"]


def test_many_labels_that_meet_at_random_are_joined_as_one_at_a_time():
    generator = np.random.default_rng(0)
    forest, plain = Forest(), {i: {i} for i in range(1, 2001)}
    everything = forest.fresh(2000)
    for _ in range(12):
        a, b = (generator.choice(everything, 150) for _ in range(2))
        forest.union(a, b)
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            if plain[x] is not plain[y]:
                joined = plain[x] | plain[y]
                for label in joined:
                    plain[label] = joined
    assert forest.find(everything).tolist() == [min(plain[label]) for label in everything.tolist()]


def test_frozen_labels_of_one_reason_are_one_and_take_no_memory():
    forest = Forest()
    a, b = forest.frozen(10**9, "input"), forest.frozen(4, "input")
    assert a[0] == b[0]
    assert a.strides == (0,)
    assert forest.size == 2


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((6,), (2, 3), [([0], [0, 1])]),
        ((4, 6), (4, 2, 3), [([0], [0]), ([1], [1, 2])]),
        ((4, 6), (8, 3), [([0, 1], [0, 1])]),
        ((2, 1, 3), (2, 3), [([0], [0]), ([1], []), ([2], [1])]),
        ((6,), (1, 6), [([], [0]), ([0], [1])]),
        ((2, 3, 5), (6, 5), [([0, 1], [0]), ([2], [1])]),
    ],
)
def test_a_reshape_is_aligned_in_its_finest_runs(before, after, expected):
    assert list(factors(before, after)) == expected


def test_the_walker_calls_the_rule_of_each_equation_and_drops_what_is_no_longer_read():
    jaxpr, constants = jaxpr_and_constants(jax.make_jaxpr(lambda x: jnp.sin(jnp.sin(x) * x) + 1)(1.0))
    met = []

    def rule(context, eqn, *operands):
        met.append((context, eqn.primitive.name, operands))
        return [f"{eqn.primitive.name}({', '.join(operands)})"]

    (out,) = walk(jaxpr, ["x"], rule, "context", literal=str, constants=constants)
    assert out == "add(sin(mul(sin(x), x)), 1.0)"
    assert [name for _, name, _ in met] == ["sin", "mul", "sin", "add"]
    assert {context for context, _, _ in met} == {"context"}


def test_the_walker_keeps_every_value_if_asked():
    jaxpr, _ = jaxpr_and_constants(jax.make_jaxpr(lambda x: jnp.sin(jnp.cos(x)))(1.0))
    kept = {}
    walk(jaxpr, [0], lambda _, eqn, x: [x + 1], None, literal=float, keep=kept)
    assert sorted(kept.values()) == [0, 1, 2]


def test_the_walker_refuses_a_wrong_number_of_values():
    jaxpr, _ = jaxpr_and_constants(jax.make_jaxpr(jnp.sin)(1.0))
    with pytest.raises(ValueError, match="zip"):
        walk(jaxpr, [0, 0], lambda *_: [0], None, literal=float)
    with pytest.raises(ValueError, match="zip"):
        walk(jaxpr, [0], lambda *_: [0, 0], None, literal=float)


def test_a_shared_jaxpr_is_walked_at_each_call_with_its_own_labels():
    """A layer that is jitted once and called twice: what it ties at one call it does not tie to the other."""

    @jax.jit
    def layer(x, up, down):
        return jnp.tanh(x @ up) @ down

    def fun(p, x):
        return layer(layer(x, p["a"], p["b"]), p["c"], p["d"])

    params = kernels(a=(4, 6), b=(6, 4), c=(4, 6), d=(6, 4))
    traced = trace(fun, params, floats(2, 4))
    called = [eqn.params["jaxpr"] for eqn in traced.jaxpr.eqns if eqn.primitive.name in ("jit", "pjit")]
    assert len(called) == 2
    assert called[0] is called[1], "JAX traced it twice, so this shows nothing"
    coupling = couple(fun, params, floats(2, 4))
    members = [{f"{m.path}[{m.axis}]" for m in group.members} for group in coupling.groups]
    assert members == [{"a[1]", "b[0]"}, {"b[1]", "c[0]"}, {"c[1]", "d[0]"}]


def test_an_unknown_primitive_freezes_what_it_touches_and_a_warning_names_it_and_the_paths():
    def fun(p, x, y):
        kernel = jnp.linalg.solve(jnp.eye(8), p["first"])
        return x @ kernel, jnp.tanh(y @ p["second"]) @ p["third"]

    params = kernels(first=(8, 3), second=(3, 6), third=(6, 2))
    named = (
        r"does not know the primitive 'custom_linear_solve', so it keeps whole what it touches: "
        r"'first' axis 0, 'first' axis 1\.$"
    )
    with pytest.warns(UserWarning, match=named):
        coupling = couple(fun, params, floats(2, 8), floats(2, 3))
    reason = "'custom_linear_solve' has no rule and touches it: what it solves is not in the program"
    assert coupling.frozen["first", 0] == reason
    assert [group.name for group in coupling.groups] == ["second"]


def test_a_reduction_by_a_function_of_the_users_is_not_taken_for_a_call():
    """It holds the jaxpr of how two numbers are combined, with as many inputs as it has operands."""

    def peaks(x):
        return jax.lax.reduce(x, np.float32(0), lambda a, b: jax.lax.select(a * a > b * b, a, b), (0,))

    def fun(p, x):
        return peaks((x @ p["first"]).T)[:, None] * peaks(p["first"])[None] @ p["second"]

    params = jax.tree.map(
        lambda k: jnp.arange(k.size, dtype=k.dtype).reshape(k.shape), kernels(first=(4, 8), second=(8, 2))
    )
    x = jnp.eye(5, 4)
    traced = trace(fun, params, x)
    flat = flatten(traced, [0])
    (got,) = jax.core.eval_jaxpr(flat.jaxpr, flat.consts, *params.values(), x)
    assert got.tolist() == fun(params, x).tolist()
    assert products.count(traced).by_leaf == {0: 5 * 4 * 8, 1: 5 * 8 * 2}


def test_every_rule_of_a_shape_has_a_rule_of_labels():
    """What can be evaluated small must first have been labelled; calls and loops are known to every table."""
    evaluated = set(shrinking.RULES) | set(shrinking.NESTED)
    for table in (evaluated, removed.PARTS, products.RULES, roles.RULES, stored.RULES, biases.RULES, integers.RULES):
        assert set(table) <= set(labels.RULES)
    assert set(CONTROL) <= set(products.RULES) & set(roles.RULES) & set(biases.RULES)
    assert {*CONTROL, *CALLS, *COMPOSED, "shard_map"} == set(shrinking.NESTED)
    assert set(CONTRACTIONS) <= set(products.RULES) & set(roles.RULES) & set(biases.RULES)
    assert set(labels.RULES) & MAY_MULTIPLY == MATRICES
    shaped = {"broadcast_in_dim", "reshape", "slice", "split", "pad", "gather", "dynamic_slice"}
    assert shaped | GENERATED <= set(shrinking.RULES)


def test_what_is_labelled_as_known_at_removed_positions_can_be_computed_there():
    """Convolutions, scatters, products of groups, factors and collectives say that it is 0 or that it is not known."""
    without = set(labels.RULES) - set(shrinking.NESTED) - set(removed.PARTS)
    without -= {*collectives.RULES, "psum", "pmax", "pmin", "ragged_dot_general"}
    without -= {name for name, rule in labels.RULES.items() if rule in (ordering.matrices, labels.watched)}
    without -= {"dim_as_value"}  # a number, which has no positions
    assert {name for name in without if not name.startswith("scatter")} == {"conv_general_dilated"}
    assert removed.ENDS & set(shrinking.RULES) == set(), "these take in what is removed"
