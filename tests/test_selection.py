"""Selection against a NumPy oracle: exact counts, ties to the lowest index, NaN first, on every kind of data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import patterns
from jaxprune._arrays import ordering
from jaxprune._selection import counting, exact, marks, partition, threshold
from jaxprune._selection.brackets import Bracket


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


@pytest.fixture(autouse=True)
def _none_are_few(monkeypatch, request):
    """What is done for few scores has a test of its own; here the others are small for the tests' sake."""
    if "few" not in request.fixturenames:
        monkeypatch.setattr(exact, "_FEW", 0)


@pytest.mark.parametrize("kind", kinds(8))
@pytest.mark.parametrize("few", [jnp.float32, jnp.bfloat16])
def test_few_scores_are_bisected(few, kind):
    """The same masks, of leaves each by itself and together, some of them empty or of another dtype."""
    scores = [jnp.asarray(kinds(size, size)[kind]).astype(few) for size in (1, 40, 130)] + [jnp.zeros((0, 3))]
    scores[1] = scores[1].reshape(5, 8).astype(jnp.float32)
    for share in (0, 0.3, 1):
        counts = [round(share * score.size) for score in scores]
        for got, score, count in zip(jaxprune.select(scores, counts), scores, counts, strict=True):
            assert np.array_equal(got, oracle(score.astype(jnp.float32), count))
        together = np.concatenate([np.asarray(score, np.float32).ravel() for score in scores])
        for absolute in (False, True):
            got = jaxprune.select(scores, sum(counts), absolute=absolute)
            expected = oracle(np.abs(together) if absolute else together, sum(counts))
            assert np.array_equal(np.concatenate([np.ravel(mask) for mask in got]), expected)
            assert [mask.shape for mask in got] == [score.shape for score in scores]


@pytest.mark.parametrize("kind", kinds(8))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_select_is_exact(kind, dtype):
    for seed, size in enumerate((1, 17, 1000)):
        scores = jnp.asarray(kinds(size, seed)[kind]).astype(dtype)
        for keep in sorted({0, 1, size // 10, size // 2, size - 1, size}):
            got = jaxprune.select(scores, keep)
            assert np.array_equal(got, oracle(scores.astype(jnp.float32), keep)), (size, keep)


@pytest.mark.parametrize("kind", kinds(8))
def test_select_is_exact_beyond_the_sample(kind):
    """Large enough for the sample, the lanes, the window and the blocks of ties, with a remainder in each."""
    size = 300_007
    scores = kinds(size)[kind]
    for keep in (size // 10, size // 2):
        assert np.array_equal(jaxprune.select(jnp.asarray(scores), keep), oracle(scores, keep)), keep


@pytest.mark.parametrize("kind", kinds(8))
@pytest.mark.parametrize("pattern", [patterns.Unstructured(), patterns.Block((7, 1))])
def test_absolute_values_are_the_scores_if_so_asked(kind, pattern):
    scores = jnp.asarray(kinds(7 * 3001)[kind]).reshape(-1, 7).T
    for keep in (0, 300, 3001):
        got = jaxprune.select({"a": scores}, {"a": keep}, pattern=pattern, absolute=True)
        expected = jaxprune.select({"a": jnp.abs(scores)}, {"a": keep}, pattern=pattern)
        assert np.array_equal(got["a"], expected["a"]), keep


def test_a_crowded_window_falls_back_to_counting():
    """More scores between two neighbouring probes than the lanes can lift out, all different by one key at most."""
    keys = np.random.default_rng(0).integers(2**30, 2**30 + 300, 400_000).astype(np.int32)
    scores = keys.view(np.float32)
    assert np.array_equal(jaxprune.select(jnp.asarray(scores), 123_457), oracle(scores, 123_457))


@pytest.mark.parametrize("lower", [-(2**31) + 5, 1_000, 2**31 - 400])
@pytest.mark.parametrize("most", [0, 1, 2, 3, 4])
def test_a_window_is_lifted_out_whole_or_said_to_be_crowded(lower, most):
    """Up to three keys of a row come out, also where their sum overflows; a fourth is noticed."""
    rng, window = np.random.default_rng(most), np.array([lower, lower + 300], np.int64)
    rows = rng.choice([window[0] - 1, window[1]], (10, 16))
    for row in range(10):
        own = rng.integers(0, most + 1) if row else most
        rows[row, rng.permutation(16)[:own]] = rng.integers(*window, own)
    above, crowded, lifted = counting.lift(
        jnp.asarray(rows.reshape(-1), jnp.int32), jnp.asarray(window, jnp.int32), False
    )
    inside = np.sort(rows[(rows >= window[0]) & (rows < window[1])])
    found = np.asarray(lifted)
    assert above.tolist() == [(rows >= end).sum() for end in window]
    assert bool(crowded) == (most > 3)
    assert crowded or np.array_equal(np.sort(found[found > -(2**31)]), inside)


@pytest.mark.parametrize(("floor", "least"), [(1, 70), (70, 70), (71, 90), (96, 2**31 - 1)])
def test_the_least_key_behind_a_gap_is_found_in_counting(floor, least):
    keys = jnp.asarray(np.r_[np.zeros(3_000), 70, 90, np.full(700, 95)], jnp.int32)
    found = counting.count(keys, jnp.array([0, 1, 91], jnp.int32), jnp.int32(floor), False)
    assert (found.above.tolist(), int(found.least)) == ([3_702, 702, 700], least)


@pytest.mark.parametrize("size", [1, 300, 2**10, 2**18, 2**18 + 77, 600_001])
def test_rows_of_any_array_hold_its_counts_and_ties(size):
    keys = np.random.default_rng(size).integers(-5, 5, size).astype(np.int32)
    by_row = jnp.stack(counting.count_rows(jnp.asarray(keys), jnp.array([-1, 0, 3], jnp.int32), jnp.int32(2), False))
    found = counting.added(by_row[None])
    assert found.above[0].tolist() == [(keys >= mark).sum() for mark in (-1, 0, 3)]
    assert int(found.least[0]) == min(keys[keys >= 2], default=2**31 - 1)
    width = counting.row_width(size)
    rows = np.pad(keys, (0, -size % width), constant_values=9).reshape(-1, width)
    assert (by_row[0] - by_row[1]).tolist() == [*(rows == -1).sum(axis=1), *[0] * (counting.ROWS - len(rows))]


@pytest.mark.parametrize("size", [1, 50, 2**18, 23_456_789, 2**31 - 1])
def test_sampled_places_lie_all_over_a_leaf(size):
    places = np.sort(np.asarray(marks._places(np.array([size]), 1_000)[0]))
    assert places[0] >= 0
    assert places[-1] < size
    assert np.diff(places, prepend=0, append=size).max() <= max(3 * size / 1_000, 1)


@pytest.mark.parametrize("known", [[1, 3, 6, 9], [3, 6, 9], [1, 3, 6]])
def test_interpolation_follows_a_curve(known):
    """Of exponentially distributed scores a tenth is to stay; a line through both ends is far off."""
    values = np.random.default_rng(0).exponential(size=1_000_000).astype(np.float32)
    at = np.array([1.9, 2.1, 2.2, 2.25, 2.3, 2.35, 2.4, 2.5, 2.6, 2.8], np.float32)[known]
    keys = ordering.keys(jnp.asarray(at))[None]
    excess = jnp.asarray([[(values >= value).sum() - 100_000 for value in at]], jnp.int32)
    low, high = known.index(3), known.index(6)
    bracket = Bracket(keys[:, low], keys[:, high], excess[:, low], -excess[:, high])
    line = excess[0, low] / (excess[0, low] - excess[0, high])
    truth = (np.log(10) - at[low]) / (at[high] - at[low])
    bent = line + marks.bend(bracket, keys, excess, jnp.float32)[0]
    assert abs(line - truth) > 0.015
    assert abs(bent - truth) < 0.005


def test_interpolation_is_straight_where_nothing_tells_otherwise():
    """No mark on either side, or one that holds no score more than the bracket."""
    keys = jnp.arange(4, dtype=jnp.int32)[None] * 1_000
    bracket = Bracket(keys[:, 1], keys[:, 2], jnp.array([5], jnp.int32), jnp.array([7], jnp.int32))
    assert marks.bend(bracket, keys[:, 1:3], jnp.array([[5, -7]], jnp.int32), jnp.float32).tolist() == [0]
    assert marks.bend(bracket, keys, jnp.array([[5, 5, -7, -7]], jnp.int32), jnp.float32).tolist() == [0]


def test_leaves_compete_under_one_count_and_not_under_a_count_each():
    scores = {"a": jnp.array([[5.0, 1.0]]), "b": None, "c": jnp.array([4.0, 3.0]), "d": jnp.zeros((0, 3))}
    together = jaxprune.select(scores, 3)
    assert together["a"].tolist() == [[True, False]]
    assert together["c"].tolist() == [True, True]
    assert together["b"] is None
    assert together["d"].shape == (0, 3)
    each = jaxprune.select(scores, {"a": 1, "b": None, "c": 1, "d": 0})
    assert each["a"].tolist() == [[True, False]]
    assert each["c"].tolist() == [True, False]


def test_ties_across_leaves_go_to_the_first_leaf():
    masks = jaxprune.select({"a": jnp.ones(3), "b": jnp.ones(3)}, 4)
    assert masks["a"].tolist() == [True] * 3
    assert masks["b"].tolist() == [True, False, False]


@pytest.mark.parametrize("most", [200, 10**6])
def test_ties_across_large_leaves_go_to_the_first(most, monkeypatch):
    """Other than zeros; the leaves before the one that is cut keep all of theirs, those after it none."""
    monkeypatch.setattr(partition, "_LARGE", most)
    scores = [np.random.default_rng(i).choice([1.0, 3.0, 5.0], 500).astype(np.float32) for i in range(12)]
    together = np.concatenate(scores)
    for keep in (np.sum(together > 3) + extra for extra in (1, 700, 1_900)):
        masks = jaxprune.select([jnp.asarray(score) for score in scores], int(keep))
        assert np.array_equal(np.concatenate(masks), oracle(together, keep)), keep


@pytest.mark.parametrize("seed", range(4))
def test_many_leaves_are_exact_whatever_their_sizes(seed, monkeypatch):
    """Rows of small leaves, and more large ones than are lifted from: here a row is short, and 200 scores are many."""
    monkeypatch.setattr(partition, "_LARGE", 200)
    monkeypatch.setattr(partition, "_ROW", 32)
    monkeypatch.setattr(partition, "_BRANCHES", (5, 12)[seed % 2])
    rng = np.random.default_rng(seed)
    names = list(kinds(8))
    sizes = [*rng.integers(1, 200, 9), *rng.choice([200, 256, 300 + seed], 12)]
    scores = [kinds(size, i)[names[i % len(names)]] for i, size in enumerate(sizes)]
    arrays, counts = [jnp.asarray(score) for score in scores], [int(rng.integers(0, size + 1)) for size in sizes]
    for got, score, count in zip(jaxprune.select(arrays, counts), scores, counts, strict=True):
        assert np.array_equal(got, oracle(score, count)), (score.size, count)
    together = np.concatenate(scores)
    for total in (0, together.size // 10, together.size // 2, together.size):
        got = np.concatenate(jaxprune.select(arrays, total))
        assert np.array_equal(got, oracle(together, total)), total


@pytest.mark.parametrize("number", [1, 10])
def test_large_leaves_are_not_copied(number):
    leaves = [jax.ShapeDtypeStruct((2**20 + 300 * (i + 1),), jnp.float32) for i in range(number)]
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
    masks = jaxprune.select(scores, 3)
    assert {k: v.tolist() for k, v in masks.items()} == {"a": [False, True], "b": [True, False], "c": [True]}


def test_counting_alone_takes_few_passes(monkeypatch):
    """As on a mesh, where nothing is sampled: binary search over keys would take 31."""
    counted, calls = threshold._counted, list[None]()

    def noted(*args):
        jax.debug.callback(lambda: calls.append(None))
        return counted(*args)

    monkeypatch.setattr(threshold, "_counted", noted)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1])
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    select = jax.jit(lambda scores: jaxprune.select(scores, 5_000))
    for kind, most in {"normal": 8, "heavy-tailed": 8, "half zero": 8, "few values": 6}.items():
        scores = kinds(50_000)[kind]
        assert np.array_equal(select(jax.device_put(scores, spread)), oracle(scores, 5_000))
        jax.effects_barrier()
        assert 2 < len(calls) <= most, kind
        calls.clear()


def test_float64_scores_are_told_apart_beyond_float32():
    with jax.enable_x64(True):
        scores = jnp.array([1.0, 1.0 + 1e-12, 1.0 + 2e-12], jnp.float64)
        assert jaxprune.select(scores, 1).tolist() == [False, False, True]


def test_wrong_counts_and_scores_are_named():
    with pytest.raises(ValueError, match=r"keep-count of 'a' must be an integer from 0 to 4; got 5"):
        jaxprune.select({"a": jnp.ones(4)}, {"a": 5})
    with pytest.raises(ValueError, match=r"keep-count of all leaves must be .* got -1"):
        jaxprune.select({"a": jnp.ones(4)}, -1)
    with pytest.raises(TypeError, match=r"'a' must be a floating-point array to be pruned; got dtype int32"):
        jaxprune.select({"a": jnp.ones(4, jnp.int32)}, {"a": 1})
    with pytest.raises(ValueError, match=r"`NM\(2, 4\)` needs axis -2 divisible by 4; 'a' has shape \(30, 10\)"):
        jaxprune.select({"a": jnp.ones((30, 10))}, 0, pattern=patterns.NM(2, 4))


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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_values_are_the_inverse_of_keys(dtype):
    values = jnp.array([-3.5, -1e-3, 0.0, 1e-3, 1.0, 1024.0], dtype)
    assert jnp.array_equal(ordering.values(ordering.keys(values), dtype), values)
    beyond = ordering.values(jnp.array([jnp.iinfo(jnp.int32).min, jnp.iinfo(jnp.int32).max]), dtype)
    assert beyond.tolist() == [float(jnp.finfo(dtype).min), float(jnp.finfo(dtype).max)]


def test_counts_of_the_highest_agree_with_the_masks():
    scores = {"a": jnp.asarray(kinds(900)["few values"]).reshape(30, 30), "b": jnp.asarray(kinds(500)["normal"])}
    for total in (0, 77, 1400):
        counts = exact.counts_of_highest(scores, total)
        masks = jaxprune.select(scores, total)
        assert {k: int(v) for k, v in counts.items()} == {k: int(v.sum()) for k, v in masks.items()}
        again = jaxprune.select(scores, counts)
        assert all(jax.tree.leaves(jax.tree.map(lambda m, n: bool((m == n).all()), masks, again)))


def test_leaves_are_settled_each_in_its_own_time():
    """Leaves that close in the first pass, or keep none or all, are left as they are while others are searched on."""
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
    masks = jaxprune.select(scores, {name: keep for name, (_, keep) in trees.items()})
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
    assert np.array_equal(jaxprune.select(jnp.asarray(scores), keep), oracle(scores, keep))
