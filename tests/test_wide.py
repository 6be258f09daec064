"""Numbers beyond 32 bits against Python's own."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import jaxprune
from jaxprune import budgets, patterns
from jaxprune._arrays import wide
from jaxprune._selection import counting

LARGEST = 2**31 - 1
ROWS, COLUMNS = 2**15, 22_528
numbers = st.integers(0, wide.END - 1)
counts = st.lists(st.integers(0, LARGEST), min_size=1, max_size=50)
quick = hypothesis.settings(max_examples=60, deadline=None)


@quick
@hypothesis.given(first=numbers, second=numbers)
def test_sums_differences_and_bounds(first, second):
    a, b = wide.of(first), wide.of(second)
    assert wide.exact(wide.plus(a, b)) == first + second
    assert wide.exact(wide.minus(a, b)) == first - second
    assert wide.exact(wide.at_most(a, b)) == min(first, second)
    assert int(wide.clipped(wide.minus(a, b))) == max(-LARGEST, min(LARGEST, first - second))
    assert float(wide.floating(a)) == pytest.approx(first, rel=2**-22)


@quick
@hypothesis.given(counts)
def test_sums_of_many(values):
    array = jnp.array(values, jnp.int32)
    assert wide.exact(wide.total(array)) == sum(values)
    assert wide.exact(wide.added([array[0], *map(wide.of, values[1:])])) == sum(values)
    high, low = wide.before(array)
    assert [wide.exact(wide.Wide(*digits)) for digits in zip(high, low, strict=True)] == np.r_[
        0, np.cumsum(np.array(values, np.int64))[:-1]
    ].tolist()


@quick
@hypothesis.given(st.integers(0, 2**40 - 1), st.integers(1, 2**24), st.floats(0, 1))
@hypothesis.example(2**40 - 1, 2**24, 1.0)
@hypothesis.example(5, 10, 0.5)
def test_shares(count, whole, share):
    from fractions import Fraction

    part = round(share * whole)
    assert wide.exact(wide.share(count, jnp.int32(part), jnp.int32(whole))) == round(Fraction(count * part, whole))
    if count < 2**31:
        traced = wide.share(jnp.int32(count), jnp.int32(part), jnp.int32(whole))
        assert wide.exact(traced) == round(Fraction(count * part, whole))


@pytest.mark.parametrize("number", [0, 1, 65_535, 65_536, 2**31 - 1, 2**31, 3_000_000_000, 2**40 - 1])
def test_the_ends_of_digits(number):
    digits = wide.of(number)
    assert wide.exact(digits) == number
    assert int(wide.clipped(digits)) == min(number, LARGEST)
    assert wide.exact(wide.rounded(jnp.float32(number))) == int(np.float32(number))


@quick
@hypothesis.given(st.integers(2**31, 10**12), st.integers(0, 10**6))
@hypothesis.example(2**31 + 1, 500_000)
@hypothesis.example(4_000_000_001, 500_000)
@hypothesis.example(4_001_000_001, 999_999)
def test_keep_counts_are_exact_beyond_32_bits(groups, removed):
    """Half to even, as `round` of the exact quotient."""
    from fractions import Fraction

    kept = budgets.keep_count(groups, jnp.float32(removed / 10**6))
    read = round(float(np.float32(removed / 10**6)) * 10**6)  # six decimals are read
    assert wide.exact(kept) == round(Fraction(groups * (10**6 - read), 10**6))


@pytest.mark.parametrize("budget", [budgets.erk, budgets.owl, budgets.global_, budgets.cumulative(0.75)])
def test_budgets_count_the_weights_of_large_models(budget):
    """Abstractly: 24 leaves of 2**28 make 6.4 billion weights."""
    leaves = [jax.ShapeDtypeStruct((2**14, 2**14), jnp.bfloat16)] * 24
    sparsity = getattr(budget, "sparsity", 0.25)
    prune = functools.partial(jaxprune.magnitude, sparsity=sparsity, budget=budget)
    masks = jax.eval_shape(prune, leaves)
    assert [mask.shape for mask in masks] == [leaf.shape for leaf in leaves]


def test_what_cannot_count_in_a_leaf_of_32_bits_says_so():
    leaf = {"a": {"kernel": jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)}}
    along = functools.partial(jaxprune.magnitude, sparsity=0.5, pattern=patterns.Along())
    with pytest.raises(ValueError, match=r"`Along` compares .* 2\*\*31 scores; 'a/kernel' has 2147483648"):
        jax.eval_shape(along, leaf)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31; got one of 2147483648"):
        jax.eval_shape(functools.partial(jaxprune.magnitude, sparsity=0.5, budget=budgets.erk), leaf)
    with pytest.raises(ValueError, match=r"2\*\*31 groups or more .* got one that was counted"):
        budgets.keep_count(wide.of(2**31), 0.5)
    masks = jax.eval_shape(functools.partial(jaxprune.magnitude, sparsity=0.5), leaf)
    assert masks["a"]["kernel"].shape == (2**16, 2**15)


def test_shares_of_large_leaves_sum_to_the_total():
    sizes = np.array([2**31 - 1, 2**30, 5_000, 2**31 - 64])
    total = 3_333_333_333
    share = jnp.asarray(sizes * (total / sizes.sum()), jnp.float32)
    kept = np.asarray(budgets._rounded(share, sizes, total), np.int64)
    assert kept.sum() == total
    assert (kept <= sizes).all()
    assert np.allclose(kept, share, rtol=1e-6, atol=1)


def test_metrics_count_the_weights_of_large_models():
    leaves = [jax.ShapeDtypeStruct((2**15, 2**15), jnp.bfloat16)] * 5
    row = jnp.arange(2**15)[:, None] < 2**13  # broadcasts: a quarter is kept
    assert float(jaxprune.sparsity(leaves, [row] * 5)) == 0.75
    assert jaxprune.nbytes(leaves, [row] * 5) == 5 * (2**29 + row.size // 8)


@pytest.mark.parametrize("kind", ["few", "many"])
def test_a_leaf_that_is_cut_into_slabs_is_selected_from_as_a_whole(kind, monkeypatch):
    """Slabs of 100 scores stand for those of 2**31."""
    rng = np.random.default_rng(0)
    shapes = {"cut": (13, 6, 5), "small": (4, 5), "empty": (0, 3), "flat": (777,)}
    draw = {"few": lambda n: rng.integers(-2, 3, n).astype(np.float32), "many": rng.standard_normal}[kind]
    scores = {name: jnp.asarray(draw(shape), jnp.float32) for name, shape in shapes.items()}
    each = {"cut": 111, "small": 0, "empty": 0, "flat": 776}
    take = jax.jit(lambda scores: (jaxprune.select(scores, each), jaxprune.select(scores, 500)))
    expected = take(scores)
    monkeypatch.setattr(counting, "_SLAB", 100)
    jax.clear_caches()
    found = take(scores)
    jax.clear_caches()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(ours, theirs)


@jax.jit
def _scores(offset):
    """738 million scores of seven values."""
    rows = jax.lax.broadcasted_iota(jnp.int32, (ROWS, COLUMNS), 0)
    return ((rows * 3 + jnp.arange(COLUMNS)[None, :] + offset) % 7).astype(jnp.bfloat16)


@jax.jit
def _described(score, mask, threshold):
    """Of each row, how many are kept above the threshold, at it and in all; its last kept tie and its first other."""

    def row(own):
        score, mask = own
        tied, place = score == threshold, jnp.arange(COLUMNS)
        numbers = [jnp.sum(kept, dtype=jnp.int32) for kept in (mask & (score > threshold), mask & tied, mask)]
        return *numbers, jnp.max(jnp.where(tied & mask, place, -1)), jnp.min(jnp.where(tied & ~mask, place, COLUMNS))

    return jax.lax.map(row, (score, mask), batch_size=64)


@pytest.mark.slow
def test_selection_among_more_scores_than_32_bits_count():
    """2.2 billion scores: the number of those above the threshold, or with its ties, lies beyond 2**31."""
    scores = [_scores(jnp.int32(offset)) for offset in range(3)]
    rows, columns = (np.bincount(step * np.arange(n) % 7) for step, n in ((3, ROWS), (1, COLUMNS)))
    each = [
        [sum(int(rows[i]) * int(columns[(value - offset - i) % 7]) for i in range(7)) for value in range(7)]
        for offset in range(3)
    ]
    size = 3 * ROWS * COLUMNS
    prune = jax.jit(lambda scores, sparsity: jaxprune.magnitude(scores, sparsity, budget=budgets.global_))
    for sparsity in (0.01, 0.25, 0.875):
        masks = prune(scores, jnp.float32(sparsity))
        keep = round(size * (10**6 - round(sparsity * 10**6)) / 10**6)
        threshold = next(v for v in range(6, -1, -1) if sum(sum(own[v:]) for own in each) >= keep)
        left = keep - sum(sum(own[threshold + 1 :]) for own in each)
        for score, mask, own in zip(scores, masks, each, strict=True):
            found = _described(score, mask, jnp.bfloat16(threshold))
            above, tied, kept = (int(np.asarray(rows).sum(dtype=np.int64)) for rows in found[:3])
            stay = min(left, own[threshold])
            assert (above, tied, kept) == (sum(own[threshold + 1 :]), stay, above + tied)
            last, following = (np.arange(ROWS) * COLUMNS + np.asarray(places) for places in found[3:])
            some = np.asarray(found[3]) >= 0, np.asarray(found[4]) < COLUMNS
            assert last[some[0]].max(initial=-1) < following[some[1]].min(initial=ROWS * COLUMNS)
            left -= stay
        assert left == 0
        assert float(jaxprune.sparsity(scores, masks)) == pytest.approx(sparsity, abs=1e-6)
        del masks


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [5, 2**21 + 7])
def test_ties_in_the_last_rows_of_a_leaf_as_large_as_32_bits_count(left_out):
    size = 2**31 - 1
    mask = jax.jit(lambda: jaxprune.select(jnp.zeros(size, jnp.bfloat16), size - left_out))()
    assert int(jax.jit(lambda mask: jnp.sum(mask.astype(jnp.int32), dtype=jnp.int32))(mask)) == size - left_out
    tail = np.asarray(mask[-left_out - 3 :])
    assert tail.tolist() == [True] * 3 + [False] * left_out
