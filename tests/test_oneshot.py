"""Whole-model pruning: each kernel as `layerwise` prunes it, for the inputs that it really has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune import layerwise, oneshot
from jaxprune._calibration._calibrate import calibrate
from jaxprune.filters import named
from jaxprune.layerwise import _sparsegpt
from jaxprune.patterns import NM, Unstructured


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def two_layers(p, x):
    return jax.nn.relu(x @ p["up"]) @ p["down"]


def scanned(p, x):
    return lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, p["layers"])[0]


def unrolled(p, x):
    for w in p["layers"]:
        x = x + jnp.tanh(x @ w)
    return x


PARAMS = {"up": normal(0, 8, 8), "down": normal(1, 8, 8)}
BATCHES = [normal(2, 24, 8), normal(3, 24, 8)]


def gram_of(*inputs):
    return sum(x.T @ x for x in inputs)


@pytest.mark.parametrize("propagate", [True, False])
def test_each_kernel_is_pruned_for_its_inputs(propagate):
    options = {"damping": 0.01, "correction": 0.0}
    got, masks = jaxprune.sparsegpt(two_layers, PARAMS, BATCHES, 0.5, propagate=propagate, **options)
    up, up_mask = layerwise.sparsegpt(PARAMS["up"], gram_of(*BATCHES), 0.5)
    hidden = [jax.nn.relu(x @ (up if propagate else PARAMS["up"])) for x in BATCHES]
    down, down_mask = layerwise.sparsegpt(PARAMS["down"], gram_of(*hidden), 0.5)
    np.testing.assert_array_equal(masks["up"], up_mask)
    np.testing.assert_array_equal(masks["down"], down_mask)
    np.testing.assert_allclose(got["up"], up, atol=1e-4)
    np.testing.assert_allclose(got["down"], down, atol=1e-4)


@pytest.mark.parametrize("propagate", [True, False])
def test_wanda_sees_what_pruned_kernels_give(propagate):
    got, masks = oneshot.prune(two_layers, PARAMS, BATCHES, layerwise.Wanda(), sparsity=0.5, propagate=propagate)
    first = calibrate(two_layers, PARAMS, BATCHES)
    up = jaxprune.wanda(PARAMS, first, 0.5)["up"]
    np.testing.assert_array_equal(masks["up"], up)
    np.testing.assert_array_equal(got["up"], jnp.where(up, PARAMS["up"], 0))
    then = calibrate(two_layers, {**PARAMS, "up": got["up"]}, BATCHES) if propagate else first
    np.testing.assert_array_equal(masks["down"], jaxprune.wanda(PARAMS, then, 0.5)["down"])


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)])
def test_wanda_of_stacks_and_groups_is_that_of_the_dense_model(pattern):
    """Kernels that all see the input itself, so that nothing is propagated."""

    def fun(p, x):
        images = x.reshape(-1, 4, 2, 1)
        options = {"dimension_numbers": ("NWC", "WIO", "NWC"), "feature_group_count": 2}
        conv = lax.conv_general_dilated(images[..., 0], p["conv"], (1,), "VALID", **options)
        return conv, jnp.einsum("ebi,eoi->ebo", x.reshape(3, 8, 8), p["experts"])

    params = {"conv": normal(10, 4, 1, 6), "experts": normal(11, 3, 5, 8)}
    masks = oneshot.prune(fun, params, BATCHES, layerwise.Wanda(), pattern=pattern)[1]
    options = {} if pattern == Unstructured() else {"pattern": pattern}
    expected = jaxprune.wanda(params, calibrate(fun, params, BATCHES), where=named("experts"), **options)
    np.testing.assert_array_equal(masks["experts"], expected["experts"])
    norms = [np.linalg.norm(np.concatenate(BATCHES).reshape(-1, 4, 2)[..., g], axis=0) for g in range(2)]
    for out in range(6):
        ranked = np.abs(params["conv"][:, 0, out]) * norms[out // 3]
        np.testing.assert_array_equal(masks["conv"][:, 0, out], ranked >= np.sort(ranked)[2])


def test_a_scan_is_pruned_as_the_unrolled_model():
    stack = normal(4, 3, 8, 8)
    got, masks = jaxprune.sparsegpt(scanned, {"layers": stack}, BATCHES, 0.5)
    expected, expected_masks = jaxprune.sparsegpt(unrolled, {"layers": list(stack)}, BATCHES, 0.5)
    np.testing.assert_array_equal(masks["layers"], jnp.stack(expected_masks["layers"]))
    np.testing.assert_allclose(got["layers"], jnp.stack(expected["layers"]), atol=1e-4)
    np.testing.assert_array_equal(masks["layers"].sum((1, 2)), [32] * 3)


@pytest.mark.parametrize("correction", [0.5, 1.0])
def test_kernels_make_up_for_those_before_them(correction):
    options = {"damping": 0.1, "penalty": 1.0, "within": "output"}
    got, masks = jaxprune.admm(two_layers, PARAMS, BATCHES, 0.5, correction=correction, **options)
    up, _ = layerwise.admm(PARAMS["up"], gram_of(*BATCHES), 0.5, **options)
    before, after = (jax.nn.relu(jnp.concatenate(BATCHES) @ kernel) for kernel in (PARAMS["up"], up))
    corrected = layerwise.correct(PARAMS["down"], after.T @ after, after.T @ before, share=correction)
    down, mask = layerwise.admm(corrected, after.T @ after, 0.5, **options)
    np.testing.assert_array_equal(masks["down"], mask)
    np.testing.assert_allclose(got["up"], up, atol=1e-3)
    np.testing.assert_allclose(got["down"], down, atol=1e-3)

    def error(p):
        return float(sum(jnp.sum(jnp.square(two_layers(p, x) - two_layers(PARAMS, x))) for x in BATCHES))

    assert error(got) < error(jaxprune.admm(two_layers, PARAMS, BATCHES, 0.5, correction=0.0, **options)[0])


def residual_by_rows(p, x):
    x = x + jax.nn.relu(x @ p["up"] + 1) @ p["down"] + p["bias"][None]
    return x @ p["head"]


def residual_by_columns(p, x):
    """The same, with the outputs of each product first."""
    hidden = jax.nn.relu(jnp.einsum("io,bi->ob", p["up"], x) + 1)
    x = x + (jnp.einsum("io,ib->ob", p["down"], hidden) + p["bias"][:, None]).T
    return x @ p["head"]


@pytest.mark.parametrize("fun", [residual_by_rows, residual_by_columns])
def test_a_kernel_that_adds_to_a_stream_makes_up_for_all_of_it(fun):
    """The stream has changed by what pruning the embedding has changed."""

    def embedded(p, x):
        return fun(p, x @ p["embed"])

    params = {**PARAMS, "embed": normal(13, 8, 8), "head": normal(14, 8, 4), "bias": normal(15, 8)}
    x, options = BATCHES[0], {"damping": 0.1, "penalty": 1.0, "within": "output"}
    chosen = named("embed|down")
    got, _ = jaxprune.admm(embedded, params, [x], 0.5, where=chosen, correction=0.7, **options)
    embed, _ = layerwise.admm(params["embed"], x.T @ x, 0.5, **options)
    before, now = x @ params["embed"], x @ embed
    was, after = (jax.nn.relu(stream @ params["up"] + 1) for stream in (before, now))
    residual = after.T @ (before - now)
    corrected = layerwise.correct(params["down"], after.T @ after, after.T @ was, share=0.7, residual=residual)
    down, _ = layerwise.admm(corrected, after.T @ after, 0.5, **options)
    np.testing.assert_allclose(got["down"], down, atol=2e-3)


def test_convolutions_make_up_as_products_do():
    """One of a single tap is the product; one in groups, which adds to a stream as well, goes along."""

    def convolved(x, kernel, groups=1):
        dimensions = ("NWC", "WIO", "NWC")
        options = {"dimension_numbers": dimensions, "feature_group_count": groups}
        return lax.conv_general_dilated(x, kernel, (1,), "SAME", **options)

    def by_convolution(p, x):
        x = convolved(x, p["embed"])
        return x + convolved(jax.nn.relu(x), p["down"])

    def by_product(p, x):
        x = x @ p["embed"][0]
        return x + jax.nn.relu(x) @ p["down"][0]

    def in_groups(p, x):
        x = convolved(x, p["embed"])
        return x + convolved(jax.nn.relu(x), p["down"], groups=4)

    params, x = {"embed": normal(16, 1, 8, 8), "down": normal(17, 1, 8, 8)}, BATCHES[0].reshape(4, 6, 8)
    got, expected = (jaxprune.sparsegpt(fun, params, [x], 0.5)[0] for fun in (by_convolution, by_product))
    for name in params:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-3)
    params = {**params, "down": normal(18, 3, 2, 8)}

    def error(correction):
        pruned = jaxprune.sparsegpt(in_groups, params, [x], 0.5, correction=correction)[0]
        return float(jnp.sum(jnp.square(in_groups(pruned, x) - in_groups(params, x))))

    assert error(1.0) < error(0.0)


def test_a_scan_is_corrected_as_the_unrolled_model_and_a_loop_over_time_is_not():
    def recurrent(p, x):
        h = lax.scan(lambda h, x: (jnp.tanh(x + h @ p["again"]), None), jnp.zeros((6, 8)), x.reshape(4, 6, 8))[0]
        return h @ p["head"]

    stack = normal(4, 3, 8, 8)
    got = jaxprune.sparsegpt(scanned, {"layers": stack}, BATCHES, 0.5, correction=1.0)[0]
    expected = jaxprune.sparsegpt(unrolled, {"layers": list(stack)}, BATCHES, 0.5, correction=1.0)[0]
    np.testing.assert_allclose(got["layers"], jnp.stack(expected["layers"]), atol=1e-3)
    assert not np.allclose(got["layers"][2], jaxprune.sparsegpt(scanned, {"layers": stack}, BATCHES)[0]["layers"][2])

    params = {"again": normal(6, 8, 8), "head": normal(7, 8, 8)}
    got, plain = (jaxprune.sparsegpt(recurrent, params, BATCHES, correction=c)[0] for c in (1.0, 0.0))
    np.testing.assert_allclose(got["again"], plain["again"], atol=1e-3)
    assert not np.allclose(got["head"], plain["head"], atol=1e-2)


def test_padding_has_no_part_in_a_correction():
    """Samples that do not count change nothing, even if they are NaN in the stream."""

    def fun(p, x):
        x = x @ p["embed"]
        return x + jax.nn.relu(jnp.nan_to_num(x)) @ p["down"]

    params = {"embed": normal(19, 8, 8), "down": normal(20, 8, 8)}
    padded = jnp.concatenate([BATCHES[0], jnp.full((4, 8), jnp.nan)])
    got = jaxprune.sparsegpt(fun, params, [padded], 0.5, valid=lambda x: jnp.arange(28) < 24)[0]
    expected = jaxprune.sparsegpt(fun, params, [BATCHES[0]], 0.5)[0]
    for name in params:
        np.testing.assert_allclose(got[name], expected[name], atol=1e-4)


def test_a_correction_out_of_range_is_said():
    with pytest.raises(ValueError, match=r"`correction` is the share .* in \[0, 1\]; got 1.5"):
        jaxprune.sparsegpt(two_layers, PARAMS, BATCHES, correction=1.5)


def test_kernels_in_any_layout():
    def fun(p, x):
        return jnp.einsum("bd,hkd->bhk", x, p["split"])

    split = normal(5, 2, 4, 8)
    got, masks = jaxprune.sparsegpt(fun, {"split": split}, BATCHES, pattern=NM(2, 4), damping=0.01)
    expected, mask = layerwise.sparsegpt(split.reshape(8, 8).T, gram_of(*BATCHES), pattern=NM(2, 4))
    np.testing.assert_array_equal(masks["split"], mask.T.reshape(2, 4, 8))
    np.testing.assert_allclose(got["split"], expected.T.reshape(2, 4, 8), atol=1e-4)


def test_recurrent_kernels_see_every_step():
    def fun(p, x):
        return lax.scan(lambda h, x: (jnp.tanh(x + h @ p["again"]), None), jnp.zeros((6, 8)), x.reshape(4, 6, 8))[0]

    params = {"again": normal(6, 8, 8)}
    got, masks = jaxprune.sparsegpt(fun, params, BATCHES, 0.5, damping=0.01)
    seen = []
    for x in BATCHES:
        h = jnp.zeros((6, 8))
        for step in x.reshape(4, 6, 8):
            seen.append(h)
            h = jnp.tanh(step + h @ params["again"])
    expected, mask = layerwise.sparsegpt(params["again"], gram_of(*seen), 0.5)
    np.testing.assert_array_equal(masks["again"], mask)
    np.testing.assert_allclose(got["again"], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("recipe", "value", "options"),
    [
        (jaxprune.sparsegpt, layerwise.SparseGPT, {}),
        (jaxprune.sparsegpt, layerwise.SparseGPT, {"block": 4, "damping": 0.02, "within": "output"}),
        (jaxprune.admm, layerwise.ADMM, {}),
        (jaxprune.admm, layerwise.ADMM, {"iterations": 5, "damping": 0.02, "penalty": 2.0, "within": "layer"}),
    ],
)
@pytest.mark.parametrize("driver", [{}, {"pattern": NM(2, 4), "propagate": False, "where": named("up")}])
def test_recipes_equal_prune_by_their_values(recipe, value, options, driver):
    sparsity = None if driver else {"up": 0.5, "down": 0.25}
    got = recipe(two_layers, PARAMS, BATCHES, sparsity, **options, **driver)
    expected = oneshot.prune(two_layers, PARAMS, BATCHES, value(**options), sparsity=sparsity, **driver)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert not np.array_equal(got[0]["up"], PARAMS["up"])


@dataclasses.dataclass(frozen=True)
class Doubled:
    """A method of a user's own: removes the first inputs, and doubles what is left."""

    calls: list

    statistic = "gram"

    def prepare(self, statistic):
        self.calls.append(("prepare", statistic))
        return jnp.trace(statistic)

    def prune(self, kernel, prepared, sparsity, pattern):
        self.calls.append(("prune", kernel, prepared, sparsity, pattern))
        if kernel.shape[1] == 1:
            raise ValueError("a single output.")
        mask = jnp.broadcast_to(jnp.arange(len(kernel))[:, None] >= round(len(kernel) * sparsity), kernel.shape)
        return jnp.where(mask, 2 * kernel, 0), mask


def test_a_method_of_a_users_own():
    method = Doubled([])
    assert isinstance(method, layerwise.Method)
    sparsity = {"up": jnp.float32(0.25), "down": 0.5}
    got, masks = oneshot.prune(two_layers, PARAMS, BATCHES, method, sparsity=sparsity, correction=0.0)
    up = 2 * PARAMS["up"].at[:2].set(0)
    np.testing.assert_array_equal(got["up"], up)
    np.testing.assert_array_equal(got["down"], 2 * PARAMS["down"].at[:4].set(0))
    np.testing.assert_array_equal(masks["down"], jnp.arange(8)[:, None].repeat(8, 1) >= 4)
    hidden = [jax.nn.relu(x @ up) for x in BATCHES]
    names, values = zip(*((name, rest) for name, *rest in method.calls), strict=True)
    assert names == ("prepare", "prune") * 2
    for measured, inputs in zip(values[::2], (BATCHES, hidden), strict=True):
        np.testing.assert_allclose(measured[0], gram_of(*inputs), rtol=1e-4, atol=1e-2)
    for given, measured, name in zip(values[1::2], values[::2], PARAMS, strict=True):
        np.testing.assert_array_equal(given[0], PARAMS[name])
        np.testing.assert_array_equal(given[1], jnp.trace(measured[0]))


def test_a_method_of_a_users_own_is_told_what_the_pattern_fixes_and_its_errors_are_named():
    method = Doubled([])
    oneshot.prune(lambda p, x: x @ p["w"], {"w": normal(0, 8, 4)}, BATCHES, method, pattern=NM(1, 4, axis=-2))
    assert method.calls[-1][-2:] == (0.75, NM(1, 4))
    with pytest.raises(ValueError, match=r"'w': a single output\."):
        oneshot.prune(lambda p, x: x @ p["w"], {"w": normal(0, 8, 1)}, BATCHES, method)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistic": "variance"}, r"`Changed.statistic` must be 'gram' or 'norm'; got 'variance'"),
        (
            {"prune": lambda kernel, *_: (kernel.astype(jnp.bfloat16), kernel > 0)},
            r"'up': `Changed.prune` .* got bfloat16 \(8, 8\) and bool",
        ),
        (
            {"prune": lambda kernel, *_: (kernel, kernel)},
            r"'up': .* the mask as bool \(8, 8\); got .* and float32 \(8, 8\)",
        ),
        ({"prune": lambda kernel, *_: (kernel, kernel[:4] > 0)}, r"'up': .* and bool \(4, 8\)"),
    ],
)
def test_a_method_that_does_not_keep_to_the_protocol_is_named(changes, message):
    method = type("Changed", (Doubled,), {name: staticmethod(c) if callable(c) else c for name, c in changes.items()})
    with pytest.raises(ValueError, match=message):
        oneshot.prune(two_layers, PARAMS, BATCHES, method([]))


def test_methods_without_gram_matrices_are_not_corrected():
    with pytest.raises(ValueError, match=r"`correction` needs the Gram matrices.*Wanda.*measures their norms"):
        oneshot.prune(two_layers, PARAMS, BATCHES, layerwise.Wanda(), correction=0.5)


def test_kernels_with_one_input_share_its_gram_matrix(monkeypatch):
    calls = []
    damp = layerwise.damp
    monkeypatch.setattr(_sparsegpt, "damp", lambda *args, **options: calls.append(args) or damp(*args, **options))
    reports = []
    params = {"gate": normal(7, 8, 8), "up": normal(8, 8, 8)}
    jaxprune.sparsegpt(
        lambda p, x: (x @ p["gate"]) * (x @ p["up"]), params, BATCHES, {"gate": 0.5, "up": 0.25},
        progress=lambda *args: reports.append(args),
    )  # fmt: skip
    assert len(calls) == 1
    assert reports == [(1, 2, "gate"), (2, 2, "up")]


def test_admm_keeps_more_than_sparsegpt():
    x = normal(9, 64, 8)
    errors = {}
    for method in (jaxprune.sparsegpt, jaxprune.admm):
        pruned, masks = method(
            lambda p, x: x @ p["kernel"], {"kernel": PARAMS["up"]}, [x], 0.5, damping=0.01, within="output"
        )
        assert jaxprune.sparsity(pruned, masks) == 0.5
        errors[method.__name__] = float(jnp.sum(jnp.square(x @ (pruned["kernel"] - PARAMS["up"]))))
    assert errors["admm"] < errors["sparsegpt"]


def least_squares(kernel, gram, mask):
    """The float64 fit of the kept weights of each output."""
    k, g, solved = np.asarray(kernel, np.float64), np.asarray(gram, np.float64), np.zeros(kernel.shape)
    for column, kept in enumerate(np.asarray(mask).T):
        solved[kept, column] = np.linalg.solve(g[np.ix_(kept, kept)], g[kept] @ k[:, column])
    return solved


@pytest.mark.parametrize("propagate", [True, False])
def test_repair_is_least_squares_of_each_layer_on_any_mask(propagate):
    masks = jaxprune.random(jax.random.key(0), PARAMS, 0.5)
    got = jaxprune.oneshot.repair(two_layers, PARAMS, masks, BATCHES, damping=0.0, propagate=propagate)
    x = np.concatenate(BATCHES).astype(np.float64)
    up = least_squares(PARAMS["up"], x.T @ x, masks["up"])
    hidden = np.maximum(x @ (up if propagate else np.asarray(PARAMS["up"], np.float64)), 0)
    down = least_squares(PARAMS["down"], hidden.T @ hidden, masks["down"])
    np.testing.assert_allclose(got["up"], up, atol=1e-3)
    np.testing.assert_allclose(got["down"], down, atol=1e-3)
    for name in PARAMS:
        assert not np.asarray(got[name])[~np.asarray(masks[name])].any()

    def loss(p):
        return float(np.square(two_layers(p, jnp.asarray(x, jnp.float32)) - two_layers(PARAMS, np.float32(x))).sum())

    assert loss(got) < 0.8 * loss(jaxprune.apply(PARAMS, masks))


def test_repair_takes_masks_of_channels_and_leaves_the_rest_masked():
    params = {**PARAMS, "table": normal(12, 5, 8)}
    masks = {
        "up": jnp.arange(8)[:, None] > 2,
        "down": jnp.arange(8)[None] != 4,
        "table": jnp.arange(40).reshape(5, 8) > 7,
    }

    def fun(p, i):
        return two_layers(p, p["table"][i])

    batches = [jnp.arange(1, 5), jnp.arange(2, 5)]
    with pytest.warns(UserWarning, match=r"0 in every sample \('down: 1 of 8'\)"):  # a unit that no sample activates
        got = jaxprune.oneshot.repair(fun, params, masks, batches, where=~named("table"))
    np.testing.assert_array_equal(got["table"], jnp.where(masks["table"], params["table"], 0))
    assert not got["up"][:3].any()
    assert not got["down"][:, 4].any()
    assert (got["up"][3:] != PARAMS["up"][3:]).all()
    with pytest.warns(UserWarning, match="0 in every sample"):
        none = jaxprune.oneshot.repair(fun, params, {"up": None, "down": masks["down"], "table": None}, batches)
    assert (none["up"] == PARAMS["up"]).all()


def test_a_scan_is_repaired_as_the_unrolled_model():
    stack = normal(4, 3, 8, 8)
    masks = jaxprune.magnitude({"layers": stack}, 0.5)
    got = jaxprune.oneshot.repair(scanned, {"layers": stack}, masks, BATCHES)
    expected = jaxprune.oneshot.repair(unrolled, {"layers": list(stack)}, {"layers": list(masks["layers"])}, BATCHES)
    np.testing.assert_allclose(got["layers"], jnp.stack(expected["layers"]), atol=1e-4)


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)])
def test_swaps_of_a_whole_model(pattern):
    masks = oneshot.prune(two_layers, PARAMS, BATCHES, layerwise.Wanda(), pattern=pattern)[1]
    got, refined = oneshot.swap(two_layers, PARAMS, masks, BATCHES, pattern=pattern)
    up = layerwise.swap(PARAMS["up"], gram_of(*BATCHES), masks["up"], pattern=pattern)
    hidden = [jax.nn.relu(x @ jnp.where(up, PARAMS["up"], 0)) for x in BATCHES]
    np.testing.assert_array_equal(refined["up"], up)
    np.testing.assert_array_equal(
        refined["down"], layerwise.swap(PARAMS["down"], gram_of(*hidden), masks["down"], pattern=pattern)
    )
    np.testing.assert_array_equal(got["up"], jnp.where(up, PARAMS["up"], 0))
    assert (refined["up"] != masks["up"]).any()


@pytest.mark.parametrize("method", [jaxprune.oneshot.repair, oneshot.swap])
def test_masks_that_do_not_fit_are_named(method):
    with pytest.raises(ValueError, match=r"mask of 'up' must be a boolean array.*\(8, 8\); got float32 \(8, 8\)"):
        method(two_layers, PARAMS, {"up": jnp.ones((8, 8)), "down": None}, BATCHES)
    with pytest.raises(ValueError, match=r"mask of 'down'.*got bool \(4, 8\)"):
        method(two_layers, PARAMS, {"up": None, "down": jnp.ones((4, 8), bool)}, BATCHES)
    with pytest.raises(ValueError, match=r"mask of 'down'.*got Packed.*unpack it"):
        method(two_layers, PARAMS, jaxprune.pack(jaxprune.magnitude(PARAMS, 0.5)), BATCHES)
    with pytest.raises(ValueError, match=r"'table'.*looked up"):
        method(
            lambda p, i: p["table"][i], {"table": normal(0, 8, 8)}, {"table": jnp.ones((8, 8), bool)}, [jnp.arange(3)]
        )
    with pytest.raises(ValueError, match=r"masks must have the structure.*'down'"):
        method(two_layers, PARAMS, {"up": None}, BATCHES)


@pytest.mark.parametrize("correction", [0.0, 0.5])
@pytest.mark.parametrize("method", [jaxprune.sparsegpt, jaxprune.admm])
def test_inputs_that_are_not_finite_are_said_of_which_kernel(method, correction):
    broken = BATCHES[0].at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match="'up': batch 0 gives inputs with NaN"):
        method(two_layers, PARAMS, [broken], correction=correction)


def test_what_cannot_be_pruned_is_said():
    with pytest.raises(ValueError, match=r"'table'.*looked up.*where="):
        jaxprune.sparsegpt(lambda p, i: p["table"][i], {"table": normal(0, 8, 8)}, [jnp.arange(3)])
    with pytest.raises(ValueError, match="batches"):
        jaxprune.sparsegpt(two_layers, PARAMS, [])
    with pytest.raises(ValueError, match=r"'up'.*NaN"):
        jaxprune.sparsegpt(two_layers, PARAMS, [jnp.full((4, 8), jnp.nan)])
