"""Groups that keep equally many units, and the smaller configuration that then describes the model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from zoo import plain
from zoo.case import floats, randomised

import jaxprune
from jaxprune import budgets, structured
from jaxprune._strategies import slim
from jaxprune.structured._leaf_plan import LeafPlan
from jaxprune.structured._shrink import plan_of

LAYERS, HEAD = 2, 2


class LinenBlock(linen.Module):
    width: int
    heads: int
    hidden: int

    @linen.compact
    def __call__(self, x):
        norm = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(self.heads, qkv_features=HEAD * self.heads)(norm)
        hidden = linen.gelu(linen.Dense(self.hidden, name="up")(linen.LayerNorm()(x)))
        return x + linen.Dense(self.width, name="down")(hidden)


class LinenModel(linen.Module):
    width: int
    heads: int
    hidden: int

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(self.width, name="embed")(x)
        for i in range(LAYERS):
            x = LinenBlock(self.width, self.heads, self.hidden, name=f"layer_{i}")(x)
        return linen.Dense(2, name="head")(x)


class NNXBlock(nnx.Module):
    def __init__(self, width, heads, hidden, rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, qkv_features=HEAD * heads, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class NNXModel(nnx.Module):
    def __init__(self, width, heads, hidden, rngs):
        self.embed = nnx.Linear(3, width, rngs=rngs)
        self.layers = nnx.List([NNXBlock(width, heads, hidden, rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def of_linen(width, heads, hidden):
    model = LinenModel(width, heads, hidden)
    return model.apply, jax.eval_shape(model.init, jax.random.key(0), floats(2, 5, 3))


def of_nnx(width, heads, hidden):
    graph, state = nnx.split(nnx.eval_shape(lambda: NNXModel(width, heads, hidden, nnx.Rngs(0))))
    return lambda state, x: nnx.merge(graph, state)(x), state


@pytest.mark.parametrize(
    ("build", "prefix"), [(of_linen, "params/layer_{}"), (of_nnx, "layers/{}")], ids=["linen", "nnx"]
)
@pytest.mark.rank_promotion
def test_the_small_model_is_that_of_a_config_with_the_small_numbers(build, prefix):
    large, abstract = build(8, 4, 12)
    params = randomised(abstract)
    coupling = jaxprune.couple(large, abstract, floats(2, 5, 3), semantics="small")
    masks = slim(params, 0.4, coupling=coupling, budget=budgets.global_, alike=True, keep_at_least=HEAD)
    small, small_params, plan = jaxprune.shrink(large, params, masks, coupling)

    sizes = plan.sizes()
    layers = [prefix.format(i) for i in range(LAYERS)]
    ups = [path for path in sizes.shapes if path.endswith("up/kernel")]
    assert [path.rpartition("/up")[0] for path in ups] == layers
    ((_, (width, hidden)),) = {sizes.shapes[path] for path in ups}
    ((heads, kept_heads),) = {pair for name, pair in sizes.units.items() if name.endswith("query/kernel[1]")}
    assert (width, hidden) != (8, 12)
    assert heads == 4
    native, wanted = build(width, kept_heads, hidden)
    assert jax.tree.map(jnp.shape, small_params) == jax.tree.map(jnp.shape, wanted)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 3)), jnp.float32)
    got, expected = jax.jit(small)(small_params, x), jax.jit(native)(small_params, x)
    assert (got == expected).all()
    assert float(jnp.abs(got).max()) > 0.1
    keeps = [plan.leaves[path].keep[1].tolist() for path in ups]
    assert len({*map(tuple, keeps)}) == LAYERS, "as many of every layer, but not the same"


def chain(widths):
    """A network of hidden layers, each of which is larger in its weights than the one before."""
    sizes = [3, *widths, 2]
    params = {f"dense_{i}": jnp.zeros(shape) for i, shape in enumerate(itertools.pairwise(sizes))}

    def fun(params, x):
        for i in range(len(params)):
            x = jax.nn.relu(x @ params[f"dense_{i}"])
        return x

    drawn = randomised(params)
    scaled = {name: drawn[name] * (1 + i / 4) for i, name in enumerate(drawn)}
    return scaled, jaxprune.couple(fun, params, jnp.ones((1, 3)))


def kept(params, coupling, masks):
    return [small for _, small in plan_of(params, masks, coupling).sizes().units.values()]


def test_groups_alike_keep_the_mean_of_what_each_would():
    params, coupling = chain([8, 8, 8])
    call = lambda **options: slim(  # noqa: E731
        params, 0.5, coupling=coupling, budget=budgets.global_, normalize=False, **options
    )
    apart = kept(params, coupling, call())
    assert len({*apart}) > 1
    assert sum(apart) == 12
    assert kept(params, coupling, call(alike=True)) == [4, 4, 4]
    first, *rest = kept(params, coupling, call(alike="dense_[12]"))
    assert (first, rest) == (apart[0], [round(sum(apart[1:]) / 2)] * 2)
    assert kept(params, coupling, call(alike=["dense_0", "dense_[012]"])) == [first, *rest]
    assert kept(params, coupling, call(alike=True, round_to=3)) == [3, 3, 3]


def test_alike_means_of_one_width():
    params, coupling = chain([8, 6, 8])
    masks = slim(params, 0.5, coupling=coupling, budget=budgets.global_, normalize=False, alike=True)
    first, _, last = kept(params, coupling, masks)
    assert first == last
    with pytest.raises(ValueError, match="equally many units; 'dense' matches 'dense_0' 8, 'dense_1' 6"):
        slim(params, 0.5, coupling=coupling, alike="dense")
    with pytest.raises(
        ValueError, match=r"'conv', which is the first to match no group; there are 'dense_0', 'dense_1'"
    ):
        slim(params, 0.5, coupling=coupling, alike=["dense_0", "conv"])
    with pytest.raises(TypeError, match="`alike` ties the groups of a coupling"):
        slim(params, 0.5, alike=True)


def test_a_budget_of_macs_is_met_by_groups_that_are_cut_together():
    params, coupling = chain([16, 16, 16])
    budget = structured.macs(coupling, 0.4)
    apart = kept(params, coupling, slim(params, coupling=coupling, budget=budget, normalize=False))
    counts = kept(params, coupling, slim(params, coupling=coupling, budget=budget, normalize=False, alike=True))
    assert len({*apart}) > 1
    assert len({*counts}) == 1
    assert coupling.macs(counts) <= 0.4 * coupling.macs() < coupling.macs([counts[0] + 1] * 3)


def test_alike_holds_for_traced_scores_and_earlier_masks():
    params, coupling = chain([8, 8, 8])
    call = lambda params, within=None: slim(  # noqa: E731
        params, 0.5, coupling=coupling, budget=budgets.global_, normalize=False, alike=True, within=within
    )
    masks = call(params)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, jax.jit(call)(params), masks)))
    assert kept(params, coupling, call(params, slim(params, 0.25, coupling=coupling))) == [4, 4, 4]


def test_the_table_has_a_line_for_layers_of_the_same_sizes():
    plan = jaxprune.Plan(
        {
            "layer_0/up": LeafPlan((4, 8), {1: np.arange(3)}),
            "layer_1/up": LeafPlan((4, 8), {1: np.arange(1, 4)}),
            "layer_2/up": LeafPlan((4, 8), {1: np.arange(2)}),
            "head": LeafPlan((4, 2)),
        },
        units={"layer_0/up": (8, 3), "layer_1/up": (8, 3), "layer_2/up": (8, 2)},
    )
    assert str(plan.sizes()).split("\n") == [
        "units of       full  small",
        "layer_*/up x2     8      3",
        "layer_2/up        8      2",
        "",
        "leaf           full  small",
        "layer_*/up x2   4×8    4×3",
        "layer_2/up      4×8    4×2",
        "1 other leaf keeps its shape",
    ]
    assert plan.sizes().shapes["head"] == ((4, 2), (4, 2))


def test_the_units_of_a_plan_are_saved_with_it(tmp_path):
    fun, params, args = plain.scanned()()
    coupling = jaxprune.couple(fun, params, *args)
    params = randomised(params)
    _, _, plan = jaxprune.shrink(fun, params, slim(params, 0.5, coupling=coupling), coupling)
    assert plan.sizes().units["layers/up"] == (12, 6)
    plan.save(tmp_path / "plan.json")
    assert jaxprune.Plan.load(tmp_path / "plan.json").sizes() == plan.sizes()
    with pytest.raises(ValueError, match="keeps 9 of the 8 units of 'up'"):
        jaxprune.Plan({}, units={"up": (8, 9)})
