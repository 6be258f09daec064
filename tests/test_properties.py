"""What must hold for any scores, any sparsity and any pattern."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jaxprune
from jaxprune import budgets, patterns

# Few shapes, so that little is compiled; the data vary.
SHAPES = st.sampled_from([(4, 6), (8, 8), (3, 5, 4)])
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0]),
    st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True),
)
ARRAYS = SHAPES.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=VALUES))
SPARSITIES = st.floats(0, 1, width=32)
EXAMPLES = settings(max_examples=40, deadline=None)


@EXAMPLES
@given(ARRAYS, SPARSITIES)
def test_the_count_is_exact_and_what_is_kept_scores_no_less(scores, sparsity):
    mask = np.asarray(jaxprune.from_scores([jnp.asarray(scores)], sparsity)[0])
    assert mask.sum() == round(scores.size * (1 - sparsity))
    kept, removed = scores[mask], scores[~mask]
    assert not np.isnan(kept).any() or np.isnan(removed).all()
    numbers = removed[~np.isnan(removed)]
    if kept.size and numbers.size and not np.isnan(kept).any():
        assert kept.min() >= numbers.max()


@EXAMPLES
@given(ARRAYS, SPARSITIES, SPARSITIES)
def test_masks_nest_as_sparsity_grows(scores, first, second):
    less, more = sorted((first, second))
    larger, smaller = (jaxprune.from_scores([jnp.asarray(scores)], s)[0] for s in (less, more))
    assert bool(jnp.all(larger | ~smaller))


@EXAMPLES
@given(ARRAYS, SPARSITIES)
def test_pruning_what_is_pruned_changes_nothing(weights, sparsity):
    weights = np.nan_to_num(weights, nan=1.0)
    once = jaxprune.apply([jnp.asarray(weights)], jaxprune.magnitude([jnp.asarray(weights)], sparsity))
    twice = jaxprune.apply(once, jaxprune.magnitude(once, sparsity))
    assert np.array_equal(once[0], twice[0])


@EXAMPLES
@given(hnp.arrays(np.float32, (8, 6), elements=VALUES), st.sampled_from([(1, 4), (2, 4), (4, 8), (0, 2), (2, 2)]))
def test_every_group_keeps_exactly_n(scores, n_of_m):
    n, m = n_of_m
    groups = scores.reshape(8 // m, m, 6)
    mask = np.asarray(jaxprune.select([jnp.asarray(scores)], 0, pattern=patterns.NM(n, m))[0])
    kept = mask.reshape(groups.shape)
    assert np.all(kept.sum(axis=1) == n)
    if not np.isnan(groups).any():
        ordered = np.argsort(-groups, axis=1, kind="stable")
        best = np.zeros(groups.shape, bool)
        np.put_along_axis(best, ordered[:, :n], True, axis=1)
        assert np.array_equal(kept, best)


@EXAMPLES
@given(hnp.arrays(np.float32, (7, 10), elements=st.floats(-4, 4, width=32)), SPARSITIES)
def test_ragged_blocks_are_whole_and_counted_as_blocks(weights, sparsity):
    mask = np.asarray(jaxprune.magnitude([jnp.asarray(weights)], sparsity, pattern=patterns.Block((3, 4)))[0])
    assert mask.shape == weights.shape
    blocks = [mask[i : i + 3, j : j + 4] for i in range(0, 7, 3) for j in range(0, 10, 4)]
    assert all(block.all() or not block.any() for block in blocks)
    assert sum(bool(block.all()) for block in blocks) == round(9 * (1 - sparsity))


@EXAMPLES
@given(SHAPES.flatmap(lambda shape: hnp.arrays(bool, shape)))
def test_pack_comes_back(mask):
    packed = jaxprune.pack([jnp.asarray(mask)])
    assert packed[0].nbytes == -(-mask.size // 8)
    assert np.array_equal(jaxprune.unpack(packed)[0], mask)


# Each leaf once the larger one and both alike: the threshold over two leaves compiles longer than any other.
PAIRS = st.sampled_from([((4, 6), (8, 8)), ((3, 5, 4), (4, 6)), ((8, 8), (8, 8))]).flatmap(
    lambda shapes: st.tuples(*(hnp.arrays(np.float32, shape, elements=VALUES) for shape in shapes))
)


@EXAMPLES
@given(PAIRS, SPARSITIES)
def test_budgets_sum_to_the_request(pair, sparsity):
    first, second = pair
    scores = {"a": jnp.abs(jnp.asarray(first)), "b": jnp.abs(jnp.asarray(second))}
    groups = first.size + second.size
    for budget in (budgets.global_, budgets.erk):
        counts = budget(scores, sparsity, patterns.Unstructured())
        assert sum(int(c) for c in jax.tree.leaves(counts)) == round(groups * (1 - sparsity))
        assert all(0 <= int(counts[k]) <= scores[k].size for k in scores)


@EXAMPLES
@given(hnp.arrays(np.float32, (5, 6), elements=st.floats(-4, 4, width=32)), SPARSITIES, st.sampled_from(["dft", "dct"]))
def test_frequency_masks_keep_exact_degrees_and_nest(weights, sparsity, transform):
    mask = jaxprune.dft([jnp.asarray(weights)], sparsity, transform=transform)[0]
    assert int(mask.count(weights.shape)) == round(30 * (1 - sparsity))
    once = mask.project(jnp.asarray(weights))
    np.testing.assert_allclose(mask.project(once), once, atol=1e-4)


@EXAMPLES
@given(ARRAYS, SPARSITIES)
def test_combining_is_boolean_algebra(scores, sparsity):
    a = jaxprune.from_scores([jnp.asarray(scores)], sparsity)
    b = jaxprune.from_scores([-jnp.asarray(scores)], sparsity)
    both, either = jaxprune.intersection(a, b), jaxprune.union(a, b)
    assert int(both[0].sum()) + int(either[0].sum()) == int(a[0].sum()) + int(b[0].sum())
    assert float(jaxprune.overlap(a, a)) == 1.0
