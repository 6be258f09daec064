"""Wrong calls of every public function: each ends in an error of the library's own that says what would be right."""

import functools
import traceback

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxprune
from jaxprune import (
    budgets,
    corruptions,
    filters,
    formats,
    io,
    layerwise,
    oneshot,
    patterns,
    rules,
    scores,
    statistics,
    structured,
    targets,
)

pytestmark = [pytest.mark.wrong_types, pytest.mark.dtype_promotion, pytest.mark.rank_promotion]

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 8))
PARAMS = {
    "first": {"kernel": jax.random.normal(KEY, (8, 8)), "bias": jnp.zeros(8)},
    "last": {"kernel": jax.random.normal(KEY, (8, 4))},
}
WHOLE = patterns.Unstructured()


def fun(params, x):
    return jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"]) @ params["last"]["kernel"]


def text(params, x):
    return "a string"


MASKS = {"first": {"kernel": jnp.ones((8, 8), bool), "bias": None}, "last": {"kernel": jnp.ones((8, 4), bool)}}
SGD = optax.sgd(0.1)
KERNEL, GRAM, ONES = jnp.ones((4, 3)), jnp.eye(4), jnp.ones((4, 3), bool)
norms = functools.cache(lambda: jaxprune.calibrate(fun, PARAMS, [X]))
coupling = functools.cache(lambda: jaxprune.couple(fun, PARAMS, X))


ROWS = []


def row(name, call, error, words):
    """A wrong call of `name`, and what its error has to be and to say."""
    ROWS.append((name, call, error, words))


# What every strategy takes.
STRATEGIES = {
    "magnitude": lambda p=PARAMS, s=0.5, **o: jaxprune.magnitude(p, s, **o),
    "random": lambda p=PARAMS, s=0.5, **o: jaxprune.random(KEY, p, s, **o),
    "taylor": lambda p=PARAMS, s=0.5, **o: jaxprune.taylor(p, p, s, **o),
    "snip": lambda p=PARAMS, s=0.5, **o: jaxprune.snip(p, p, s, **o),
    "lamp": lambda p=PARAMS, s=0.5, **o: jaxprune.lamp(p, s, **o),
    "wanda": lambda p=PARAMS, s=0.5, **o: jaxprune.wanda(p, norms(), s, **o),
    "ria": lambda p=PARAMS, s=0.5, **o: jaxprune.ria(p, norms(), s, **o),
    "slim": lambda p=PARAMS, s=0.5, **o: jaxprune.slim(p, s, **o),
    "dft": lambda p=PARAMS, s=0.5, **o: jaxprune.dft(p, s, **o),
}
for name, call in STRATEGIES.items():
    row(name, lambda call=call: call(s=50), ValueError, "fraction between 0 and 1; got 50")
    row(name, lambda call=call: call(s="0.5"), TypeError, "single real number; got '0.5'")
    row(name, lambda call=call: call(where="kernel"), TypeError, "`where` must be a function")
    row(name, lambda call=call: call(where=filters.named("none")), ValueError, "`where` picks no leaf; there are")
    row(name, lambda call=call: call(budget="erk"), TypeError, "`budget` must be a function")
    if name not in ("slim", "dft"):
        row(name, lambda call=call: call(pattern="2:4"), TypeError, "`pattern` must be a value")
    if name not in ("wanda", "ria"):
        row(name, lambda call=call: call(p=0.5), TypeError, "must be a pytree of arrays; got 0.5")
        row(name, lambda call=call: call(p=[[1.0, 2.0]]), ValueError, "'0/0' (float)")

row("magnitude", lambda: jaxprune.magnitude(PARAMS, 0.5, norm="l3"), ValueError, "must be 'l1' or 'l2'")
row("magnitude", lambda: jaxprune.magnitude(PARAMS, 0.3, pattern=patterns.NM(2, 4)), ValueError, "fixes the sparsity")
row("magnitude", lambda: jaxprune.magnitude(PARAMS, pattern=patterns.NM(1, 3)), ValueError, "axis -2 divisible by 3")
row("random", lambda: jaxprune.random(PARAMS, 0.5), TypeError, "takes a key first")
row("random", lambda: jaxprune.random(0, PARAMS, 0.5), TypeError, "takes a key first")
row("taylor", lambda: jaxprune.taylor(PARAMS, 0.5), ValueError, "gradients must have the structure")
row("snip", lambda: jaxprune.snip(PARAMS, MASKS, 0.5), ValueError, "its gradient has")
row("wanda", lambda: jaxprune.wanda(PARAMS, 0.5), ValueError, "statistics must have the structure")
row("wanda", lambda: jaxprune.wanda(PARAMS, PARAMS, 0.5), ValueError, "needs a statistic from `calibrate(")
row("ria", lambda: jaxprune.ria(PARAMS, PARAMS, 0.5), ValueError, "needs a statistic from `calibrate(")
row("ria", lambda: jaxprune.ria(PARAMS, norms(), 0.5, power="2"), TypeError, "`power` must be a single real number")
row("variance", lambda: jaxprune.variance(PARAMS, norms(), 0.5), ValueError, "statistic='variance'")
row("variance", lambda: jaxprune.variance(PARAMS, norms(), 0.5, remove="all"), ValueError, "`remove` must be")
row("slim", lambda: jaxprune.slim(PARAMS, 0.5, coupling="outer"), TypeError, "must come from `couple(")
row("slim", lambda: jaxprune.slim(PARAMS, 0.5, round_to=0), ValueError, "`round_to` must be 1 or more")
row("slim", lambda: jaxprune.slim(PARAMS, 0.5, round_to=2.5), TypeError, "`round_to` must be a whole number")
row("slim", lambda: jaxprune.slim(PARAMS, 0.5, axis=7), ValueError, "needs that axis")
row("slim", lambda: jaxprune.slim(PARAMS, 0.5, coupling=coupling(), keep_at_least=0), ValueError, "must be at least 1")
row("slim", lambda: jaxprune.slim(PARAMS, 0.5, coupling=coupling(), alike=3), TypeError, "a regular expression or a f")
row("slim", lambda: jaxprune.slim(PARAMS, 0.5, coupling=coupling(), alike="("), ValueError, "not a regular expression")
row("slim", lambda: jaxprune.slim(PARAMS, scores=structured.UnitScores({})), TypeError, "need `coupling=`")
row("slim", lambda: jaxprune.slim(PARAMS, 0.5, coupling=coupling(), norm="l3"), ValueError, "`norm`")
row("slim", lambda: jaxprune.slim({"w": X}, 0.5, coupling=coupling()), ValueError, "'w' was not coupled")
row("dft", lambda: jaxprune.dft(PARAMS, 0.5, axes=(0, 9)), ValueError, "do not all exist")
row("dft", lambda: jaxprune.dft(PARAMS, 0.5, axes=-1), TypeError, "`axes` must be a tuple")
row("dft", lambda: jaxprune.dft(PARAMS, 0.5, keep="most"), ValueError, "needs keep='energy'")
row("grasp", lambda: jaxprune.grasp(PARAMS, PARAMS, 0.5), TypeError, "`loss` must be a function")
row("grasp", lambda: jaxprune.grasp(lambda p: X, PARAMS, 0.5), TypeError, "must return a scalar")
row("grasp", lambda: jaxprune.grasp(lambda p: "1", PARAMS, 0.5), TypeError, "must return a scalar")
row("grasp", lambda: jaxprune.grasp(lambda p: jnp.sum(p["last"]["kernel"]), PARAMS, 9), ValueError, "got 9")
row("synflow", lambda: jaxprune.synflow(PARAMS, PARAMS, X, 0.5), TypeError, "must be a function")
row("synflow", lambda: jaxprune.synflow(text, PARAMS, X, 0.5), TypeError, "returns no floating-point array")
row("synflow", lambda: jaxprune.synflow(fun, PARAMS, X, 0.5, rounds=0), ValueError, "at least one round")
row("synflow", lambda: jaxprune.synflow(fun, PARAMS, X, 0.5, rounds=1.5), TypeError, "whole number")
row("synflow", lambda: jaxprune.synflow(fun, PARAMS, X, 5), ValueError, "fraction between 0 and 1; got 5")
row("from_scores", lambda: jaxprune.from_scores(PARAMS, -1), ValueError, "fraction between 0 and 1; got -1")
row(
    "from_scores",
    lambda: jaxprune.from_scores({"w": jnp.ones(4, int)}, 0.5),
    TypeError,
    "must be a floating-point array",
)
row("from_scores", lambda: jaxprune.from_scores([1.0, 2.0], 0.5), TypeError, "'0' must be a floating-point array")
row(
    "from_scores",
    lambda: jaxprune.from_scores(PARAMS, 0.5, budget=budgets.cumulative),
    TypeError,
    "`budgets.cumulative(0.9)`",
)
row(
    "from_scores",
    lambda: jaxprune.from_scores(PARAMS, 0.5, budget=lambda *_: {}),
    ValueError,
    "counts must have the structure",
)
row("from_scores", lambda: jaxprune.from_scores(PARAMS, pattern=patterns.NM), TypeError, "`pattern` must be a value")
row("select", lambda: jaxprune.select(PARAMS, 0.5), TypeError, "must be a whole number; got 0.5")
row("select", lambda: jaxprune.select(PARAMS, 10**6), ValueError, "integer from 0 to")
row("select", lambda: jaxprune.select(PARAMS, True), TypeError, "must be a whole number; got True")
row("select", lambda: jaxprune.select(PARAMS, {"first": 3}), ValueError, "counts must have the structure")
row("select", lambda: jaxprune.select(PARAMS, 4, pattern=patterns.Along()), ValueError, "give each a count")
row("select", lambda: jaxprune.select(PARAMS, 4, pattern=None), TypeError, "`pattern` must be a value")

# Masks and metrics.
WRONG_MASK = {"first": {"kernel": jnp.ones((3, 3), bool), "bias": None}, "last": {"kernel": None}}
FLOAT_MASK = {"first": {"kernel": jnp.ones((8, 8)), "bias": None}, "last": {"kernel": None}}
for name in (
    "apply",
    "sparsity",
    "density",
    "compression_ratio",
    "relative_size_change",
    "nbytes",
    "summary",
    "straight_through",
):
    measure = getattr(jaxprune, name)
    row(name, lambda m=measure: m(PARAMS, WRONG_MASK), ValueError, "its mask has shape (3, 3)")
    row(name, lambda m=measure: m(PARAMS, FLOAT_MASK), TypeError, "must be a boolean array")
    row(name, lambda m=measure: m(PARAMS, 0.5), ValueError, "masks must have the structure")
row("apply", lambda: jaxprune.apply(PARAMS, jaxprune.pack(MASKS)), TypeError, "is packed; call")
row("count_params", lambda: jaxprune.count_params(0.5), TypeError, "must be a pytree of arrays")
row("pack", lambda: jaxprune.pack({"a": jnp.ones((4, 4))}), TypeError, "boolean")
row("pack", lambda: jaxprune.pack({"a": 3}), TypeError, "boolean")
row(
    "unpack",
    lambda: jaxprune.unpack(jaxprune.Packed(jnp.zeros((1, 4), jnp.uint8), (16, 4))),
    ValueError,
    "must have shape (2, 4)",
)
row("unpack", lambda: jaxprune.unpack(jaxprune.Packed(jnp.zeros((2, 4)), (16, 4))), TypeError, "must be uint8")
for name in ("intersection", "union", "overlap"):
    combine = getattr(jaxprune, name)
    row(name, lambda c=combine: c(MASKS, {"first": None}), ValueError, "must have the structure")
    row(name, lambda c=combine: c(MASKS, WRONG_MASK), ValueError, "shape (3, 3)")
    row(name, lambda c=combine: c(MASKS, FLOAT_MASK), TypeError, "boolean")
row("intersection", lambda: jaxprune.intersection(MASKS, jaxprune.dft(PARAMS, 0.5)), ValueError, "cannot be combined")
row("steps_to", lambda: jaxprune.steps_to([], 0.1), ValueError, "from 1 to the number of losses")
row("steps_to", lambda: jaxprune.steps_to([1.0, 0.5], 0.1, window=0), ValueError, "window")

# Budgets, patterns, filters.
for name in ("budgets.uniform", "budgets.global_", "budgets.erk", "budgets.owl"):
    budget = getattr(budgets, name.removeprefix("budgets."))
    row(name, lambda b=budget: b(PARAMS, 50, WHOLE), ValueError, "fraction between 0 and 1; got 50")
    row(name, lambda b=budget: b(PARAMS, "0.5", WHOLE), TypeError, "single real number; got '0.5'")
    row(name, lambda b=budget: b(PARAMS, 0.5, "2:4"), TypeError, "`pattern` must be a value")
    row(
        name, lambda b=budget: b({"step": jnp.int32(1)}, 0.5, WHOLE), TypeError, "'step' must be a floating-point array"
    )
row("budgets.owl", lambda: budgets.owl(PARAMS, 0.5, WHOLE, threshold=-1), ValueError, "`threshold` must be above 0")
row(
    "budgets.owl",
    lambda: budgets.owl(PARAMS, 0.5, WHOLE, deviation="a"),
    TypeError,
    "`deviation` must be a single real number",
)
row("budgets.cumulative", lambda: budgets.cumulative(90), ValueError, "fraction between 0 and 1; got 90")
row("budgets.cumulative", lambda: budgets.cumulative("0.9"), TypeError, "single real number")
row(
    "budgets.cumulative",
    lambda: jaxprune.magnitude(PARAMS, 0.5, budget=budgets.cumulative(0.9)),
    ValueError,
    "got sparsity 0.5",
)
row("budgets.cumulative", lambda: budgets.cumulative(0.9)(PARAMS, None, WHOLE), ValueError, "must not be negative")
row("budgets.by_path", lambda: budgets.by_path({"kernel": 50}), ValueError, "rules['kernel']")
row("budgets.by_path", lambda: budgets.by_path({"[": 0.5}), ValueError, "is not a regular expression")
row("budgets.by_path", lambda: budgets.by_path({3: 0.5}), TypeError, "matched by a regular expression or a function")
row("budgets.by_path", lambda: budgets.by_path("kernel"), TypeError, "`rules` must map paths to sparsities")
row("budgets.by_path", lambda: budgets.by_path({"kernel": 0.5}, default=2), ValueError, "`default` must be a fraction")
row(
    "budgets.by_path",
    lambda: budgets.by_path({"conv": 0.5})(PARAMS, 0.5, WHOLE),
    ValueError,
    "matches no leaf; there are",
)
row("budgets.keep_count", lambda: budgets.keep_count(10, 90), ValueError, "fraction between 0 and 1; got 90")
row("budgets.keep_count", lambda: budgets.keep_count(-1, 0.5), ValueError, "`groups` must be 0 or more")
row("budgets.keep_count", lambda: budgets.keep_count(1.5, 0.5), TypeError, "`groups` must be a whole number")
row("budgets.group_sizes", lambda: budgets.group_sizes(PARAMS, "2:4"), TypeError, "`pattern` must be a value")
row(
    "budgets.group_sizes",
    lambda: budgets.group_sizes({"a": jnp.ones(3)}, patterns.Block((2, 2))),
    ValueError,
    "'a' has shape (3,)",
)
row(
    "patterns.Unstructured",
    lambda: jaxprune.magnitude(PARAMS, pattern=patterns.Unstructured),
    TypeError,
    "`pattern` must be a value",
)
row("patterns.NM", lambda: patterns.NM(5, 4), ValueError, "needs 0 <= n <= m")
row("patterns.NM", lambda: patterns.NM("2", 4), TypeError, "`n` must be a whole number")
row("patterns.NM", lambda: patterns.NM(2, 4, group=0), ValueError, "number of outputs that share a choice")
row(
    "patterns.NM",
    lambda: jaxprune.magnitude(PARAMS, pattern=patterns.NM(2, 4, axis={"w": 0})),
    ValueError,
    "axis tree of `NM`",
)
row("patterns.Along", lambda: jaxprune.magnitude(PARAMS, 0.5, pattern=patterns.Along(9)), ValueError, "needs that axis")
row(
    "patterns.Along",
    lambda: jaxprune.magnitude(PARAMS, 0.5, pattern=patterns.Along({"w": 0})),
    ValueError,
    "axis tree of `Along`",
)
row("patterns.Block", lambda: patterns.Block(4), TypeError, "takes both sizes as a tuple")
row("patterns.Block", lambda: patterns.Block((4, 0)), ValueError, "two positive sizes")
row("patterns.Channel", lambda: patterns.Channel("out"), TypeError, "`axis` must be a whole number")
row(
    "patterns.Channel",
    lambda: jaxprune.magnitude(PARAMS, 0.5, pattern=patterns.Channel(5)),
    ValueError,
    "needs that axis",
)
row("filters.named", lambda: filters.named("["), ValueError, "is not a regular expression")
row("filters.named", lambda: filters.named(3), TypeError, "takes a regular expression as a string")
row("filters.at_least", lambda: filters.at_least("10"), TypeError, "`size` must be a whole number")
row("filters.at_least", lambda: filters.at_least(-1), ValueError, "`size` must be 0 or more")
row("filters.share_at_least", lambda: filters.share_at_least(PARAMS, 40), ValueError, "share between 0 and 1; got 40")
row("filters.share_at_least", lambda: filters.share_at_least(PARAMS, "1"), TypeError, "single real number")
row("filters.Filter", lambda: filters.Filter("kernel"), TypeError, "must be a function `(path, leaf) -> bool`")
row("filters.is_kernel", lambda: filters.is_kernel & "first", TypeError, "must be a function `(path, leaf) -> bool`")
row("filters.is_kernel", lambda: filters.is_kernel | "first", TypeError, "must be a function `(path, leaf) -> bool`")

# Scores by themselves.
for name, call in {
    "magnitude": scores.magnitude, "lamp": scores.lamp, "random": functools.partial(scores.random, KEY),
    "taylor": lambda p, **o: scores.taylor(p, p, **o), "snip": lambda p, **o: scores.snip(p, p, **o),
}.items():  # fmt: skip
    row(f"scores.{name}", lambda c=call: c(0.5), TypeError, "must be a pytree of arrays")
    row(f"scores.{name}", lambda c=call: c(PARAMS, where="kernel"), TypeError, "`where` must be a function")
    row(f"scores.{name}", lambda c=call: c({"w": X.astype(int)}), ValueError, "'w' (int32 (6, 8))")
for name in ("wanda", "ria", "variance"):
    row(
        f"scores.{name}", functools.partial(getattr(scores, name), PARAMS, PARAMS), ValueError, "needs a statistic from"
    )
row("scores.grasp", lambda: scores.grasp(0.5, PARAMS), TypeError, "`loss` must be a function")
row("scores.grasp", lambda: scores.grasp(lambda p: X, PARAMS), TypeError, "must return a scalar")
row("scores.synflow", lambda: scores.synflow(0.5, PARAMS, X), TypeError, "must be a function")
row("scores.synflow", lambda: scores.synflow(text, PARAMS, X), TypeError, "returns no floating-point array")

# Optimizers.
SCHEDULED = {
    "gradual": lambda o=SGD, s=jaxprune.magnitude, f=0.5, **k: jaxprune.gradual(o, s, f, **{"end": 2, **k}),
    "acdc": lambda o=SGD, s=jaxprune.magnitude, f=0.5, **k: jaxprune.acdc(o, s, f, **{"end": 2, "every": 1, **k}),
    "dpf": lambda o=SGD, s=jaxprune.magnitude, f=0.5, **k: jaxprune.dpf(o, s, f, **{"end": 2, **k}),
    "movement": lambda o=SGD, s=jaxprune.from_scores, f=0.5, **k: jaxprune.movement(o, s, f, **{"end": 2, **k}),
}
for name, call in SCHEDULED.items():
    row(name, lambda c=call: c(f=90), ValueError, "fraction between 0 and 1; got 90")
    row(name, lambda c=call: c(f="0.5"), TypeError, "single real number; got '0.5'")
    row(name, lambda c=call: c(f=lambda step: jnp.nan).init(PARAMS), ValueError, "`sparsity(0)` must be a fraction")
    row(name, lambda c=call: c(begin=5), ValueError, "needs 0 <= begin <= end")
    row(name, lambda c=call: c(every=0), ValueError, "every >= 1")
    row(name, lambda c=call: c().update(PARAMS, c().init(PARAMS)), ValueError, "params")
EXCHANGING = {
    "rigl": lambda m=MASKS, **k: jaxprune.rigl(SGD, m, **{"end": 2, **k}),
    "sparse_evolution": lambda m=MASKS, **k: jaxprune.sparse_evolution(KEY, SGD, m, **{"end": 2, **k}),
}
for name, call in EXCHANGING.items():
    row(name, lambda c=call: c(drop=30), ValueError, "`drop` must be a fraction between 0 and 1; got 30")
    row(name, lambda c=call: c(drop="0.3"), TypeError, "`drop` must be a single real number")
    row(name, lambda c=call: c(every=-1), ValueError, "every >= 1")
    row(name, lambda c=call: c(m=WRONG_MASK).init(PARAMS), ValueError, "its mask has shape (3, 3)")
    row(name, lambda c=call: c(m=FLOAT_MASK).init(PARAMS), TypeError, "must be a boolean array")
    row(name, lambda c=call: c(m={"first": None}).init(PARAMS), ValueError, "masks must have the structure")
for name, make in {"masked": lambda m: jaxprune.masked(SGD, m), "keep_masked": jaxprune.keep_masked}.items():

    def step(make, masks, params=PARAMS):
        optimizer = make(masks)
        return optimizer.update(PARAMS, optimizer.init(PARAMS), params)

    row(name, lambda m=make: step(m, WRONG_MASK), ValueError, "its mask has shape (3, 3)")
    row(name, lambda m=make: step(m, FLOAT_MASK), TypeError, "must be a boolean array")
    row(name, lambda m=make: step(m, {"first": None}), ValueError, "masks must have the structure")
    row(name, lambda m=make: step(m, MASKS, None), ValueError, "params")
row("masks_of", lambda: jaxprune.masks_of(SGD.init(PARAMS)), ValueError, "holds no masks")
row("apply_updates", lambda: jaxprune.apply_updates(PARAMS, PARAMS, SGD.init(PARAMS)), ValueError, "holds no masks")
row("apply_updates", lambda: jaxprune.apply_updates(PARAMS, PARAMS, WRONG_MASK), ValueError, "(3, 3)")
row("check_masked", lambda: jaxprune.check_masked(PARAMS, SGD.init(PARAMS)), ValueError, "holds no masks")
row("check_masked", lambda: jaxprune.check_masked(PARAMS, WRONG_MASK), ValueError, "(3, 3)")
row("masks_of", lambda: jaxprune.masks_of(0.5), ValueError, "holds no masks")
row("soft_threshold", lambda: jaxprune.soft_threshold(SGD, -1), ValueError, "threshold")
row("group_lasso", lambda: jaxprune.group_lasso(SGD, -1), ValueError, "threshold")
row(
    "WithKey",
    lambda: jaxprune.gradual(SGD, jaxprune.WithKey(jaxprune.random, 0), 0.5, end=2).init(PARAMS),
    TypeError,
    "takes a key first",
)
row(
    "WithGradients",
    lambda: jaxprune.gradual(SGD, jaxprune.WithGradients(jaxprune.taylor), 9.0, end=2),
    ValueError,
    "got 9.0",
)

# Calibration and one-shot pruning.
TRACING = {
    "calibrate": lambda f: jaxprune.calibrate(f, PARAMS, [X]),
    "layout": lambda f: jaxprune.layout(f, PARAMS, X),
    "couple": lambda f: jaxprune.couple(f, PARAMS, X),
    "macs": lambda f: jaxprune.macs(f, PARAMS, X),
    "sparsegpt": lambda f: jaxprune.sparsegpt(f, PARAMS, [X]),
    "admm": lambda f: jaxprune.admm(f, PARAMS, [X]),
    "oneshot.prune": lambda f: oneshot.prune(f, PARAMS, [X], layerwise.Wanda()),
    "oneshot.repair": lambda f: oneshot.repair(f, PARAMS, MASKS, [X]),
    "oneshot.swap": lambda f: oneshot.swap(f, PARAMS, MASKS, [X]),
    "shrink": lambda f: jaxprune.shrink(f, PARAMS, jaxprune.slim(PARAMS, 0.5, coupling=coupling()), coupling()),
    "deploy": lambda f: jaxprune.deploy(f, PARAMS, MASKS, X),
}
for name, call in TRACING.items():
    row(name, lambda c=call: c(PARAMS), TypeError, "`fun` must be a function")
    if name != "shrink":
        row(name, lambda c=call: c(text), TypeError, "`fun` must return arrays")
row("calibrate", lambda: jaxprune.calibrate(fun, PARAMS, [X], statistic="mean"), ValueError, "statistic")
row("calibrate", lambda: jaxprune.calibrate(fun, PARAMS, []), ValueError, "batch")
row("calibrate", lambda: jaxprune.calibrate(fun, PARAMS, [X], where="kernel"), TypeError, "`where` must be a function")
row("calibrate", lambda: jaxprune.calibrate(fun, PARAMS, [X], where=filters.named("none")), ValueError, "picks no leaf")
for name, call in {"sparsegpt": jaxprune.sparsegpt, "admm": jaxprune.admm}.items():
    row(name, lambda c=call: c(fun, PARAMS, [X], 50), ValueError, "fraction between 0 and 1; got 50")
    row(name, lambda c=call: c(fun, PARAMS, [X], "0.5"), TypeError, "single real number")
    row(name, lambda c=call: c(fun, PARAMS, [X], 0.5, pattern="2:4"), TypeError, "`pattern` must be")
    row(name, lambda c=call: c(fun, PARAMS, [], 0.5), ValueError, "batch")
    row(name, lambda c=call: c(fun, PARAMS, [X], 0.5, where="kernel"), TypeError, "`where` must be a function")
row("oneshot.prune", lambda: oneshot.prune(fun, PARAMS, [X], "wanda"), ValueError, "Give a value, such as")
for method in ("SparseGPT", "ADMM", "Wanda"):
    uncalled = functools.partial(oneshot.prune, fun, PARAMS, [X], getattr(layerwise, method))
    row(f"layerwise.{method}", uncalled, ValueError, "Give a value, such as")
row("oneshot.prune", lambda: oneshot.prune(fun, PARAMS, [X], layerwise.Wanda(), sparsity=-1), ValueError, "got -1")
row("oneshot.repair", lambda: oneshot.repair(fun, PARAMS, WRONG_MASK, [X]), ValueError, "got bool (3, 3)")
row("oneshot.repair", lambda: oneshot.repair(fun, PARAMS, MASKS, []), ValueError, "batch")
row("oneshot.swap", lambda: oneshot.swap(fun, PARAMS, MASKS, []), ValueError, "batch")
LAYER = {
    "layerwise.sparsegpt": lambda k=KERNEL, g=GRAM, s=0.5, **o: layerwise.sparsegpt(k, g, s, **o),
    "layerwise.admm": lambda k=KERNEL, g=GRAM, s=0.5, **o: layerwise.admm(k, g, s, **o),
    "layerwise.obs": lambda k=KERNEL, g=GRAM, s=0.5, **o: layerwise.obs(k, g, s, **o),
    "layerwise.wanda": lambda k=KERNEL, g=GRAM[0], s=0.5, **o: layerwise.wanda(k, g, s, **o),
}
for name, call in LAYER.items():
    row(name, lambda c=call: c(s=50), ValueError, "fraction between 0 and 1; got 50")
    row(name, lambda c=call: c(s="0.5"), TypeError, "single real number")
    row(name, lambda c=call: c(k=KERNEL.T), ValueError, "must be (in, out)")
    row(name, lambda c=call: c(k=KERNEL.astype(int)), TypeError, "must be a floating-point array")
    row(name, lambda c=call: c(pattern="2:4"), TypeError, "pattern must be")
    row(name, lambda c=call: c(pattern=patterns.Block((2, 2))), TypeError, "must be `Unstructured()` or `NM(n, m)`")
    row(name, lambda c=call: c(s=None, pattern=patterns.NM(1, 3)), ValueError, "which 3 must divide")
row("layerwise.refit", lambda: layerwise.refit(KERNEL, GRAM, ONES.T), ValueError, "mask must be boolean and of")
row("layerwise.refit", lambda: layerwise.refit(KERNEL, GRAM, KERNEL), ValueError, "mask must be boolean and of")
row("layerwise.swap", lambda: layerwise.swap(KERNEL, GRAM, ONES.T), ValueError, "mask must be boolean and of")
row("layerwise.damp", lambda: layerwise.damp(KERNEL), ValueError, "Gram")
row("layerwise.correct", lambda: layerwise.correct(KERNEL.T, GRAM, GRAM), ValueError, "must be (in, out)")

# Structured pruning, rounds and reports.
row("couple", lambda: jaxprune.couple(fun, PARAMS, X, split="middle"), ValueError, "split")
row("couple", lambda: jaxprune.couple(fun, PARAMS, X, semantics="large"), ValueError, "semantics")
row("shrink", lambda: jaxprune.shrink(fun, PARAMS, MASKS, None), TypeError, "couple(")
row("shrink", lambda: jaxprune.shrink(fun, PARAMS, WRONG_MASK, coupling()), ValueError, "(3, 3)")
row("shrink", lambda: jaxprune.shrink(fun, PARAMS, 0.5, coupling()), ValueError, "masks must have the structure")
row("shrink_fun", lambda: jaxprune.shrink_fun(fun, None), TypeError, "plan")
row("shrink_fun", lambda: jaxprune.shrink_fun(0.5, jaxprune.Plan({})), TypeError, "`fun` must be a function")
row("closed", lambda: jaxprune.closed(0.5, PARAMS, X), TypeError, "`fun` must be a function")
row("closed", lambda: jaxprune.closed(fun, PARAMS, X)(PARAMS, X[:, :2]), ValueError, "Close it for such arguments")
row("closed", lambda: jaxprune.closed(fun, PARAMS, X)(PARAMS), ValueError, "Close it for these")
row("structured.resized", lambda: structured.resized(PARAMS, None), TypeError, "`plan` must come from `shrink`")
row(
    "structured.resized",
    lambda: structured.resized(PARAMS, jaxprune.Plan({})),
    ValueError,
    "the module has 'first/bias'",
)
row("forecast", lambda: jaxprune.forecast(fun, PARAMS, MASKS, X, coupling=3), TypeError, "must come from `couple(")
row("structured.save", lambda: structured.save("x", PARAMS, PARAMS), TypeError, "`plan` must come from `shrink`")
row("structured.save", lambda: structured.save(".", {}, jaxprune.Plan({})), ValueError, "is there already")
row("structured.load", lambda: structured.load("x", PARAMS), TypeError, "`fun` must be a function")
row("structured.load", lambda: structured.load(__file__, fun), ValueError, "is not a folder")
row("structured.resized", lambda: structured.resized(0.5, jaxprune.Plan({})), TypeError, "pytree of arrays")
row("macs", lambda: jaxprune.macs(fun, PARAMS, X, masks=WRONG_MASK), ValueError, "shape (3, 3)")
row("deploy", lambda: jaxprune.deploy(fun, PARAMS, WRONG_MASK, X), ValueError, "(3, 3)")
row("structured.macs", lambda: structured.macs(coupling(), 50), ValueError, "fraction")
row("structured.macs", lambda: structured.macs(None, 0.5), TypeError, "couple(")
row("structured.latency", lambda: structured.latency(coupling(), 1.0, {}), ValueError, "entries")
row("structured.of_norms", lambda: structured.of_norms(PARAMS, coupling(), norm="l3"), ValueError, "`norm` must be")
row("structured.of_norms", lambda: structured.of_norms(PARAMS, coupling(), aggregate="min"), ValueError, "`aggregate`")
row("structured.of_norms", lambda: structured.of_norms(PARAMS, coupling(), where="w"), TypeError, "`where` must be a")
row("slim", lambda: jaxprune.slim(PARAMS, coupling=coupling(), where=lambda *_: False), ValueError, "picks no leaf")
row("structured.of_slices", lambda: structured.of_slices({}, coupling()), ValueError, "has scores")
row("structured.of_outputs", lambda: structured.of_outputs({}, coupling()), ValueError, "puts out the units")
row(
    "structured.geometric_median", lambda: structured.geometric_median({}, coupling()), ValueError, "produces the units"
)
row("structured.masks_of_units", lambda: structured.masks_of_units(PARAMS, {}, coupling()), ValueError, "units")
row("targets.AtSparsity", lambda: targets.AtSparsity(50), ValueError, "50")
row("targets.AtSparsity", lambda: targets.AtSparsity(0.5, rounds=0), ValueError, "round")
row("targets.Within", lambda: targets.Within(-1), ValueError, "tolerance")
row("targets.AtMost", lambda: targets.AtMost(1.0, None), TypeError, "cost")
TRAINER = jaxprune.Trainer(lambda p, m: None, lambda p, s, b: (p, s), lambda i, e: [], lambda p: 1.0)
TRAINED = functools.partial(jaxprune.prune_retrain, PARAMS, jaxprune.magnitude, TRAINER, targets.AtSparsity(0.5))
row("prune_retrain", lambda: TRAINED(epochs=-1), ValueError, "`epochs` must be 0 or more")
row("prune_retrain", lambda: TRAINED(patience=0), ValueError, "`patience` must be 1 or more")
row("rewind", lambda: jaxprune.rewind(PARAMS, {"first": None}, MASKS), ValueError, "structure")
row("rewind", lambda: jaxprune.rewind(PARAMS, PARAMS, WRONG_MASK), ValueError, "shape (3, 3)")
row("report", lambda: jaxprune.report((fun, PARAMS), (fun, PARAMS), X), ValueError, "got neither")
row("overview", lambda: jaxprune.overview("nowhere"), ValueError, "has no reports")
row("report", lambda: jaxprune.report(0.5, 0.5, X, jnp.zeros(6, int)), TypeError, "as `(fun, params)`")
for name in ("noise", "occlusion"):
    row(f"corruptions.{name}", functools.partial(getattr(corruptions, name), 0, 0.1), TypeError, "key")
    row(
        f"corruptions.{name}",
        functools.partial(getattr(corruptions, name), KEY, -1),
        ValueError,
        "must be finite and from 0",
    )
row("corruptions.blur", lambda: corruptions.blur(-1), ValueError, "sigma")
row("corruptions.contrast", lambda: corruptions.contrast("a"), TypeError, "factor")
row("corruptions.standard", lambda: corruptions.standard(0), TypeError, "key")
for name in ("load", "shapes", "inspect"):
    row(f"io.{name}", functools.partial(getattr(io, name), "nothing.pt"), FileNotFoundError, "There is no 'nothing.pt'")
for name in ("pack", "unpack", "compare"):
    row(f"io.{name}", functools.partial(getattr(io, name), "nothing", "x"), FileNotFoundError, "There is no 'nothing'")
row("io.prune", lambda: io.prune("nothing", "x", rules.Rules([])), FileNotFoundError, "There is no 'nothing'")
row("io.save", lambda: io.save("x.npz", 0.5), TypeError, "must be a pytree of arrays")
row("rules.Rule", lambda: rules.Rule("("), ValueError, "is not a regular expression")
row("rules.Rules", lambda: rules.Rules([0.5]), TypeError, "takes a list of `Rule`")
row("rules.rule_of", lambda: rules.rule_of(sparsity="0.5"), TypeError, "'sparsity' must be a number")
row("rules.pattern_of", lambda: rules.pattern_of("2/4"), ValueError, "the pattern must be one of")
row("rules.read", lambda: rules.read(__file__), ValueError, "is not TOML")
row("formats.deployed_fun", lambda: formats.deployed_fun(0.5), TypeError, "`fun` must be a function")


# What has no row of its own: nothing is asked of it but what its own functions are asked.
RESULTS = (
    "Convergence Coupling Evaluation Forecast Layer Layout LeafSummary Macs Packed Plan Report Rounds Spectral".split()
)
EXEMPT = {
    **dict.fromkeys(RESULTS, "a result, which the library makes"),
    "Trainer": "four functions, which `prune_retrain` calls",
    "budgets.Wide": "a result",
    "budgets.Budget": "a protocol",
    "budgets.Pattern": "a protocol",
    "budgets.SettlingBudget": "a protocol",
    "layerwise.Method": "a protocol",
    "layerwise.Damped": "a result",
    "targets.Target": "a protocol",
    "targets.Round": "a result",
    "targets.Proposal": "a result",
    "structured.Fitted": "a result",
    "structured.Sizes": "a result",
    **{f"io.{name}": "a result" for name in ("Compared", "Comparison", "Inspected", "Inspection")},
    **{f"rules.{name}": "a result" for name in ("Decision", "Explanation")},
    **{f"rules.{name}": "of another module" for name in ("Budget", "Pattern", "is_kernel")},
    "structured.UnitScores": "a result",
    **{f"statistics.{name}": "a result" for name in ("Axes", "Gram", "Moments", "Norm", "Variance")},
    **{f"formats.{name}": "a result" for name in ("Choice", "Choices", "Dense", "Rows", "StoredKernel", "Strips")},
}
ROOMS = (
    budgets, corruptions, filters, formats, io, layerwise, oneshot, patterns, rules, scores, statistics, structured,
    targets,
)  # fmt: skip


def public_names():
    """What can be called: of `jaxprune` itself by name, of its public modules with the module's."""
    for room in (jaxprune, *ROOMS):
        prefix = "" if room is jaxprune else f"{room.__name__.rpartition('.')[2]}."
        for name, value in vars(room).items():
            own = getattr(value, "__module__", None) or type(value).__module__
            if not name.startswith("_") and callable(value) and str(own).startswith("jaxprune"):
                yield prefix + name


def test_every_public_function_has_a_wrong_call():
    names = set(public_names())
    assert len(ROWS) >= 200
    assert names - {name for name, *_ in ROWS} - set(EXEMPT) == set()
    assert set(EXEMPT) <= names
    assert {name for name, *_ in ROWS} <= names


IDS = [f"{i}-{name}" for i, (name, *_) in enumerate(ROWS)]


@pytest.mark.parametrize(("call", "error", "words"), [row[1:] for row in ROWS], ids=IDS)
def test_a_wrong_call_ends_in_a_clear_word(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
    last = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert "/jaxprune/" in last, f"raised in {last}"
