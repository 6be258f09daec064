"""Everything of arrays is compiled by the compilers of a TPU and of a GPU, on machines that have neither.

`pytest -m tpu` and `pytest -m gpu_compile`, after `pip install -e ".[test,tpu-compile,gpu-compile]"`.
"""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from multidevice import eight_devices
from test_transformations import CALLS, FREQUENCIES, GRADS, GRAM, KEY, MASKS, NORMS, PARAMS, VARIANCES, X, called, fun
from zoo import equinox_models, haiku_models, linen, nnx_models, plain
from zoo.case import of_arrays, randomised, unit_masks

import jaxprune
from benchmarks import targets
from jaxprune import budgets, formats, layerwise, patterns, scores
from jaxprune.formats import _blocks
from jaxprune.structured._coupling import couple
from jaxprune.structured._shrink import shrink

pytestmark = [
    pytest.mark.dtype_promotion,
    pytest.mark.rank_promotion,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning"),
]
MARKS = {"tpu": pytest.mark.tpu, "gpu": pytest.mark.gpu_compile}


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=mark) for kind, mark in MARKS.items()])
def kind(request):
    """What to compile for, where the compiler is there."""
    reason = targets.missing(request.param)
    if reason is not None:
        pytest.skip(f"Compiling for a {request.param.upper()} {reason}.")
    yield request.param
    jax.clear_caches()  # What was traced for a GPU has no calls back to Python.


def compiled_alone(kind, function, *args):
    executable, _ = targets.compiled(function, *(targets.placed(arg, targets.alone(kind)) for arg in args))
    assert executable.as_text()


@pytest.mark.parametrize("name", CALLS)
def test_every_function_of_arrays_compiles(name, kind):
    compiled_alone(kind, called(name), PARAMS, MASKS)


OF_BOOLEANS_ALONE = {"layerwise.refit", "layerwise.swap", "magnitude within", "rigl", "sparse_evolution"}
OF_MASKS = {name: called(name) for name in CALLS if "m" in inspect.signature(CALLS[name]).parameters} | {
    "apply": jaxprune.apply,
    "sparsity": jaxprune.sparsity,
    "compression_ratio": jaxprune.compression_ratio,
    "intersection": lambda p, m: jaxprune.intersection(m, jaxprune.dft(p, 0.2)),
    "union": lambda p, m: jaxprune.union(m, jaxprune.dft(p, 0.2)),
    "overlap": lambda p, m: jaxprune.overlap(m, jaxprune.dft(p, 0.2)),
    "dft within": lambda p, m: jaxprune.dft(p, 0.75, within=m),
}


@pytest.mark.parametrize("name", sorted(OF_MASKS.keys() - OF_BOOLEANS_ALONE))
def test_every_function_of_masks_compiles_for_frequencies(name, kind):
    compiled_alone(kind, OF_MASKS[name], PARAMS, FREQUENCIES)


def pruned_by(method, statistic):
    return lambda p: method.prune(p["a"], method.prepare(statistic), 0.5, patterns.Unstructured())


def multiplied(make):
    """A form of a kernel that is known while tracing, times samples."""

    def product(p):
        with jax.ensure_compile_time_eval():
            form = make(KERNEL)
        return form.matmul(p["b"].T)

    return product


KERNEL = np.where(np.arange(16).reshape(8, 2) % 3 < 2, np.float32(1), 0)
# What has no entry of its own in `CALLS`, by its module and name.
PARTS = {
    "patterns.Unstructured": lambda p: jaxprune.magnitude(p, 0.5, pattern=patterns.Unstructured()),
    "patterns.NM": lambda p: jaxprune.magnitude(p, pattern=patterns.NM(2, 4, group=2)),
    "patterns.NM last": lambda p: jaxprune.magnitude(p, pattern=patterns.NM(1, 2, axis=-1)),
    "patterns.Along": lambda p: jaxprune.magnitude(p, 0.5, pattern=patterns.Along({**MASKS, "a": (0, 1), "b": -1})),
    "patterns.Block": lambda p: jaxprune.magnitude(p, 0.5, pattern=patterns.Block((2, 2), balanced=True)),
    "patterns.Channel": lambda p: jaxprune.magnitude(p, 0.5, pattern=patterns.Channel(axis=0)),
    "budgets.uniform": lambda p: jaxprune.magnitude(p, 0.5, budget=budgets.uniform),
    "budgets.global_": lambda p: jaxprune.magnitude(p, 0.5, budget=functools.partial(budgets.global_, normalize=True)),
    "budgets.erk": lambda p: jaxprune.magnitude(p, 0.5, budget=budgets.erk, pattern=patterns.Block((2, 2))),
    "budgets.owl": lambda p: jaxprune.magnitude(p, 0.5, budget=budgets.owl, pattern=patterns.Along()),
    "budgets.cumulative": lambda p: jaxprune.magnitude(p, budget=budgets.cumulative(0.9, per_leaf=False)),
    "budgets.by_path": lambda p: jaxprune.magnitude(p, 0.5, budget=budgets.by_path({"a": 0.3})),
    "scores.magnitude": functools.partial(scores.magnitude, norm="l2"),
    "scores.random": lambda p: scores.random(KEY, p),
    "scores.lamp": scores.lamp,
    "scores.taylor": lambda p: scores.taylor(p, GRADS),
    "scores.snip": lambda p: scores.snip(p, GRADS),
    "scores.grasp": lambda p: scores.grasp(lambda p: jnp.sum(fun(p, X)), p),
    "scores.synflow": lambda p: scores.synflow(fun, p, X[:1]),
    "scores.wanda": lambda p: scores.wanda(p, NORMS),
    "scores.ria": lambda p: scores.ria(p, NORMS),
    "scores.variance": lambda p: scores.variance(p, VARIANCES),
    "layerwise.SparseGPT": pruned_by(layerwise.SparseGPT(), GRAM),
    "layerwise.ADMM": pruned_by(layerwise.ADMM(), GRAM),
    "layerwise.Wanda": pruned_by(layerwise.Wanda(), jnp.ones(4)),
    "layerwise.wanda": lambda p: layerwise.wanda(p["a"], jnp.ones(4), 0.5),
    "layerwise.sparsegpt": lambda p: layerwise.sparsegpt(p["a"], GRAM, pattern=patterns.NM(2, 4)),
    "layerwise.admm": lambda p: layerwise.admm(p["a"], GRAM, pattern=patterns.NM(2, 4)),
    "layerwise.obs": lambda p: layerwise.obs(p["a"], GRAM, 0.5),
    "layerwise.refit": lambda p: layerwise.refit(p["a"], GRAM, p["a"] > 0),
    "layerwise.swap": lambda p: layerwise.swap(p["a"], GRAM, p["a"] > 0),
    "layerwise.correct": lambda p: layerwise.correct(p["a"], GRAM, GRAM),
    "layerwise.damp": lambda p: layerwise.damp(p["a"] @ p["a"].T),
    "formats.Dense": multiplied(lambda kernel: formats.Dense.of(jnp.asarray(kernel), transposed=True)),
    "formats.Rows": multiplied(lambda kernel: formats.Rows.of(kernel, kernel != 0)),
    "formats.Strips": multiplied(lambda kernel: formats.Strips.of(kernel, kernel != 0, block=(2, 2))),
    "formats.Strips batched": multiplied(
        lambda kernel: formats.Strips.of(kernel, kernel != 0, block=(2, 2), method="batched")
    ),
}
# Types and functions of files, shapes or timings.
NOT_COMPILED = {
    "budgets.group_sizes", "layerwise.Damped", "layerwise.Method", "formats.StoredKernel", "formats.Choice",
    "formats.Choices", "formats.deployed_fun",
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_every_part_compiles(name, kind):
    compiled_alone(kind, PARTS[name], PARAMS)


def test_every_part_has_an_entry():
    found = {
        f"{module.__name__.split('.')[-1]}.{name}"
        for module in (patterns, budgets, scores, layerwise, formats)
        for name, value in vars(module).items()
        if name[0] != "_" and getattr(value, "__module__", "").startswith("jaxprune") and is_own(module, value)
    }
    assert found - {name.split()[0] for name in PARTS} == NOT_COMPILED


def is_own(module, value):
    """A package has what it re-exports, a module what it defines."""
    return callable(value) and (hasattr(module, "__path__") or value.__module__ == module.__name__)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_kernel_of_strips_compiles(dtype, kind):
    for block, batch in itertools.product({"tpu": (128, 256), "gpu": (16, 64, 128)}[kind], (1, 300)):
        assert _blocks.fits((block, block), kind)
        product = functools.partial(_blocks.strip_products, rows=block, device=kind, interpret=False)
        shapes = ((batch, 1024), dtype), ((1024 // block, 3), jnp.int32), ((1024 // block, block, 3 * block), dtype)
        with targets.chip_of_kernels(kind):
            compiled_alone(kind, product, *(jax.ShapeDtypeStruct(*shape) for shape in shapes))


ZOO = {"plain": plain, "linen": linen, "nnx": nnx_models, "equinox": equinox_models, "haiku": haiku_models}
QUICK = {("plain", "mixture_of_experts"), ("plain", "scanned"), ("linen", "vit"), ("equinox", "conv")}


# Some versions of XLA find no tiles for very small products without a GPU to time them on; with
# `XLA_FLAGS=--xla_gpu_enable_triton_gemm=false` all compile these models.
TINY = {("plain", "gqa_outer"), ("plain", "gqa_inner"), ("plain", "resize_and_pad")}
WITHOUT_TILES = pytest.mark.xfail(
    raises=jax.errors.JaxRuntimeError, strict=False, reason="depends on the version of XLA"
)


@pytest.mark.parametrize(
    ("framework", "name"),
    [
        pytest.param(framework, name, marks=() if (framework, name) in QUICK else pytest.mark.slow)
        for framework, module in ZOO.items()
        for name in module.CASES
    ],
)
def test_a_shrunk_model_compiles(framework, name, kind, request):
    if kind == "gpu" and (framework, name) in TINY:
        request.applymarker(WITHOUT_TILES)
    case = ZOO[framework].CASES[name]
    model, params, args = case.build()
    coupling = couple(model, params, *args, **case.options)
    params = randomised(params)
    small, small_params, _ = shrink(model, params, unit_masks(coupling, params), coupling)
    compiled_alone(kind, *of_arrays(small, small_params), *args)


# On a mesh of two by two.
COUNTS = 64 * 8  # bytes: less than any chip's share of a kernel
ON_A_MESH = {**eight_devices.COMMON, **eight_devices.OTHERS}
MEASURED = eight_devices.MEASURED | {"variance": lambda p, statistics: jaxprune.variance(p, statistics, 0.5)}


def mesh(kind):
    return targets.grid(kind, {"tpu": "v5e:2x2", "gpu": "4"}[kind], (2, 2), "data", "model")


def spread(tree, kind):
    """Kernels as `eight_devices` splits them, and whatever has their shapes; the rest is on every chip."""
    specs = {shape: eight_devices.SPECS[name] for name, shape in eight_devices.SHAPES.items()}
    return targets.placed(tree, jax.tree.map(lambda x: NamedSharding(mesh(kind), specs.get(x.shape, P())), tree))


@pytest.mark.parametrize("name", ON_A_MESH)
def test_a_strategy_on_a_mesh_sends_counts_alone(name, kind):
    _, program = targets.compiled(ON_A_MESH[name], spread(eight_devices.whole(), kind))
    assert program.largest <= COUNTS


@pytest.mark.parametrize("name", MEASURED)
def test_a_strategy_that_measures_does_so_too(name, kind):
    prune = eight_devices.measured(MEASURED[name], "variance" if name == "variance" else "norm")
    _, program = targets.compiled(prune, spread(eight_devices.whole(), kind))
    assert program.largest <= COUNTS


# Of a kernel of 64 by 128, with what one operation may send: `docs/scale.md` says why these need more than counts.
WHOLE = 64 * 128 * 4
SHARE = WHOLE // 4
OF_A_KERNEL = {
    "synflow": (lambda p: jaxprune.synflow(lambda p, x: x @ p["kernel"], p, jnp.ones((1, 64)), 0.5, rounds=3), COUNTS),
    "lamp": (functools.partial(jaxprune.lamp, sparsity=0.7), {"tpu": WHOLE, "gpu": 2 * WHOLE}),
    "dft": (functools.partial(jaxprune.dft, sparsity=0.6), {"tpu": SHARE, "gpu": 2 * SHARE}),
    "dct": (functools.partial(jaxprune.dft, sparsity=0.6, transform="dct"), {"tpu": SHARE, "gpu": 2 * SHARE}),
    "dft applied": (
        lambda p: jaxprune.apply(p, jaxprune.dft({"kernel": jnp.eye(64, 128)}, 0.5)),
        {"tpu": SHARE, "gpu": 2 * SHARE},
    ),
}


@pytest.mark.parametrize("name", OF_A_KERNEL)
def test_a_strategy_on_a_mesh_sends_no_more_than_it_says(name, kind):
    prune, most = OF_A_KERNEL[name]
    kernel = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh(kind), P("data", "model")))
    _, program = targets.compiled(prune, {"kernel": kernel})
    assert program.largest <= (most[kind] if isinstance(most, dict) else most)


def test_every_strategy_is_compiled_on_a_mesh():
    strategies = {name for name, value in vars(jaxprune._strategies).items() if inspect.isfunction(value)}
    named = {name.split(",")[0] for name in [*ON_A_MESH, *MEASURED, *OF_A_KERNEL]}
    assert len(strategies) > 10
    assert strategies - named == {"magnitude"}  # It is there by its budgets and patterns.


# The bytes of packed masks do not lie as their parameters do in `spread`.
@pytest.mark.parametrize("name", [name for name in eight_devices.TRAINED if name != "gradual, packed"])
def test_a_step_on_a_mesh_sends_counts_alone(name, kind, request):
    if (name, kind) == ("acdc", "gpu"):
        request.applymarker(pytest.mark.xfail(strict=False, reason="XLA gathers masks, not from JAX 0.12 on"))
    params = eight_devices.whole()
    optimizer = eight_devices.TRAINED[name](jaxprune.magnitude(params, 0.5))
    state = jax.eval_shape(optimizer.init, params)
    step = functools.partial(eight_devices.one_step, optimizer)
    _, program = targets.compiled(step, spread(params, kind), spread(state, kind))
    assert program.largest <= COUNTS
