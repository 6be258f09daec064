"""Stored kernels multiply as the masked ones do, and `deploy` returns the same function."""

import functools
import inspect
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import jaxprune
from jaxprune import formats, patterns
from jaxprune._jaxpr.tracing import trace
from jaxprune.formats import _blocks, _candidates, _race, _timing
from jaxprune.formats._products import products

BLOCKS = [(16, 16), (8, 4), (1, 8), (1, 1)]


def kernel_and_mask(density=0.4, shape=(64, 48)):
    """A mask of blocks of 8 by 4, some strips fuller than others, one empty."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal(shape).astype(np.float32)
    filled = rng.random((shape[0] // 8, shape[1] // 4)) < density
    filled[:, 2] = False
    return kernel, np.kron(filled, np.ones((8, 4), bool))


def stored(kernel, mask):
    methods = ("strip by strip", "batched", "pallas")
    strips = [formats.Strips.of(kernel, mask, block=b, method=m) for b in BLOCKS for m in methods]
    masked = jnp.asarray(np.where(mask, kernel, 0))
    return [*strips, formats.Rows.of(kernel, mask), formats.Dense.of(masked), formats.Dense.of(masked, transposed=True)]


@pytest.mark.parametrize("batch", [1, 5, 130])
def test_every_form_multiplies_as_the_masked_kernel(batch):
    kernel, mask = kernel_and_mask()
    x = jnp.asarray(np.random.default_rng(1).standard_normal((batch, 64)), jnp.float32)
    expected = np.asarray(x, np.float64) @ np.where(mask, kernel, 0)
    for form in stored(kernel, mask):
        np.testing.assert_array_equal(form.dense(), np.where(mask, kernel, 0), err_msg=str(form))
        np.testing.assert_allclose(jax.jit(lambda f, x: f.matmul(x))(form, x), expected, atol=1e-4, err_msg=str(form))


@pytest.mark.parametrize("device", ["gpu", "tpu"])
@pytest.mark.parametrize("batch", [1, 5, 130])
def test_the_kernel_for_each_device_multiplies_alike(device, batch):
    kernel, mask = kernel_and_mask()
    form = formats.Strips.of(kernel, mask, block=(8, 4))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((batch, 64)), jnp.float32)
    found = _blocks.strip_products(x, form.index, form.values, form.rows, device=device, interpret=True)
    np.testing.assert_allclose(found, np.asarray(x, np.float64) @ np.where(mask, kernel, 0), atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("device", "block"), [("gpu", 16), ("gpu", 64), ("gpu", 128), ("tpu", 128)])
def test_the_kernel_compiles_for_devices_that_are_not_here(device, block, dtype):
    """To Triton's and to Mosaic's code; what these make of it, only the device can tell."""
    assert _blocks.fits((block, block), device)
    platform, target = {"gpu": ("cuda", "__gpu$xla.gpu.triton"), "tpu": ("tpu", "tpu_custom_call")}[device]
    product = jax.jit(functools.partial(_blocks.strip_products, rows=block, device=device, interpret=False))
    allowed = jax.export.DisabledSafetyCheck.custom_call(target)
    known = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": 132, "platform": "gpu"}
    some_gpu = AbstractDevice(**{name: known[name] for name in inspect.signature(AbstractDevice).parameters})
    for batch in (1, 300):
        shapes = ((batch, 1024), dtype), ((1024 // block, 3), jnp.int32), ((1024 // block, block, 3 * block), dtype)
        with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=some_gpu)):
            export = jax.export.export(product, platforms=[platform], disabled_checks=[allowed])
            assert target in export(*(jax.ShapeDtypeStruct(*shape) for shape in shapes)).mlir_module()


def test_blocks_that_a_device_cannot_take_are_told_apart():
    assert [size for size in (8, 16, 24, 32, 128, 256) if _blocks.fits((size, size), "gpu")] == [16, 32, 128, 256]
    assert [size for size in (16, 64, 128, 192, 256) if _blocks.fits((size, size), "tpu")] == [128, 256]
    assert not _blocks.fits((1, 128), "gpu")


def test_a_form_that_does_not_run_here_is_out_of_the_race(monkeypatch):
    def too_large(self, x):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: shared memory")

    monkeypatch.setattr(formats.Rows, "matmul", too_large)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.standard_normal((64, 64)), jnp.float32)}
    masks = {"kernel": jnp.asarray(rng.random((64, 64)) < 0.1)}
    _, stored_params, choices = jaxprune.deploy(lambda p, x: x @ p["kernel"], params, masks, jnp.ones((4, 64)))
    assert not isinstance(stored_params["kernel"], formats.Rows)
    assert len(choices.leaves) == 1


def test_a_form_takes_less_room_and_another_dtype():
    kernel, mask = kernel_and_mask(0.1)
    x = jnp.ones((3, 64), jnp.bfloat16)
    for form in stored(kernel, mask)[:-2]:
        short = form.astype(jnp.bfloat16)
        assert short.dense().dtype == jnp.bfloat16
        assert short.matmul(x).dtype == jnp.bfloat16
        assert short.nbytes < form.nbytes
    assert formats.Strips.of(kernel, mask, block=(8, 4)).nbytes < kernel.nbytes
    assert formats.Rows.of(kernel, mask).nbytes < kernel.nbytes / 2


def test_what_is_pruned_cannot_come_back_as_nan():
    kernel, mask = kernel_and_mask()
    kernel[~mask] = np.nan
    for form in stored(kernel, mask):
        assert bool(jnp.isfinite(form.matmul(jnp.ones((2, 64)))).all())


def test_a_block_has_to_divide():
    kernel, mask = kernel_and_mask()
    with pytest.raises(ValueError, match=r"divide the kernel \(64, 48\); got \(5, 4\)"):
        formats.Strips.of(kernel, mask, block=(5, 4))


def test_only_blocks_that_leave_something_out_are_tried():
    assert _candidates.worthwhile(np.ones((128, 128), bool)) == []
    mask = np.kron(np.tile([[1, 0], [0, 1]], (4, 4)), np.ones((32, 32))).astype(bool)
    assert _candidates.worthwhile(mask)[0] == (32, 32)
    assert (16, 16) not in _candidates.worthwhile(mask)


def model(params, x):
    """Kernels used straight, transposed, cast and called, twice, and one that a loop takes."""
    x = jax.nn.relu(x @ params["first"])
    x = jnp.dot(params["outputs first"], x.T).T
    x = jax.jit(lambda w, x: jax.nn.gelu(x @ w))(params["first"], x)
    y = x.astype(jnp.bfloat16) @ params["cast"].astype(jnp.bfloat16)
    x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ params["looped"]), None), x, None, length=2)
    return {"y": x + y.astype(x.dtype), "table": params["table"][jnp.arange(3)]}


@pytest.fixture
def params():
    keys = jax.random.split(jax.random.key(0), 5)
    names = ["first", "outputs first", "cast", "looped", "table"]
    return {name: jax.random.normal(key, (32, 32)) / 6 for name, key in zip(names, keys, strict=True)}


def test_products_are_found_through_transposes_casts_and_calls(params):
    found = products(trace(model, params, jnp.ones((7, 32))))
    assert found["first"].summed == 0
    assert [x.shape for x in found["first"].operands] == [(7, 32), (7, 32)]
    assert found["outputs first"].summed == 1
    assert found["cast"].dtypes == (jnp.bfloat16,)
    assert "loop" in found["looped"]
    assert "looked up" in found["table"]


@pytest.mark.parametrize("sparse_wins", [True, False])
def test_deploy_computes_the_masked_model(params, sparse_wins, monkeypatch):
    """With a clock that favours either side, since a real one decides as it likes."""

    def seconds(calls, repeats, total=0.5):
        first = 1.0 if sparse_wins else 0.1
        slow = {0: first, 1: first}
        return np.array(
            [np.full(repeats, slow.get(i, 0.5) if len(calls) > 2 else 1 - 0.5 * i) for i in range(len(calls))]
        )

    monkeypatch.setattr(_timing, "seconds", seconds)
    masks = jaxprune.magnitude(params, 0.75, pattern=patterns.Block((16, 16)))
    fast, fast_params, choices = jaxprune.deploy(model, params, masks, jnp.ones((7, 32)))
    forms = {choice.path: choice.form for choice in choices.leaves}
    stored = {name for name, leaf in fast_params.items() if isinstance(leaf, formats.StoredKernel)}
    assert stored == ({"first", "outputs first", "cast"} if sparse_wins else set())
    assert all((forms[name] != "dense") == (name in stored) for name in params)
    pruned = jaxprune.apply(params, masks)
    for batch in (7, 2):
        x = jax.random.normal(jax.random.key(1), (batch, 32))
        expected, got = model(pruned, x), jax.jit(fast)(fast_params, x)
        np.testing.assert_allclose(got["y"], expected["y"], atol=2e-2)
        np.testing.assert_array_equal(got["table"], expected["table"])
    assert "loop" in str(choices)
    assert len(str(choices).splitlines()) == 1 + len(params) + 1


def test_the_dense_model_comes_back_where_the_whole_is_no_faster(params, monkeypatch):
    def seconds(calls, repeats):
        return np.array([np.full(repeats, 0.5 if i > 1 else 1.0) for i in range(len(calls))])

    monkeypatch.setattr(
        _timing, "seconds", lambda calls, n, _=0: seconds(calls, n) * ([[1.0], [1.1]] if len(calls) == 2 else 1)
    )
    masks = jaxprune.magnitude(params, 0.75, pattern=patterns.Block((16, 16)))
    same, same_params, choices = jaxprune.deploy(model, params, masks, jax.ShapeDtypeStruct((7, 32), jnp.float32))
    assert same is model
    assert jax.tree.structure(same_params) == jax.tree.structure(params)
    assert {choice.form for choice in choices.leaves} == {"dense"}
    assert choices.dense == choices.deployed


def test_a_race_is_run_once_for_kernels_of_the_same_form(monkeypatch):
    kernel, mask = kernel_and_mask(shape=(128, 64))
    mask[:] = np.kron(np.eye(2), np.ones((64, 32)))
    runs = []
    monkeypatch.setattr(_timing, "seconds", lambda calls, n, _=0: runs.append(len(calls)) or np.ones((len(calls), n)))
    found = products(trace(lambda w, x: x @ w, jnp.asarray(kernel), jnp.ones((4, 128))))
    known = _race.Known({})
    for _ in range(2):
        assert _race.fastest(kernel, mask, found[""], known).form is None
    assert len(known) == 1
    assert len(runs) == 2  # the rough one and the fine one


def test_timings_are_those_of_the_functions(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_timing, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def call(seconds):
        now[0] += seconds
        return jnp.ones(())

    slow, quick = functools.partial(call, 4e-3), functools.partial(call, 1e-3)
    times = _timing.seconds([slow, quick], 3, total=0.0)
    np.testing.assert_allclose(times, [[4e-3] * 3, [1e-3] * 3], rtol=1e-6)
    # Two calls of the slow one and five of the quick one fill the five milliseconds of a timing.
    assert _timing.seconds([slow, quick], 3, total=0.125).shape == (2, 10)
    assert math.isclose(_timing.speedup(times, of=1, over=0), 4, rel_tol=1e-6)
    assert math.isclose(_timing.speedup(np.array([[2.0, 4.0], [1.0, 1.0]]), of=1, over=0), 3)


def test_a_speedup_is_sure_where_nearly_all_timings_show_it():
    ones = np.ones(100)
    assert _timing.sure_speedup(np.array([1.1 * ones, ones]), of=1, over=0) == 1.1
    mixed = np.where(np.arange(100) % 5 < 2, 0.5, 1.1)  # 60 % of the timings, which is two standard deviations
    assert _timing.sure_speedup(np.array([mixed, ones]), of=1, over=0) == 1.1
    mixed = np.where(np.arange(100) % 9 < 4, 0.5, 1.1)
    assert _timing.speedup(np.array([mixed, ones]), of=1, over=0) == 1.1
    assert _timing.sure_speedup(np.array([mixed, ones]), of=1, over=0) == 0.5


def test_balanced_blocks_are_equally_many_for_all_outputs_and_the_best_there():
    kernel = jax.random.normal(jax.random.key(0), (64, 24)) * jnp.linspace(0.1, 9, 24)[None]
    pattern = patterns.Block((8, 4), balanced=True)
    mask = jaxprune.magnitude({"kernel": kernel}, 0.75, pattern=pattern)["kernel"]
    filled = _candidates.block_fill(np.asarray(mask), (8, 4))
    assert filled.sum(0).tolist() == [2] * 6
    means = np.abs(np.asarray(kernel)).reshape(8, 8, 6, 4).mean((1, 3))
    assert np.array_equal(filled, means >= np.sort(means, axis=0)[-2])
    # Ten blocks over six columns: one or two in each.
    ten = jaxprune.select({"kernel": jnp.abs(kernel)}, {"kernel": 10}, pattern=pattern)["kernel"]
    assert sorted(_candidates.block_fill(np.asarray(ten), (8, 4)).sum(0)) == [1, 1, 2, 2, 2, 2]
    scattered = _candidates.block_fill(
        np.asarray(jaxprune.magnitude([kernel], 0.75, pattern=patterns.Block((8, 4)))[0]), (8, 4)
    )
    assert scattered.sum(0).tolist() != [2] * 6


@pytest.mark.parametrize("axis", [-2, -1])
def test_a_group_of_outputs_shares_its_n_of_m(axis):
    scores = np.random.default_rng(0).random((16, 12)).astype(np.float32)
    pattern = patterns.NM(2, 4, axis=axis, group=4)
    given = jnp.asarray(scores if axis == -2 else scores.T)
    mask = np.asarray(jaxprune.from_scores([given], pattern=pattern)[0])
    mask = mask if axis == -2 else mask.T
    means = scores.reshape(4, 4, 3, 4).mean(3)
    best = means >= np.sort(means, axis=1)[:, 2:3]
    assert np.array_equal(mask, np.repeat(best.reshape(16, 3), 4, axis=1))
    stored = formats.Strips.of(np.where(mask, scores, 0), mask, block=(1, 4))
    assert stored.values.size == scores.size // 2


def test_a_group_has_to_divide_the_outputs():
    with pytest.raises(ValueError, match=r"group=5.*needs axis 1 divisible by 5.*'kernel' has shape \(16, 12\)"):
        jaxprune.magnitude({"kernel": jnp.ones((16, 12))}, pattern=patterns.NM(2, 4, group=5))
    with pytest.raises(ValueError, match="got 0"):
        patterns.NM(2, 4, group=0)
