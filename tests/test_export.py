"""Small functions leave Python: exported with symbolic sizes, written, read back, and run at other sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from zoo import equinox_models, haiku_models, linen, nnx_models, plain
from zoo.case import compare, jitted, randomised, unit_masks

import jaxprune
from jaxprune._jaxpr import symbols
from jaxprune.formats import StoredKernel, Strips
from jaxprune.formats._deploy import deployed_fun

_MODELS = {"plain": plain, "linen": linen, "nnx": nnx_models, "equinox": equinox_models, "haiku": haiku_models}
_DEFAULT = {("nnx", "conv_eval"), ("plain", "scanned")}


def _shrunk(fun, params, *args, **options):
    """The small function of its other arguments, at half of each group, and the masked one."""
    coupling = jaxprune.couple(fun, params, *args, **options)
    params = randomised(params)
    masks = unit_masks(coupling, params)
    small, small_params, plan = jaxprune.shrink(fun, params, masks, coupling)
    assert any(leaf.keep for leaf in plan.leaves.values())
    masked = jaxprune.apply(params, masks)
    return (lambda *xs: jitted(small)(small_params, *xs)), (lambda *xs: plan.take(jitted(fun)(masked, *xs)))


def _sizes(text, **options):
    return jax.ShapeDtypeStruct(export.symbolic_shape(text, **options), jnp.float32)


def _exported(function, *args):
    """Written and read back."""
    return export.deserialize(export.export(jax.jit(function))(*args).serialize()).call


def _array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _filled(x, batch):
    """Values for an abstract argument, or what it is."""
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    shape = x.shape if batch is None else (batch, *x.shape[1:])
    whole = np.issubdtype(x.dtype, np.integer)
    return jnp.asarray(np.arange(np.prod(shape)).reshape(shape) % 5, x.dtype) if whole else _array(*shape)


@pytest.mark.parametrize(
    ("framework", "name"),
    [
        pytest.param(framework, name, marks=[] if (framework, name) in _DEFAULT else pytest.mark.slow)
        for framework, module in _MODELS.items()
        for name, case in module.CASES.items()
        if case.batched
    ],
)
def test_model_of_the_zoo_at_a_batch_of_any_size(framework, name):
    case = _MODELS[framework].CASES[name]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        fun, params, args = case.build()
        small, masked = _shrunk(fun, params, *args, **case.options)
        scope = export.SymbolicScope()
        sizes = [
            jax.ShapeDtypeStruct((*export.symbolic_shape("b", scope=scope), *x.shape[1:]), x.dtype)
            if i in case.batched
            else x
            for i, x in enumerate(args)
        ]
        call = _exported(small, *sizes)
        for batch in (1, 7):
            given = [_filled(x, batch if i in case.batched else None) for i, x in enumerate(args)]
            got = call(*given)
            compare(got, small(*given), 1e-6)
            compare(got, masked(*given), case.tolerance)


def _merged_heads(params, x):
    """Attention that merges its heads with the batch."""
    batch, length, _ = x.shape
    q = (x @ params["q"]).reshape(batch, length, 4, 4).transpose(0, 2, 1, 3).reshape(-1, length, 4)
    mixed = jax.nn.softmax(q @ q.swapaxes(1, 2)) @ q
    return mixed.reshape(batch, 4, length, 4).transpose(0, 2, 1, 3).reshape(batch, length, 16) @ params["out"]


def _recurrent(params, x):
    def step(hidden, x):
        hidden = jnp.tanh(x @ params["q"] + hidden @ params["mix"])
        return hidden, hidden @ params["out"]

    return jax.lax.scan(step, jnp.zeros((x.shape[0], 16)), x.swapaxes(0, 1))[1]


def _normalized(params, x):
    """Statistics over a pruned axis and over symbolic ones."""
    hidden = jax.nn.relu(x @ params["q"])
    centred = hidden - hidden.mean((0, 2), keepdims=True)
    return centred * jax.lax.rsqrt(hidden.var((0, 2), keepdims=True) + 1e-5) @ params["out"]


_SHAPES = {"q": (8, 16), "mix": (16, 16), "out": (16, 3)}
_PARAMS = {name: _array(*shape, seed=i) for i, (name, shape) in enumerate(_SHAPES.items())}


@pytest.mark.parametrize("fun", [_merged_heads, _recurrent, _normalized])
def test_batch_and_length_are_two_symbols_under_constraints(fun):
    params = {name: leaf for name, leaf in _PARAMS.items() if name != "mix" or fun is _recurrent}
    small, masked = _shrunk(fun, params, jnp.ones((2, 5, 8)))
    call = _exported(small, _sizes("b, 2*t, 8", constraints=["b >= 2", "t <= 3*b", "mod(t, 2) == 0"]))
    for batch, length in ((2, 4), (3, 12)):
        x = _array(batch, length, 8)
        compare(call(x), masked(x), 2e-6)


def test_means_of_small_semantics_divide_by_what_is_left_at_any_size():
    params = {name: _PARAMS[name] for name in ("q", "out")}
    small, _ = _shrunk(_normalized, params, jnp.ones((2, 5, 8)), semantics="small")
    call = _exported(small, _sizes("b, t, 8"))
    for batch in (2, 7):
        x = _array(batch, 6, 8)
        compare(call(x), small(x), 2e-6)


def test_gradients_are_exported():
    def loss(params, x):
        hidden = jax.nn.relu(x @ params["q"])
        return jnp.mean((jax.nn.softmax(hidden) @ params["out"]) ** 2)

    params = {name: _PARAMS[name] for name in ("q", "out")}
    coupling = jaxprune.couple(loss, params, jnp.ones((2, 8)))
    small, small_params, _ = jaxprune.shrink(loss, params, unit_masks(coupling, params), coupling)
    gradient = jax.grad(small, argnums=1)
    call = _exported(lambda x: gradient(small_params, x), _sizes("b, 8"))
    x = _array(7, 8)
    compare(call(x), gradient(small_params, x), 1e-6)


def test_positions_along_an_axis_of_symbolic_size_are_an_error():
    def fun(params, x):
        heads = (x @ params["q"]).reshape(-1, 4, 4).reshape(-1, 4)
        return jnp.sum(heads + jnp.arange(heads.shape[0], dtype=jnp.float32)[:, None])

    params = {"q": _PARAMS["q"]}
    small, masked = _shrunk(fun, params, jnp.ones((2, 8)))
    compare(small(jnp.ones((3, 8))), masked(jnp.ones((3, 8))), 1e-5)
    with pytest.raises(ValueError, match="axis of symbolic size are needed one by one"):
        _exported(small, _sizes("b, 8"))


@pytest.mark.parametrize("count", [jaxprune.couple, jaxprune.layout, jaxprune.macs])
def test_what_counts_or_times_needs_numbers(count):
    x = _sizes("b, t, 8")
    with pytest.raises(ValueError, match=r"Argument '0' has the symbolic shape \(b, t, 8\); expected numbers"):
        count(_merged_heads, _PARAMS, x)
    with pytest.raises(ValueError, match="Argument '0' has the symbolic shape"):
        jaxprune.deploy(_merged_heads, _PARAMS, {"q": None, "mix": None, "out": None}, x)


def test_deployed_functions_are_exported():
    kernel = jnp.where(jnp.arange(64) % 8 == 0, _array(64, 64), 0)
    stored = StoredKernel(Strips.of(kernel, kernel != 0, block=(1, 1)), summed=0)
    fast = deployed_fun(lambda params, x: jax.nn.relu(x) @ params["kernel"])
    call = _exported(lambda x: fast({"kernel": stored}, x), _sizes("b, 64"))
    x = _array(7, 64)
    compare(call(x), jax.nn.relu(x) @ kernel, 1e-5)


@pytest.mark.parametrize(
    ("sizes", "constraints", "holds"),
    [
        ("b, 2*t", ["b >= 1000", "mod(t, 64) == 0"], lambda b, t: b >= 1000 and t % 64 == 0),
        ("b, b*t", ["b <= 2", "t <= 3*b"], lambda b, t: b <= 2 and t <= 3 * b),
        ("b, t*t + b", ["max(b, t) <= 9", "b <= t"], lambda b, t: b <= t <= 9),
        ("b, t", [], lambda b, t: b != t),
    ],
)
def test_numbers_stand_for_symbols_under_constraints(sizes, constraints, holds):
    scope = export.SymbolicScope(constraints)
    b, t = export.symbolic_shape("b, t", scope=scope)
    numbers = symbols.stand_ins(export.symbolic_shape(sizes, scope=scope))
    assert holds(numbers.of(b), numbers.of(t))
    assert numbers.of((b + 2 * t, 3)) == (numbers.of(b) + 2 * numbers.of(t), 3)


def test_constraints_that_no_number_meets_are_an_error():
    sizes = export.symbolic_shape("b, t", constraints=["b >= 1000000", "t <= b"])
    with pytest.raises(ValueError, match=r"The symbolic sizes b, t need numbers that meet b >= 1000000, t <= b"):
        symbols.stand_ins(sizes)
