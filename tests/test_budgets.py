"""Budgets: counts against exact arithmetic, and what each of them promises."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import budgets, patterns

UNSTRUCTURED = patterns.Unstructured()


def scores():
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 8, 16), "dense": (64, 33), "head": (16, 10), "tiny": (2, 3)}
    scales = {"conv": 1.0, "dense": 0.3, "head": 2.0, "tiny": 0.01}
    return {k: jnp.asarray(scales[k] * np.abs(rng.standard_normal(s)).astype(np.float32)) for k, s in shapes.items()}


def total(counts):
    return sum(int(count) for count in jax.tree.leaves(counts))


@pytest.mark.parametrize("groups", [1, 7, 999, 1_000_000, 25_000_000, 2_000_000_001])
def test_a_traced_sparsity_counts_as_exactly_as_a_number(groups):
    for sparsity in ("0", "0.1", "0.5", "0.625", "0.9", "0.98", "0.999999", "1"):
        exact = groups * (1 - Fraction(sparsity))
        expected = round(exact)  # Python rounds a Fraction half to even
        assert int(budgets.keep_count(groups, jnp.float32(float(sparsity)))) == expected, sparsity
        if abs(exact - expected) != Fraction(1, 2):
            assert budgets.keep_count(groups, float(sparsity)) == expected


def test_a_sparsity_within_three_quarters_of_its_last_digit_is_a_decimal():
    """Random ones, of which one in ten is near one, and the neighbours of what decimals round to."""
    rng = np.random.default_rng(0)
    near = np.rint(rng.integers(0, 10**6, 300) * (2**24 / 10**6)).astype(np.int64)
    numbers = np.concatenate([near + step for step in (-1, 0, 1)] + [rng.integers(0, 2**24, 300)]).clip(0, 2**24)
    groups = 2_000_000_001
    expected = list[int]()
    for number in numbers.tolist():
        exact = Fraction(number, 2**24)
        decimal = Fraction(round(exact * 10**6), 10**6)
        meant = decimal if abs(exact - decimal) * 2**24 <= Fraction(3, 4) else exact
        expected.append(round(groups * (1 - meant)))
    sparsities = (numbers / 2**24).astype(np.float32)
    assert [budgets.keep_count(groups, sparsity) for sparsity in sparsities.tolist()] == expected
    traced = jax.jit(jax.vmap(functools.partial(budgets.keep_count, groups)))
    np.testing.assert_array_equal(traced(sparsities), expected)


def test_scores_are_normalized_by_the_root_mean_square_of_the_finite_ones():
    found = budgets._normalized(jnp.array([3.0, -4.0, jnp.inf, 0.0, -jnp.inf]))
    rms = np.sqrt((9 + 16) / 3)
    np.testing.assert_allclose(found, [3 / rms, -4 / rms, np.inf, 0, -np.inf], rtol=1e-6)
    np.testing.assert_array_equal(budgets._normalized(jnp.zeros(3)), np.zeros(3))
    np.testing.assert_array_equal(budgets._normalized(jnp.full(2, jnp.inf)), [np.inf, np.inf])


@pytest.mark.parametrize(
    ("share", "total", "expected"),
    [
        ([1, 1, 5], 20, [10, 4, 6]),
        ([5.2, 1, 2], 3, [0, 1, 2]),
        ([3.5, 2.75, 9.25], 15, [3, 3, 9]),
        ([3.25, 12, -1], 14, [4, 10, 0]),
    ],
)
def test_shares_are_rounded_to_their_total(share, total, expected):
    """One each to the largest fractions, then whatever is missing to the first leaves that have room."""
    share, sizes = np.asarray(share, np.float32), np.array([10, 10, 10])
    assert budgets._rounded(share, sizes, total).tolist() == expected
    assert budgets._rounded(jnp.asarray(share), sizes, jnp.int32(total)).tolist() == expected


def test_half_goes_to_even():
    assert [budgets.keep_count(n, 0.5) for n in (1, 3, 5)] == [0, 2, 2]
    assert [int(budgets.keep_count(n, jnp.float32(0.5))) for n in (1, 3, 5)] == [0, 2, 2]


@pytest.mark.parametrize(
    "budget",
    [budgets.global_, functools.partial(budgets.global_, normalize=True), budgets.erk],
    ids=["global", "normalized", "erk"],
)
@pytest.mark.parametrize("pattern", [UNSTRUCTURED, patterns.Block((2, 4)), patterns.Channel()], ids=str)
def test_totals_are_exact_and_traced_or_not_the_same(budget, pattern):
    groups = sum(budgets.group_sizes(scores(), pattern))
    traced = jax.jit(lambda sparsity: budget(scores(), sparsity, pattern))
    for sparsity in (0.0, 0.3, 0.9, 0.98, 1.0):
        counts = budget(scores(), sparsity, pattern)
        assert total(counts) == round(groups * (1 - sparsity))
        assert all(
            0 <= int(c) <= n
            for c, n in zip(jax.tree.leaves(counts), budgets.group_sizes(scores(), pattern), strict=True)
        )
        assert jax.tree.map(int, traced(jnp.float32(sparsity))) == jax.tree.map(int, counts)


def test_erk_follows_its_formula_and_caps_at_one():
    counts = budgets.erk(scores(), 0.5, UNSTRUCTURED)
    assert int(counts["tiny"]) == 6
    assert int(counts["head"]) == 160
    raw = {k: sum(s.shape) / s.size for k, s in scores().items()}
    densities = {k: int(counts[k]) / scores()[k].size for k in ("conv", "dense")}
    assert densities["conv"] / densities["dense"] == pytest.approx(raw["conv"] / raw["dense"], rel=2e-3)


def test_normalisation_keeps_a_leaf_of_small_weights_alive():
    plain = budgets.global_(scores(), 0.5, UNSTRUCTURED)
    fair = budgets.global_(scores(), 0.5, UNSTRUCTURED, normalize=True)
    assert int(plain["tiny"]) == 0
    assert int(fair["tiny"]) > 0


def test_the_global_strategy_is_the_global_budget():
    params = scores()
    masks = jaxprune.magnitude(params, 0.7, budget=budgets.global_)
    assert jax.tree.map(lambda m: int(m.sum()), masks) == jax.tree.map(int, budgets.global_(params, 0.7, UNSTRUCTURED))


@pytest.mark.parametrize("per_leaf", [True, False])
def test_cumulative_keeps_the_fewest_that_reach_the_fraction(per_leaf):
    tree = scores()
    masks = jaxprune.magnitude(tree, budget=budgets.cumulative(0.9, per_leaf=per_leaf))
    parts = [[k] for k in tree] if per_leaf else [list(tree)]
    for part in parts:
        values = np.sort(np.concatenate([np.asarray(tree[k], np.float64).ravel() for k in part]))[::-1]
        fewest = 1 + int((np.cumsum(values) < 0.9 * values.sum() * (1 - 1e-7)).sum())
        assert sum(int(masks[k].sum()) for k in part) == pytest.approx(fewest, abs=1)


def test_cumulative_counts_ties_and_zeros():
    masks = jaxprune.from_scores(
        {"equal": jnp.full((2, 5), 2.0), "zero": jnp.zeros((2, 5))}, budget=budgets.cumulative(0.55)
    )
    assert int(masks["equal"].sum()) == 6
    assert int(masks["zero"].sum()) == 0
    with pytest.raises(ValueError, match=r"decides the sparsity from the scores; got sparsity 0.5"):
        jaxprune.magnitude(scores(), 0.5, budget=budgets.cumulative(0.9))
    with pytest.raises(ValueError, match=r"fraction between 0 and 1; got 90"):
        budgets.cumulative(90)


def test_by_path_takes_expressions_predicates_and_a_default():
    budget = budgets.by_path({"conv": 0.25, lambda path: path == "head": 1.0}, default=0.5)
    counts = budget(scores(), 0.9, UNSTRUCTURED)
    assert counts == {"conv": 864, "dense": 1056, "head": 0, "tiny": 3}
    assert budgets.by_path({"conv": 0.25})(scores(), 1.0, UNSTRUCTURED)["dense"] == 0


def test_a_sparsity_out_of_range_says_what_it_means():
    with pytest.raises(ValueError, match=r"`sparsity` must be a fraction between 0 and 1; got 90. Give 0.9"):
        jaxprune.magnitude(scores(), 90)


BAD = [50, -0.1, np.float32(50), np.int64(50), np.float16(-1), jnp.float32(-1), jnp.int32(2), np.float32("nan"), np.inf]


@pytest.mark.wrong_types
@pytest.mark.parametrize("bad", BAD, ids=[f"{type(bad).__name__} {bad}" for bad in BAD])
def test_a_concrete_sparsity_is_checked_wherever_it_comes_from(bad):
    params = {"kernel": jnp.arange(16.0).reshape(4, 4)}
    calls = [
        *(lambda b=b: jaxprune.magnitude(params, bad, budget=b) for b in (budgets.uniform, budgets.global_)),
        *(lambda b=b: b(params, bad, UNSTRUCTURED) for b in (budgets.erk, budgets.owl, budgets.uniform)),
        lambda: budgets.keep_count(4, bad),
        lambda: budgets.by_path({"kernel": bad}),
        lambda: jaxprune.slim(params, bad, round_to=2),
        lambda: jaxprune.dft(params, bad),
        lambda: jaxprune.layerwise.wanda(params["kernel"], jnp.ones(4), bad),
        lambda: jax.jit(lambda p: jaxprune.magnitude(p, bad))(params),
        lambda: jaxprune.gradual(optax.sgd(0.1), jaxprune.magnitude, bad, end=2),
        lambda: jaxprune.gradual(optax.sgd(0.1), jaxprune.magnitude, lambda step: bad, end=2).init(params),
        lambda: jaxprune.rigl(optax.sgd(0.1), {"kernel": params["kernel"] > 3}, end=2, drop=bad),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"must be a fraction between 0 and 1; got"):
            call()


@pytest.mark.wrong_types
@pytest.mark.parametrize("bad", [True, np.True_, "0.5", [0.5], (0.5,), np.ones(1), jnp.ones(2), 1j, Ellipsis], ids=repr)
def test_a_sparsity_is_a_number(bad):
    params = {"kernel": jnp.arange(16.0).reshape(4, 4)}
    for call in (jaxprune.magnitude, functools.partial(jaxprune.magnitude, budget=budgets.erk), jaxprune.dft):
        with pytest.raises(TypeError, match=r"`sparsity` must be a single real number; got"):
            call(params, bad)


def test_good_sparsities_of_every_kind_are_the_same():
    params = {"kernel": jnp.arange(15.0).reshape(3, 5)}
    for sparsity in (0.9, np.float32(0.9), np.float64(0.9), jnp.float32(0.9), np.array(0.9), jnp.asarray(0.9)):
        masks = jaxprune.magnitude(params, sparsity)
        assert int(masks["kernel"].sum()) == 2, repr(sparsity)
        kernel, _ = jaxprune.layerwise.wanda(params["kernel"], jnp.ones(3), sparsity, within="layer")
        assert int((kernel != 0).sum()) == 2, repr(sparsity)


def test_a_traced_sparsity_is_clipped_and_nan_prunes_nothing():
    prune = jax.jit(lambda sparsity: jaxprune.magnitude([jnp.arange(16.0).reshape(4, 4)], sparsity)[0].sum())
    got = [int(prune(jnp.float32(sparsity))) for sparsity in (-1, 0.25, 7, float("nan"))]
    assert got == [16, 12, 0, 16]


def test_numbers_and_traced_arrays_give_the_same_count():
    """The rule in fractions: a decimal of six digits where float32 comes to it, else 24 binary digits."""
    rng = np.random.default_rng(0)
    decimals = [round(value, digits) for digits in range(1, 7) for value in rng.random(600).tolist()]
    sparsities = decimals + rng.random(2000).tolist() + [0.0, 1.0, 1e-9, 1 - 1e-9, np.nextafter(np.float32(0.5), 1)]
    groups = (2 ** (31 * rng.random(len(sparsities)))).astype(np.int64).clip(0, 2**31 - 1).tolist()
    pairs = list(zip(groups, sparsities, strict=True)) + [(n, s) for n in range(1, 60) for s in (0.1, 0.5, 0.7, 0.9)]
    groups, sparsities = map(list, zip(*pairs, strict=True))
    numbers = [budgets.keep_count(*pair) for pair in pairs]
    traced = jax.jit(jax.vmap(budgets.keep_count))(jnp.asarray(groups, jnp.int32), jnp.asarray(sparsities, jnp.float32))
    assert traced.tolist() == numbers
    for (size, sparsity), kept in zip(pairs, numbers, strict=True):
        if len(str(sparsity)) <= 8:
            assert kept == round(size * (1 - Fraction(str(sparsity)))), (size, sparsity)
        assert abs(kept - size * (1 - sparsity)) <= 0.5 + size * 1.1e-7, (size, sparsity)
    assert all(budgets.keep_count(n, 1 - k / n) == k for n, k in [(3, 1), (5_999_999, 1_234_567), (999, 998)])


def test_every_way_in_keeps_the_same_number():
    """Pairs of a shape and a sparsity that a rule of its own would count otherwise."""
    coupling = jaxprune.couple(
        lambda p, x: x @ p["a"] @ p["b"], {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}, jnp.ones((1, 3))
    )
    kernel = jnp.arange(1, 16.0).reshape(3, 5)
    ways = {
        "weights": lambda s: jaxprune.magnitude([kernel], s),
        "all leaves": lambda s: jaxprune.magnitude([kernel], s, budget=budgets.global_),
        "lines": lambda s: jaxprune.magnitude([kernel], s, pattern=patterns.Along()),
        "blocks": lambda s: jaxprune.magnitude([kernel], s, pattern=patterns.Block((1, 1))),
        "channels": lambda s: jaxprune.magnitude([kernel], s, pattern=patterns.Channel()),
        "units": lambda s: jaxprune.slim({"a": kernel, "b": jnp.ones((5, 2))}, s, coupling=coupling),
        "one layer": lambda s: jaxprune.layerwise.wanda(kernel, jnp.ones(3), s)[1],
        "frequencies": lambda s: jaxprune.dft([kernel], s, transform="dct"),
    }
    for name, way in ways.items():
        traced = jax.jit(lambda s, way=way: jax.tree.map(jnp.sum, way(s)))
        for sparsity in (0.1, 0.3, 0.5, 0.7, 0.9):
            counts = [
                jax.tree.map(lambda m: int(jnp.sum(m)), way(kind(sparsity)))
                for kind in (float, np.float32, jnp.float32)
            ]
            assert counts[0] == counts[1] == counts[2] == jax.tree.map(int, traced(sparsity)), (name, sparsity)


@pytest.mark.parametrize("budget", [budgets.erk, budgets.owl], ids=["erk", "owl"])
def test_shared_out_counts_are_the_same_traced_or_not(budget):
    rng = np.random.default_rng(1)
    shapes = [(3, 3, 4, 8), (8, 9), (7, 3), (1, 2), (64, 3), (0, 4)]
    tree = [jnp.asarray(np.abs(rng.standard_normal(shape)), jnp.float32) for shape in shapes]
    sparsities = np.linspace(0, 1, 101).round(2).tolist()
    counts = jax.jit(lambda s: jax.lax.map(lambda one: jnp.stack(budget(tree, one, UNSTRUCTURED)), s))(
        jnp.asarray(sparsities, jnp.float32)
    )
    sizes = np.array([leaf.size for leaf in tree])
    for sparsity, traced in list(zip(sparsities, counts.tolist(), strict=True))[:: 1 if budget is budgets.erk else 10]:
        assert [int(count) for count in budget(tree, sparsity, UNSTRUCTURED)] == traced, sparsity
        assert (np.array(traced) <= sizes).all()
        assert sum(traced) == budgets.keep_count(int(sizes.sum()), sparsity)


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
def test_an_infinite_score_is_kept_and_spoils_no_other(traced):
    wrap = jax.jit if traced else lambda function: function
    one = jnp.arange(1.0, 17).reshape(4, 4)
    tree = {"a": one.at[0, 0].set(jnp.inf), "b": one.at[0, 1].set(jnp.nan)}
    normalized = wrap(functools.partial(budgets.global_, normalize=True, sparsity=0.5, pattern=UNSTRUCTURED))(tree)
    assert (int(normalized["a"]), int(normalized["b"])) == (8, 8)
    for per_leaf in (True, False):
        prune = functools.partial(jaxprune.from_scores, budget=budgets.cumulative(0.5, per_leaf=per_leaf))
        masks = wrap(prune)(tree)
        assert bool(masks["a"][0, 0])
        assert not bool(masks["b"][0, 1])
        assert sum(int(masks[k].sum()) for k in "ab") == 11
    owl = wrap(lambda t: budgets.owl(t, 0.5, UNSTRUCTURED))(tree)
    assert sum(map(int, owl.values())) == 16


@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e37])
def test_sums_and_squares_neither_overflow_nor_vanish(scale):
    tree = {"a": jnp.arange(16.0).reshape(4, 4) * scale, "b": jnp.arange(16.0).reshape(4, 4)}
    tree["a"] = jnp.minimum(tree["a"], 3e38)
    normalized = budgets.global_(tree, 0.5, UNSTRUCTURED, normalize=True)
    assert abs(int(normalized["a"]) - int(normalized["b"])) <= 2
    assert 4 <= int(budgets.cumulative(0.5)(tree, None, UNSTRUCTURED)["a"]) <= 6


def test_cumulative_refuses_negative_scores():
    with pytest.raises(ValueError, match=r"must not be negative; those of 'a' are"):
        jaxprune.from_scores({"a": -jnp.ones((4, 4))}, budget=budgets.cumulative(0.5))


EMPTY = {"no rows": {"a": jnp.zeros((0, 4))}, "no leaves": {}, "no scores": {"a": None}}


@pytest.mark.parametrize("kind", EMPTY)
def test_budgets_of_nothing(kind):
    tree = EMPTY[kind]
    every = [
        budgets.uniform,
        budgets.erk,
        budgets.owl,
        budgets.global_,
        functools.partial(budgets.global_, normalize=True),
    ]
    for budget in every:
        for sparsity in (0.5, jnp.float32(0.5)):
            assert [int(c) for c in jax.tree.leaves(budget(tree, sparsity, UNSTRUCTURED))] == [0] * len(
                jax.tree.leaves(tree)
            )
        jax.jit(lambda s, b=budget: b(tree, s, UNSTRUCTURED))(0.5)
    for per_leaf in (True, False):
        counts = budgets.cumulative(0.5, per_leaf=per_leaf)(tree, None, UNSTRUCTURED)
        assert jax.tree.structure(counts) == jax.tree.structure(tree)


def test_a_rule_that_matches_no_leaf_lists_the_paths():
    tree = {f"layer_{i}": jnp.ones((2, 3)) for i in range(7)}
    with pytest.raises(ValueError, match=r"rule 'dense' of `by_path` matches no leaf; there are 'layer_0'.*and 2 more"):
        jaxprune.magnitude(tree, 0.5, budget=budgets.by_path({"layer": 0.1, "dense": 0.9}))


def dealt_out(share, sizes, total):
    """Whole numbers near the shares that sum to the total: the largest fractions are rounded up, first come first."""
    counts = np.minimum(np.floor(share), sizes).astype(int)
    for place in np.argsort(counts - share, kind="stable")[: total - counts.sum()]:
        counts[place] += 1
    return counts


@pytest.mark.parametrize("sparsity", [0.03, 0.5, 0.9])
@pytest.mark.parametrize("layer", [None, lambda path: path[0]], ids=["leaves", "layers"])
def test_owl_follows_its_formula(sparsity, layer):
    rng = np.random.default_rng(3)
    sizes = [40, 100, 64, 7, 90]
    tree = {f"{'aabbc'[i]}{i}": rng.exponential(size=n).astype(np.float32) ** 3 for i, n in enumerate(sizes)}
    members = [[0, 1], [2, 3], [4]] if layer else [[i] for i in range(5)]
    share = np.zeros(5)
    for mine in members:
        values = np.concatenate([list(tree.values())[i] for i in mine]).astype(np.float64)
        share[mine] = (values > 2 * values.mean()).mean()
    level = (share - share.min()) / (share.max() - share.min())
    mean = (level * sizes).sum() / sum(sizes)
    density = 1 - sparsity + 2 * min(0.08, min(sparsity, 1 - sparsity) / 2) * (level - mean)
    expected = dealt_out(density * sizes, np.array(sizes), round(sum(sizes) * (1 - sparsity)))
    counts = budgets.owl(tree, sparsity, UNSTRUCTURED, threshold=2.0, layer=layer)
    assert [int(count) for count in counts.values()] == list(expected)


def test_erk_gives_what_is_left_over_to_the_largest_fractions():
    rng = np.random.default_rng(4)
    for _ in range(20):
        shapes = [tuple(rng.integers(3, 40, 2)) for _ in range(6)]
        tree = {f"w{i}": jnp.zeros(shape) for i, shape in enumerate(shapes)}
        sizes = np.array([leaf.size for leaf in tree.values()])
        weight = np.array([sum(shape) for shape in shapes], np.float64)
        total = round(int(sizes.sum()) * 0.3)
        full = np.zeros(6, bool)
        while True:  # leaves that would pass density 1 are full, and the others share what is left
            share = np.where(full, sizes, weight * (total - sizes[full].sum()) / weight[~full].sum())
            if not (share > sizes).any():
                break
            full |= share > sizes
        counts = budgets.erk(tree, 0.7, UNSTRUCTURED)
        # Ties of fractions are dealt out in another order, and both are float: a leaf may differ by one.
        assert np.abs(np.array([int(c) for c in counts.values()]) - dealt_out(share, sizes, total)).max() <= 1
        assert sum(map(int, counts.values())) == total


def test_the_count_of_a_leaf_is_one_number():
    tree = {"w": jnp.arange(100.0)}
    for budget in (budgets.uniform, budgets.global_, budgets.erk, budgets.owl):
        assert jnp.shape(budget(tree, 0.5, UNSTRUCTURED)["w"]) == ()
    assert jnp.shape(budgets.cumulative(0.5)(tree, None, UNSTRUCTURED)["w"]) == ()
