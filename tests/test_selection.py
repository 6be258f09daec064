"""Selection against a NumPy oracle: exact counts, ties to the lowest index, NaN first, on every kind of data.

Concrete scores are selected from in host memory, traced ones by counting: every case here goes both ways.
"""

import dataclasses
import functools
import math

import hypothesis
import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import patterns
from jaxprune._arrays import ordering
from jaxprune._selection import counting, exact, pieces


def oracle(scores, keep):
    """Sorts, as selection does not: by score, NaN last, ties by index."""
    flat = np.asarray(scores, np.float64).ravel()
    missing = np.isnan(flat)
    order = np.lexsort((np.arange(flat.size), -np.where(missing, -np.inf, flat), missing))
    mask = np.zeros(flat.size, bool)
    mask[order[:keep]] = True
    return mask.reshape(np.shape(scores))


def kinds(size, seed=0):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(size).astype(np.float32)
    return {
        "normal": normal,
        "heavy-tailed": normal / rng.standard_normal(size).astype(np.float32),
        "half zero": normal * (rng.random(size) > 0.5).astype(np.float32),
        "few values": rng.integers(0, 4, size).astype(np.float32),
        "constant": np.zeros(size, np.float32),
        "NaN": np.where(rng.random(size) < 0.3, np.float32(np.nan), normal),
        "denormal": (rng.random(size) * 1e-42).astype(np.float32),
        "extremes": rng.choice(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], np.float32), size),
        "one outlier": np.concatenate([np.full(size - 1, 1e-30, np.float32), np.array([1e30], np.float32)]),
    }


@functools.partial(jax.jit, static_argnames=("pattern", "absolute"))
def counted(scores, keep, pattern=patterns.Unstructured(), absolute=False):
    return jaxprune.select(scores, keep, pattern=pattern, absolute=absolute)


def select(scores, keep, **options):
    """The masks, the same in host memory and by counting."""
    masks = jaxprune.select(scores, keep, **options)
    traced = counted(scores, jax.tree.map(jnp.int32, keep), **options)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), masks, traced))
    return masks


_SHAPES = ((40,), (5, 8), (130,))
_FLOATS = st.floats(width=32, allow_subnormal=True) | st.sampled_from([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan])


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    st.tuples(*(hypothesis.extra.numpy.arrays(np.float32, shape, elements=_FLOATS) for shape in _SHAPES)),
    st.tuples(*(st.integers(0, int(np.prod(shape))) for shape in _SHAPES)),
    st.booleans(),
)
def test_host_and_counting_agree_on_any_data(scores, counts, absolute):
    scores = [jnp.asarray(score) for score in scores]
    for masks, keep in ((select(scores, list(counts), absolute=absolute), counts), (select(scores, sum(counts)), None)):
        assert sum(int(mask.sum()) for mask in masks) == sum(counts)
        assert keep is None or [int(mask.sum()) for mask in masks] == list(keep)


@pytest.mark.parametrize("kind", kinds(8))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_leaves_are_selected_from_each_and_together(dtype, kind):
    """Some of them empty or of another dtype."""
    scores = [jnp.asarray(kinds(size, size)[kind]).astype(dtype) for size in (1, 40, 130)] + [jnp.zeros((0, 3))]
    scores[1] = scores[1].reshape(5, 8).astype(jnp.float32)
    for share in (0, 0.3, 1):
        counts = [round(share * score.size) for score in scores]
        for got, score, count in zip(select(scores, counts), scores, counts, strict=True):
            assert np.array_equal(got, oracle(score.astype(jnp.float32), count))
        together = np.concatenate([np.asarray(score, np.float32).ravel() for score in scores])
        for absolute in (False, True):
            got = select(scores, sum(counts), absolute=absolute)
            expected = oracle(np.abs(together) if absolute else together, sum(counts))
            assert np.array_equal(np.concatenate([np.ravel(mask) for mask in got]), expected)
            assert [mask.shape for mask in got] == [score.shape for score in scores]


@pytest.mark.parametrize("kind", kinds(8))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_select_is_exact(kind, dtype):
    for seed, size in enumerate((1, 17, 1000)):
        scores = jnp.asarray(kinds(size, seed)[kind]).astype(dtype)
        for keep in sorted({0, 1, size // 10, size // 2, size - 1, size}):
            got = select(scores, keep)
            assert np.array_equal(got, oracle(scores.astype(jnp.float32), keep)), (size, keep)


@pytest.mark.parametrize("kind", kinds(8))
def test_select_is_exact_beyond_the_sample(kind):
    """Large enough to be sampled and read as it lies."""
    size = 300_007
    scores = kinds(size)[kind]
    for keep in (size // 10, size // 2):
        assert np.array_equal(select(jnp.asarray(scores), keep), oracle(scores, keep)), keep


@pytest.mark.parametrize("kind", kinds(8))
@pytest.mark.parametrize("pattern", [patterns.Unstructured(), patterns.Block((7, 1))])
def test_absolute_values_are_the_scores_if_so_asked(kind, pattern):
    scores = jnp.asarray(kinds(7 * 3001)[kind]).reshape(-1, 7).T
    for keep in (0, 300, 3001):
        got = select({"a": scores}, {"a": keep}, pattern=pattern, absolute=True)
        expected = select({"a": jnp.abs(scores)}, {"a": keep}, pattern=pattern)
        assert np.array_equal(got["a"], expected["a"]), keep


def test_neighbouring_keys_are_told_apart():
    """Many scores between two marks, all different by one key at most."""
    keys = np.random.default_rng(0).integers(2**30, 2**30 + 300, 400_000).astype(np.int32)
    scores = keys.view(np.float32)
    assert np.array_equal(select(jnp.asarray(scores), 123_457), oracle(scores, 123_457))


def test_leaves_compete_under_one_count_and_not_under_a_count_each():
    scores = {"a": jnp.array([[5.0, 1.0]]), "b": None, "c": jnp.array([4.0, 3.0]), "d": jnp.zeros((0, 3))}
    together = select(scores, 3)
    assert together["a"].tolist() == [[True, False]]
    assert together["c"].tolist() == [True, True]
    assert together["b"] is None
    assert together["d"].shape == (0, 3)
    each = select(scores, {"a": 1, "b": None, "c": 1, "d": 0})
    assert each["a"].tolist() == [[True, False]]
    assert each["c"].tolist() == [True, False]


def test_ties_across_leaves_go_to_the_first_leaf():
    masks = select({"a": jnp.ones(3), "b": jnp.ones(3)}, 4)
    assert masks["a"].tolist() == [True] * 3
    assert masks["b"].tolist() == [True, False, False]


@pytest.mark.parametrize("most", [200, 10**6])
def test_ties_across_large_leaves_go_to_the_first(most, monkeypatch):
    """Other than zeros; the leaves before the one that is cut keep all of theirs, those after it none."""
    monkeypatch.setattr(pieces, "_LARGE", most)
    jax.clear_caches()
    scores = [np.random.default_rng(i).choice([1.0, 3.0, 5.0], 500).astype(np.float32) for i in range(12)]
    together = np.concatenate(scores)
    for keep in (np.sum(together > 3) + extra for extra in (1, 700, 1_900)):
        masks = select([jnp.asarray(score) for score in scores], int(keep))
        assert np.array_equal(np.concatenate(masks), oracle(together, keep)), keep


@pytest.mark.parametrize("seed", range(4))
def test_many_leaves_are_exact_whatever_their_sizes(seed, monkeypatch):
    """Tables of small leaves, and more large ones than are sampled: here 200 scores are many."""
    monkeypatch.setattr(pieces, "_LARGE", 200)
    rng = np.random.default_rng(seed)
    names = list(kinds(8))
    sizes = [*rng.integers(1, 200, 9), *rng.choice([200, 256, 300 + seed], 12)]
    scores = [kinds(size, i)[names[i % len(names)]] for i, size in enumerate(sizes)]
    arrays, counts = [jnp.asarray(score) for score in scores], [int(rng.integers(0, size + 1)) for size in sizes]
    for got, score, count in zip(select(arrays, counts), scores, counts, strict=True):
        assert np.array_equal(got, oracle(score, count)), (score.size, count)
    together = np.concatenate(scores)
    for total in (0, together.size // 10, together.size // 2, together.size):
        got = np.concatenate(select(arrays, total))
        assert np.array_equal(got, oracle(together, total)), total


@pytest.mark.parametrize(("number", "shape"), [(1, ()), (10, ()), (4, (1100,)), (3, (3, 3, 130))])
def test_large_leaves_are_not_copied(number, shape):
    lengths = [2**20 // math.prod(shape) + 300 * (i + 1) for i in range(number)]
    leaves = [jax.ShapeDtypeStruct((*shape, length), jnp.float32) for length in lengths]
    compiled = jax.jit(lambda leaves: jaxprune.select(leaves, 10_000)).lower(leaves).compile()
    written = compiled.memory_analysis().temp_size_in_bytes
    assert written < 0.25 * sum(4 * leaf.size for leaf in leaves)


def test_counts_may_be_traced_without_compiling_anew():
    scores = jnp.asarray(kinds(5000)["normal"])
    traces = []

    @jax.jit
    def run(keep):
        traces.append(keep)
        return jaxprune.select({"a": scores}, {"a": keep})["a"]

    for keep in (0, 7, 4999, 5000):
        assert np.array_equal(run(jnp.int32(keep)), oracle(scores, keep))
    assert len(traces) == 1


def test_select_under_vmap():
    scores = jnp.asarray(kinds(600)["half zero"]).reshape(3, 200)
    got = jax.vmap(jaxprune.select)(scores, jnp.array([20, 100, 180]))
    for row, mask, keep in zip(scores, got, (20, 100, 180), strict=True):
        assert np.array_equal(mask, oracle(row, keep))


def test_leaves_of_different_dtypes_compete_by_value():
    scores = {"a": jnp.array([1.0, 3.0], jnp.bfloat16), "b": jnp.array([2.0, 0.5]), "c": jnp.array([4.0], jnp.float16)}
    masks = select(scores, 3)
    assert {k: v.tolist() for k, v in masks.items()} == {"a": [False, True], "b": [True, False], "c": [True]}


def test_counting_takes_few_passes(monkeypatch):
    """Binary search over keys would take 31, and as many again for ties; on a mesh nothing is sampled."""
    search, passes = counting.search, list[int]()

    def noted(*args):
        state = search(*args)
        jax.debug.callback(lambda number: passes.append(int(number)), state.passes)
        return state

    monkeypatch.setattr(counting, "search", noted)
    jax.clear_caches()
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    take = jax.jit(lambda scores: jaxprune.select(scores, 30_000))
    for kind, (sampled, unsampled) in {
        "normal": (7, 10), "heavy-tailed": (8, 11), "half zero": (7, 10), "few values": (6, 27)
    }.items():  # fmt: skip
        scores = kinds(300_000)[kind]
        for array, most in ((jnp.asarray(scores), sampled), (jax.device_put(scores, spread), unsampled)):
            assert np.array_equal(take(array), oracle(scores, 30_000))
            jax.effects_barrier()
            assert len(passes) == 1
            assert 1 < passes.pop() <= most, kind
    jax.clear_caches()


def test_float64_scores_are_told_apart_beyond_float32():
    with jax.enable_x64(True):
        scores = jnp.array([1.0, 1.0 + 1e-12, 1.0 + 2e-12], jnp.float64)
        assert select(scores, 1).tolist() == [False, False, True]


def test_wrong_counts_and_scores_are_named():
    with pytest.raises(ValueError, match=r"keep-count of 'a' must be an integer from 0 to 4; got 5"):
        select({"a": jnp.ones(4)}, {"a": 5})
    with pytest.raises(ValueError, match=r"keep-count of all leaves must be .* got -1"):
        select({"a": jnp.ones(4)}, -1)
    with pytest.raises(TypeError, match=r"'a' must be a floating-point array to be pruned; got dtype int32"):
        select({"a": jnp.ones(4, jnp.int32)}, {"a": 1})
    with pytest.raises(ValueError, match=r"`NM\(2, 4\)` needs axis -2 divisible by 4; 'a' has shape \(30, 10\)"):
        select({"a": jnp.ones((30, 10))}, 0, pattern=patterns.NM(2, 4))


def test_keys_keep_the_order_of_floats():
    values = np.array([-np.inf, -1.5, -1e-45, -0.0, 0.0, 1e-45, 3e-45, 1.0, np.inf], np.float32)
    keys = np.asarray(ordering.keys(jnp.asarray(values)))
    assert keys[3] == keys[4]
    assert np.all(np.diff(np.delete(keys, 3)) > 0)
    assert jnp.iinfo(jnp.int32).min < ordering.keys(jnp.array(jnp.nan)) < keys[0]  # nothing has the lowest integer
    for dtype in (jnp.bfloat16, jnp.float16):
        every = jax.lax.bitcast_convert_type(jnp.arange(-(2**15), 2**15).astype(jnp.int16), dtype)
        finite = every[~jnp.isnan(every)]
        order = np.argsort(np.asarray(finite.astype(jnp.float32)), kind="stable")
        assert np.all(np.diff(np.asarray(ordering.keys(finite))[order]) >= 0)


def test_counts_of_the_highest_agree_with_the_masks():
    scores = {"a": jnp.asarray(kinds(900)["few values"]).reshape(30, 30), "b": jnp.asarray(kinds(500)["normal"])}
    for total in (0, 77, 1400):
        counts = exact.counts_of_highest(scores, total)
        masks = select(scores, total)
        assert {k: int(v) for k, v in counts.items()} == {k: int(v.sum()) for k, v in masks.items()}
        again = select(scores, counts)
        assert all(jax.tree.leaves(jax.tree.map(lambda m, n: bool((m == n).all()), masks, again)))


def test_leaves_are_settled_each_in_its_own_time():
    """Leaves that are settled in the first pass, or keep none or all, stay as they are while others are searched on."""
    rng = np.random.default_rng(3)
    trees = {
        "none": (np.concatenate([rng.standard_normal(120_000), [np.inf]]), 0),
        "all": (-rng.random((50, 40)), 2000),
        "negative": (-(rng.random(70_001) ** 9), 35_000),
        "tied": (rng.integers(0, 3, (100, 700)).astype(float), 12_345),
        "crowded": (1 + rng.integers(0, 200, 90_000) * 2.0**-23, 45_000),
        "small": (rng.standard_normal(7), 3),
    }
    scores = {name: jnp.asarray(values, jnp.float32) for name, (values, _) in trees.items()}
    masks = select(scores, {name: keep for name, (_, keep) in trees.items()})
    for name, (_, keep) in trees.items():
        assert np.array_equal(masks[name], oracle(scores[name], keep)), name


@pytest.mark.parametrize("distance", [1e-3, 0.3])
@pytest.mark.parametrize("more", [1, 60, 900, 20_000])
def test_a_little_more_than_what_is_zero_already(more, distance):
    """Gradual pruning: half the scores are 0, then comes a gap, and the threshold lies close behind it."""
    size = 400_000
    rng = np.random.default_rng(more)
    scores = (distance + 1e-2 * rng.random(size)).astype(np.float32)
    scores[rng.permutation(size)[: size // 2]] = 0
    keep = size // 2 - more
    assert np.array_equal(select(jnp.asarray(scores), keep), oracle(scores, keep))


@pytest.mark.wrong_types
@pytest.mark.parametrize("keep", [2.5, True, "2", jnp.float32(2), np.bool_(True)], ids=repr)
def test_a_count_is_a_whole_number(keep):
    for counts in (keep, {"a": keep}):
        with pytest.raises(TypeError, match=r"keep-count of .* must be a whole number; got"):
            select({"a": jnp.ones(4)}, counts)
    with pytest.raises(ValueError, match=r"keep-count of 'a' must be an integer from 0 to 4; got 9"):
        select({"a": jnp.ones(4)}, {"a": jnp.int32(9)})


@pytest.mark.parametrize("pattern", [patterns.Along(), patterns.NM(2, 4), patterns.Block((2, 2))], ids=str)
@pytest.mark.parametrize("shape", [(0, 4), (0, 8, 4), (4, 0)])
def test_patterns_of_empty_leaves(pattern, shape):
    sparsity = None if pattern.sparsity is not None else 0.5
    for prune in (jaxprune.magnitude, jax.jit(jaxprune.magnitude, static_argnames="pattern")):
        assert prune([jnp.zeros(shape)], sparsity, pattern=pattern)[0].shape == shape
    assert jaxprune.dft([jnp.zeros(shape), jnp.ones((2, 2))], 0.5)[0] is None


INPUTS_ELSEWHERE = {
    "layers/0/weight": (8, 4),
    "conv/weight": (8, 4, 4, 4),
    "cell/weight_ih": (12, 4),
    "in_proj_weight": (12, 4),
    "attention/query/kernel": (8, 4, 8),
    "stacked/value/kernel": (4, 8, 4, 8),
}
INPUTS_AT_MINUS_2 = {
    "dense/kernel": (8, 4),
    "conv/kernel": (3, 3, 4, 8),
    "stack/kernel": (12, 8, 4),
    "w": (8, 4),
    "attention/out/kernel": (2, 4, 8),
    "self/query/kernel": (8, 8),
    "layers/query/kernel": (12, 8, 16),
    "layers/out/kernel": (12, 16, 8),
    "embedding": (8, 4),
}
WEIGHTS = {"stacked/out/kernel": (4, 4, 8, 8)}


def _nested(shapes):
    """The tree of these paths."""
    tree = {}
    for path, shape in shapes.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.ones(shape)
    return tree


@pytest.mark.parametrize("pattern", [patterns.NM(2, 4), patterns.Along()], ids=["NM", "Along"])
def test_an_axis_that_a_name_contradicts_is_said(pattern):
    sparsity = None if pattern.sparsity is not None else 0.5
    for path, shape in INPUTS_ELSEWHERE.items():
        tree = _nested({path: shape, **WEIGHTS})
        with pytest.warns(UserWarning, match=rf"takes axis -2 for the inputs, .* not in '{path}'"):
            jaxprune.magnitude(tree, sparsity, pattern=pattern)
        jaxprune.magnitude(tree, sparsity, pattern=dataclasses.replace(pattern, axis=-1))
    jaxprune.magnitude(_nested(INPUTS_AT_MINUS_2), sparsity, pattern=pattern)


def test_the_output_axis_that_a_name_contradicts_is_said():
    tree = {"layers": [{"weight": jnp.ones((8, 4))}] * 5}
    with pytest.warns(UserWarning, match=r"`Channel\(\)` takes axis -1 for the outputs.*and 2 more. Give `axis=0`"):
        jaxprune.slim(tree, 0.5)
    assert jaxprune.slim(tree, 0.5, axis=0)["layers"][0]["weight"].shape == (8, 1)
    assert jaxprune.slim({"kernel": jnp.ones((8, 4))}, 0.5)["kernel"].shape == (1, 4)


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: patterns.NM(2.0, 4), TypeError, r"`n` must be a whole number; got 2.0"),
        (lambda: patterns.NM("2", 4), TypeError, r"`n` must be a whole number; got '2'"),
        (lambda: patterns.NM(5, 4), ValueError, r"needs 0 <= n <= m"),
        (lambda: patterns.NM(2, 4, group=0), ValueError, r"number of outputs that share a choice; got 0"),
        (lambda: patterns.Block(4), TypeError, r"takes both sizes as a tuple, e.g. Block\(\(16, 16\)\); got 4"),
        (lambda: patterns.Block((4, 4.0)), TypeError, r"`shape` must be a whole number; got 4.0"),
        (lambda: patterns.Block((4, 0)), ValueError, r"needs two positive sizes"),
        (lambda: patterns.Channel(0.5), TypeError, r"`axis` must be a whole number; got 0.5"),
    ],
)
def test_patterns_check_their_options(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("m", [4, 16, 32])
@pytest.mark.parametrize("shape", [(0, 8), (64, 0), (64, 3, 5)], ids=str)
def test_n_of_m_is_the_same_in_host_memory_and_traced(m, shape):
    # Few different values, hence ties; groups are compared in place up to 16, by bisection above.
    scores = np.random.default_rng(0).integers(-2, 3, shape).astype(np.float32)
    pattern = patterns.NM(m // 2, m, axis=0)
    found = np.asarray(jax.jit(lambda s: jaxprune.select([s], 0, pattern=pattern)[0])(scores))
    groups = scores.reshape(shape[0] // m, m, *shape[1:])
    order = np.argsort(-groups, axis=1, kind="stable")
    expected = (np.argsort(order, axis=1) < m // 2).reshape(shape)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(jaxprune.select([jnp.asarray(scores)], 0, pattern=pattern)[0], expected)
