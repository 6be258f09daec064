"""What lives and dies together, and what is kept whole."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from zoo import linen, plain
from zoo.case import floats, kernels

import jaxprune
from jaxprune import filters
from jaxprune.structured._coupling import couple


def groups_of(fun, params, *args, **options):
    """Width and slices of each group."""
    coupling = couple(fun, params, *args, **options)
    return [(g.width, {f"{m.path}[{m.axis}]" for m in g.members}) for g in coupling.groups]


def test_a_hidden_layer_is_one_group():
    fun, params, args = plain.mlp()
    assert groups_of(fun, params, *args) == [
        (8, {"first[1]", "bias[0]", "second[0]"}),
        (6, {"second[1]", "last[0]"}),
    ]


def test_nothing_is_allocated_and_concrete_parameters_give_the_same():
    fun, params, args = plain.mlp()
    concrete = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), params)
    assert couple(fun, params, *args).groups == couple(fun, concrete, jnp.ones((2, 3))).groups


def test_split_outer_prunes_heads_and_inner_prunes_their_width():
    fun, params, args = plain.fused_qkv()
    assert groups_of(fun, params, *args) == [(4, {"qkv[1]", "bias[0]", "o[0]"})]
    assert groups_of(fun, params, *args, split="inner") == [(4, {"qkv[1]", "bias[0]", "o[0]"})]
    outer = couple(fun, params, *args).units["qkv"][1].reshape(3, 4, 4)
    inner = couple(fun, params, *args, split="inner").units["qkv"][1].reshape(3, 4, 4)
    assert (outer == outer[:1, :, :1]).all()
    assert len(np.unique(outer)) == 4
    assert (inner == inner[:1, :1, :]).all()
    assert len(np.unique(inner)) == 4


def test_split_is_asked_place_by_place():
    def fun(p, x):
        for name in ("a", "b"):
            y = (x @ p[name]).reshape(2, 5, 4, 4)
            x = jnp.tanh(y).reshape(2, 5, 16) @ p[name + "_out"]
        return x

    asked = []

    def split(place):
        asked.append(place)
        return "outer" if len(asked) == 1 else "inner"

    params = kernels(a=(3, 16), a_out=(16, 3), b=(3, 16), b_out=(16, 3))
    coupling = couple(fun, params, floats(2, 5, 3), split=split)
    first, second = (coupling.units[name][1].reshape(4, 4) for name in ("a", "b"))
    assert (first == first[:, :1]).all()
    assert (second == second[:1]).all()
    assert asked[0].inputs == (16,)
    assert asked[0].outputs == (4, 4)
    assert "test_coupling.py" in asked[0].source


def test_heads_and_widths_prune_together_where_they_are_axes_of_their_own():
    def fun(p, x):
        y = jnp.einsum("btc,chd->bthd", x, p["in"])
        return jnp.einsum("bthd,hdo->bto", jnp.tanh(y), p["out"])

    params = kernels(**{"in": (3, 4, 6), "out": (4, 6, 2)})
    assert groups_of(fun, params, floats(2, 5, 3)) == [(4, {"in[1]", "out[0]"}), (6, {"in[2]", "out[1]"})]


def test_split_rejects_other_answers():
    fun, params, args = plain.fused_qkv()
    with pytest.raises(ValueError, match="must return"):
        couple(fun, params, *args, split=lambda place: "both")


def test_protect_keeps_inputs_and_outputs_of_a_leaf():
    fun, params, args = plain.mlp()
    coupling = couple(fun, params, *args, protect=filters.named("^second$"))
    assert coupling.groups == ()
    for place in (("first", 1), ("last", 0)):
        assert re.match(r"protected, joined by 'dot_general' at plain\.py:\d+ \(mlp", coupling.frozen[place])
    assert coupling.frozen["second", 0] == coupling.frozen["second", 1] == "protected"


def test_a_gated_unit_is_one_unit_both_ways():
    fun, params, args = plain.glu()
    assert groups_of(fun, params, *args) == [(8, {"gate[1]", "up[1]", "down[0]"})]
    fun, params, args = plain.fused_glu()
    assert groups_of(fun, params, *args) == [(8, {"both[1]", "down[0]"})]


def test_dense_blocks_prune_independently():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        fun, params, args = linen.CASES["densenet"].build()
        coupling = couple(fun, params, *args)
    assert [g.width for g in coupling.groups] == [6, 4, 4, 4, 8]


def test_rotary_pairs_go_together():
    fun, params, args = plain.grouped_query()()
    units = couple(fun, params, *args, split="inner").units["q"][1].reshape(4, 2, 2)
    assert (units[:, 0] == units[:, 1]).all()
    assert len(np.unique(units)) == 2


def test_grouped_queries_go_with_their_keys():
    fun, params, args = plain.grouped_query(heads=4, groups=2)()
    coupling = couple(fun, params, *args)
    keys, queries = coupling.units["k"][1].reshape(2, 4), coupling.units["q"][1].reshape(2, 2, 4)
    assert (queries == keys[:, None, :1]).all()


@pytest.mark.parametrize("reduce", [jnp.sum, jnp.max, jnp.prod])
def test_a_number_may_be_reduced_over_no_axes(reduce):
    """As the density of one sample is."""

    def fun(p, x):
        return reduce(jnp.sum(jax.nn.relu(x @ p["first"]) @ p["last"]), axis=())

    params = kernels(first=(4, 8), last=(8, 3))
    assert [width for width, _ in groups_of(fun, params, floats(4))] == [8, 3]
    assert [width for width, _ in groups_of(jax.vmap(fun, (None, 0)), params, floats(2, 4))] == [8, 3]


def test_multi_query_heads_can_be_pruned():
    fun, params, args = plain.multi_query()
    assert groups_of(fun, params, *args) == [(4, {"q[1]", "o[0]"})]


def test_layers_of_a_scan_keep_their_own_units():
    fun, params, args = plain.scanned()()
    by_name = {g.name: g for g in couple(fun, params, *args).groups}
    assert by_name["layers/up"].stack == 0
    assert by_name["layers/up"].layers == 3
    assert by_name["embed"].stack is None, "the residual stream leaves the body"


def test_a_stacked_leaf_used_outside_its_scan_keeps_one_choice_for_all_layers():
    fun, params, args = plain.scanned()()
    coupling = couple(lambda p, x: (fun(p, x), jnp.square(p["layers"]["up"]).sum()), params, *args)
    assert {g.name: g.stack for g in coupling.groups}["layers/up"] is None


def test_a_leaf_that_is_never_read_follows_its_sibling():
    fun, params, args = plain.mlp()
    tree = {"params": params, "ema": params, "other": kernels(alone=(7, 9))}
    coupling = couple(lambda p, x: fun(p["params"], x), tree, *args)
    assert (coupling.units["ema/first"][1] == coupling.units["params/first"][1]).all()
    assert coupling.frozen["other/alone", 0] == "the function never reads it"


def test_an_unknown_primitive_freezes_and_says_so():
    def fun(p, x):
        y = x @ p["first"]
        y = jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct(y.shape, y.dtype), y)
        return jnp.tanh(y @ p["second"]) @ p["third"]

    params = kernels(first=(3, 8), second=(8, 6), third=(6, 2))
    with pytest.warns(UserWarning, match=r"primitive 'pure_callback'.*'first' axis 1, 'second' axis 0"):
        coupling = couple(fun, params, floats(2, 3))
    assert [g.name for g in coupling.groups] == ["second"]


def test_a_sum_over_removed_positions_that_are_not_known_is_kept_whole_and_named():
    def fun(p, x):
        y = jnp.exp(x @ p["first"]).at[0].add(1.0)
        return (y - y.mean(-1, keepdims=True)) @ p["last"]

    params = kernels(first=(3, 8), last=(8, 2))
    coupling = couple(fun, params, floats(2, 3))
    assert coupling.groups == ()
    assert "reduce_sum" in coupling.frozen["first", 1]
    assert "test_coupling.py" in coupling.frozen["first", 1]
    assert [g.width for g in couple(fun, params, floats(2, 3), semantics="small").groups] == [8]


def test_macs_are_a_polynomial_of_the_kept_counts():
    fun, params, args = plain.mlp()
    coupling = couple(fun, params, *args)
    assert coupling.macs() == 2 * (3 * 8 + 8 * 6 + 6 * 2)
    assert coupling.macs([4, 3]) == 2 * (3 * 4 + 4 * 3 + 3 * 2)
    assert coupling.macs_per_unit() == [2 * (3 + 6), 2 * (8 + 2)]


def test_macs_of_a_scan_count_every_layer():
    fun, params, args = plain.scanned()()
    assert couple(fun, params, *args).macs() == 2 * (3 * 8 + 3 * 2 * 8 * 12 + 8 * 2)


def test_the_table_names_groups_slices_and_reasons():
    fun, params, args = plain.mlp()
    text = str(couple(fun, params, *args))
    assert "first[1], bias[0], second[0]" in text
    assert "first[0]: axis 1 of argument 0" in text


def test_grouped_convolution_prunes_the_same_offset_of_every_group():
    def fun(p, x):
        x = x @ p["in"]
        numbers = ("NWC", "WIO", "NWC")
        x = lax.conv_general_dilated(x, p["conv"], (1,), "SAME", dimension_numbers=numbers, feature_group_count=2)
        return jnp.tanh(x) @ p["out"]

    coupling = couple(fun, {**kernels(out=(12, 2)), **kernels(conv=(3, 4, 12)), "in": floats(3, 8)}, floats(2, 5, 3))
    units = coupling.units["in"][1].reshape(2, 4)
    assert (units[0] == units[1]).all()
    assert len(np.unique(units)) == 4
    outputs = coupling.units["out"][0].reshape(2, 6)
    assert (outputs[0] == outputs[1]).all()
    assert (coupling.units["conv"][1] == units[0]).all()


@pytest.mark.parametrize("name", ["cumsum", "sort"])
def test_order_along_an_axis_keeps_it_whole(name):
    def fun(p, x):
        y = getattr(jnp, name)(x @ p["first"], -1)
        return y.astype(jnp.float32)

    coupling = couple(fun, kernels(first=(3, 8)), floats(2, 3))
    assert name in coupling.frozen["first", 1]


def decoder(depth):
    """A pre-norm decoder of so many layers, as a list."""
    sizes = {"q": (8, 8), "k": (8, 8), "v": (8, 8), "o": (8, 8), "gate": (8, 12), "up": (8, 12), "down": (12, 8)}
    params = {"embed": floats(10, 8), "head": floats(8, 10), "layers": [kernels(**sizes) for _ in range(depth)]}

    def fun(params, tokens):
        x = params["embed"][tokens]
        for layer in params["layers"]:
            q, k, v = (jnp.reshape(x @ layer[name], (*x.shape[:-1], 2, 4)) for name in "qkv")
            scores = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k), axis=-1)
            x = x + jnp.einsum("hts,shd->thd", scores, v).reshape(x.shape) @ layer["o"]
            x = x + (jax.nn.silu(x @ layer["gate"]) * (x @ layer["up"])) @ layer["down"]
        return x @ params["head"]

    return fun, params, jax.ShapeDtypeStruct((3,), jnp.int32)


def test_the_table_of_a_deep_model_is_short():
    fun, params, tokens = decoder(30)
    coupling = couple(fun, params, tokens)
    lines = str(coupling).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 20
    assert len(coupling.groups) == 61
    text = " ".join(" ".join(lines).split())
    assert "residual stream 8" in text
    assert "layers/*/gate x30 12" in text
    assert "layers/*/gate[1], layers/*/up[1], layers/*/down[0]" in text
    assert "layers/*/down[1] x30" in text
    assert "layers/0" not in text


def test_the_table_breaks_long_paths():
    names = ["a_rather_long_name_of_a_module_" * 3 + end for end in ("/kernel", "/out")]
    params = {names[0]: floats(3, 8), names[1]: floats(8, 2)}
    text = str(couple(lambda p, x: jax.nn.relu(x @ p[names[0]]) @ p[names[1]], params, floats(4, 3)))
    assert max(map(len, text.splitlines())) <= 80
    assert f"{names[0]}[1]" in "".join(line.split("  ")[-1].strip() for line in text.splitlines()[1:])


def test_a_closure_over_the_model_is_refused():
    kernel = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"reads none of those it is given\. Call `couple\(fun, params, \*args"):
        couple(lambda params, x: x @ kernel, {"kernel": kernel}, jnp.ones((1, 3)))


def turned(x, cos):
    return jnp.concatenate([x, cos])


def test_what_was_joined_with_what_is_kept_says_where():
    """Each leaf its own line, within functions and calls too; what is frozen itself has no other line."""

    @jax.jit
    def scaled(x, scale):
        return x * scale

    def fun(p, x):
        table = turned(p["table"], x[:2])
        sorted_, added = jnp.sort(p["sorted"], 1), p["added"] + p["sorted"]
        return scaled(x, p["scale"]), table, sorted_, added, p["left"] @ p["right"]

    params = kernels(scale=(1, 3), table=(4, 3), sorted=(2, 5), added=(2, 5), left=(2, 6), right=(6, 2))
    frozen = couple(fun, params, floats(7, 3)).frozen
    here, line = fun.__code__.co_filename.rsplit("/", 1)[-1], fun.__code__.co_firstlineno
    inside = "test_what_was_joined_with_what_is_kept_says_where.<locals>"
    axis = "axis 1 of argument 0, joined by"
    assert frozen["scale", 1] == f"{axis} 'mul' at {here}:{line - 2} ({inside}.scaled)"
    assert frozen["table", 1] == f"{axis} 'concatenate' at {here}:{turned.__code__.co_firstlineno + 1} (turned)"
    assert frozen["sorted", 1] == "'sort' needs all of it"
    assert frozen["added", 1] == f"'sort' needs all of it, joined by 'add' at {here}:{line + 2} ({inside}.fun)"
    assert frozen["left", 0] == "axis 0 of output '4'"


def test_a_coupling_without_units_cannot_be_pruned():
    params = {"kernel": jnp.ones((3, 2))}
    coupling = couple(lambda p, x: x @ p["kernel"], params, jnp.ones((1, 3)))
    with pytest.raises(
        ValueError, match=r"has no units that could go: 'kernel' axis 0, axis 1 of argument 0, joined by"
    ):
        jaxprune.slim(params, 0.5, coupling=coupling)


def test_what_no_output_needs_keeps_nothing_whole():
    """A mask made of the shape of an activation; the rest of what a function returns; in loops and calls too."""

    @jax.jit
    def both(x):
        return jnp.tanh(x), jnp.sort(x, axis=-1)

    def block(x, p):
        steps = jnp.arange(x[..., 0].shape[-1])
        x = jnp.where(steps[:, None] > 0, both(x)[0] @ p["up"] @ p["down"], x)
        x[:, :1] @ x[:, :1].T
        return x, None

    def fun(p, x):
        return jax.lax.scan(jax.checkpoint(block), x @ p["first"], p["layers"])[0] @ p["last"]

    layers = kernels(up=(2, 8, 6), down=(2, 6, 8))
    coupling = couple(fun, {**kernels(first=(3, 8), last=(8, 2)), "layers": layers}, floats(4, 3))
    assert [(group.name, group.width) for group in coupling.groups] == [("first", 8), ("layers/up", 6)]
    assert coupling.macs() == 4 * (3 * 8 + 2 * 2 * 8 * 6 + 8 * 2)
