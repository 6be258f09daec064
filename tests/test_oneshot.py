"""Whole-model pruning: each kernel as `layerwise` prunes it, for the inputs that it really has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune
from jaxprune import layerwise, oneshot
from jaxprune.calibrate import calibrate
from jaxprune.filters import named
from jaxprune.patterns import NM, Unstructured


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def two_layers(p, x):
    return jax.nn.relu(x @ p["up"]) @ p["down"]


PARAMS = {"up": normal(0, 8, 8), "down": normal(1, 8, 8)}
BATCHES = [normal(2, 24, 8), normal(3, 24, 8)]


def gram_of(*inputs):
    return sum(x.T @ x for x in inputs)


@pytest.mark.parametrize("propagate", [True, False])
def test_each_kernel_is_pruned_for_its_inputs(propagate):
    got, masks = jaxprune.sparsegpt(two_layers, PARAMS, BATCHES, 0.5, propagate=propagate)
    up, up_mask = layerwise.sparsegpt(PARAMS["up"], gram_of(*BATCHES), 0.5)
    hidden = [jax.nn.relu(x @ (up if propagate else PARAMS["up"])) for x in BATCHES]
    down, down_mask = layerwise.sparsegpt(PARAMS["down"], gram_of(*hidden), 0.5)
    np.testing.assert_array_equal(masks["up"], up_mask)
    np.testing.assert_array_equal(masks["down"], down_mask)
    np.testing.assert_allclose(got["up"], up, atol=1e-4)
    np.testing.assert_allclose(got["down"], down, atol=1e-4)


@pytest.mark.parametrize("propagate", [True, False])
def test_wanda_sees_what_pruned_kernels_give(propagate):
    got, masks = oneshot.wanda(two_layers, PARAMS, BATCHES, 0.5, propagate=propagate)
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
    masks = oneshot.wanda(fun, params, BATCHES, pattern=pattern)[1]
    options = {} if pattern == Unstructured() else {"pattern": pattern}
    expected = jaxprune.wanda(params, calibrate(fun, params, BATCHES), where=named("experts"), **options)
    np.testing.assert_array_equal(masks["experts"], expected["experts"])
    norms = [np.linalg.norm(np.concatenate(BATCHES).reshape(-1, 4, 2)[..., g], axis=0) for g in range(2)]
    for out in range(6):
        ranked = np.abs(params["conv"][:, 0, out]) * norms[out // 3]
        np.testing.assert_array_equal(masks["conv"][:, 0, out], ranked >= np.sort(ranked)[2])


def test_a_scan_is_pruned_as_the_unrolled_model():
    def block(x, w):
        return x + jnp.tanh(x @ w)

    def scanned(p, x):
        return lax.scan(lambda x, w: (block(x, w), None), x, p["layers"])[0]

    def unrolled(p, x):
        for w in p["layers"]:
            x = block(x, w)
        return x

    stack = normal(4, 3, 8, 8)
    got, masks = jaxprune.sparsegpt(scanned, {"layers": stack}, BATCHES, 0.5)
    expected, expected_masks = jaxprune.sparsegpt(unrolled, {"layers": list(stack)}, BATCHES, 0.5)
    np.testing.assert_array_equal(masks["layers"], jnp.stack(expected_masks["layers"]))
    np.testing.assert_allclose(got["layers"], jnp.stack(expected["layers"]), atol=1e-4)
    np.testing.assert_array_equal(masks["layers"].sum((1, 2)), [32] * 3)


def test_kernels_in_any_layout():
    def fun(p, x):
        return jnp.einsum("bd,hkd->bhk", x, p["split"])

    split = normal(5, 2, 4, 8)
    got, masks = jaxprune.sparsegpt(fun, {"split": split}, BATCHES, pattern=NM(2, 4))
    expected, mask = layerwise.sparsegpt(split.reshape(8, 8).T, gram_of(*BATCHES), pattern=NM(2, 4))
    np.testing.assert_array_equal(masks["split"], mask.T.reshape(2, 4, 8))
    np.testing.assert_allclose(got["split"], expected.T.reshape(2, 4, 8), atol=1e-4)


def test_recurrent_kernels_see_every_step():
    def fun(p, x):
        return lax.scan(lambda h, x: (jnp.tanh(x + h @ p["again"]), None), jnp.zeros((6, 8)), x.reshape(4, 6, 8))[0]

    params = {"again": normal(6, 8, 8)}
    got, masks = jaxprune.sparsegpt(fun, params, BATCHES, 0.5)
    seen = []
    for x in BATCHES:
        h = jnp.zeros((6, 8))
        for step in x.reshape(4, 6, 8):
            seen.append(h)
            h = jnp.tanh(step + h @ params["again"])
    expected, mask = layerwise.sparsegpt(params["again"], gram_of(*seen), 0.5)
    np.testing.assert_array_equal(masks["again"], mask)
    np.testing.assert_allclose(got["again"], expected, atol=1e-3)


def test_kernels_with_one_input_share_its_gram_matrix(monkeypatch):
    calls = []
    damp = layerwise.damp
    monkeypatch.setattr(layerwise, "damp", lambda *args: calls.append(args) or damp(*args))
    told = []
    params = {"gate": normal(7, 8, 8), "up": normal(8, 8, 8)}
    jaxprune.sparsegpt(
        lambda p, x: (x @ p["gate"]) * (x @ p["up"]), params, BATCHES, {"gate": 0.5, "up": 0.25},
        progress=lambda *args: told.append(args),
    )  # fmt: skip
    assert len(calls) == 1
    assert told == [(1, 2, "gate"), (2, 2, "up")]


def test_admm_keeps_more_than_sparsegpt():
    x = normal(9, 64, 8)
    errors = {}
    for method in (jaxprune.sparsegpt, jaxprune.admm):
        pruned, masks = method(lambda p, x: x @ p["kernel"], {"kernel": PARAMS["up"]}, [x], 0.5)
        assert jaxprune.sparsity(pruned, masks) == 0.5
        errors[method.__name__] = float(jnp.sum(jnp.square(x @ (pruned["kernel"] - PARAMS["up"]))))
    assert errors["admm"] < errors["sparsegpt"]


def test_what_cannot_be_pruned_is_said():
    with pytest.raises(ValueError, match=r"'table'.*looked up.*where="):
        jaxprune.sparsegpt(lambda p, i: p["table"][i], {"table": normal(0, 8, 8)}, [jnp.arange(3)])
    with pytest.raises(ValueError, match="batches"):
        jaxprune.sparsegpt(two_layers, PARAMS, [])
    with pytest.raises(ValueError, match=r"'up'.*NaN"):
        jaxprune.sparsegpt(two_layers, PARAMS, [jnp.full((4, 8), jnp.nan)])
