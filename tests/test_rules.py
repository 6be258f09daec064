"""Rules as values, as strategies and as files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import budgets, patterns, rules
from jaxprune.rules import Rule, Rules

pytestmark = [pytest.mark.dtype_promotion]


def model():
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "embed": jax.random.normal(keys[0], (16, 8)),
        "layers": [
            {"up": jax.random.normal(keys[1], (8, 16)), "bias": jnp.ones(16)},
            {"down": 0.1 * jax.random.normal(keys[2], (16, 8))},
        ],
        "head": jax.random.normal(keys[3], (8, 12)),
    }


def same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def only(*names):
    return lambda path, leaf: path in names


def test_the_first_rule_that_matches_decides_and_the_rest_stays_dense():
    params = model()
    found = Rules([Rule("embed", None), Rule("up", pattern=patterns.NM(1, 4)), Rule("up|down", sparsity=0.25)])(params)
    assert found["embed"] is None
    assert found["head"] is None
    assert found["layers"][0]["bias"] is None
    expected = jaxprune.magnitude(params, pattern=patterns.NM(1, 4), where=only("layers/0/up"))
    assert np.array_equal(found["layers"][0]["up"], expected["layers"][0]["up"])
    expected = jaxprune.magnitude(params, 0.25, where=only("layers/1/down"))
    assert np.array_equal(found["layers"][1]["down"], expected["layers"][1]["down"])


def test_the_leaves_of_one_rule_share_its_budget():
    params = model()
    found = Rules([Rule("layers|head", sparsity=0.5, budget=budgets.global_), Rule()])(params)
    where = only("layers/0/up", "layers/1/down", "head")
    expected = jaxprune.magnitude(params, 0.5, budget=budgets.global_, where=where)
    assert same(jax.tree.leaves(found["layers"]), jax.tree.leaves(expected["layers"]))
    assert found["layers"][1]["down"].sum() < 10
    assert np.array_equal(found["head"], expected["head"])
    assert found["embed"].sum() == 64


def test_any_strategy_serves_as_a_method():
    params = model()
    random = functools.partial(jaxprune.random, jax.random.key(3))
    found = Rules([Rule("embed", random, sparsity=0.75), Rule("up", jaxprune.dft, sparsity=0.5)])(params)
    assert found["embed"].sum() == 32
    assert isinstance(found["layers"][0]["up"], jaxprune.Spectral)
    assert int(found["layers"][0]["up"].count((8, 16))) == 64


def test_a_schedule_drives_the_rules_that_say_no_sparsity():
    params = model()
    found = Rules([Rule("embed", sparsity=0.25), Rule("up", pattern=patterns.NM(2, 4)), Rule("down")])
    optimizer = jaxprune.gradual(optax.adam(0.1), found, optax.linear_schedule(0.0, 0.75, 4), end=4, every=1)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(6):
        params, state = step(params, state)
    masks = jaxprune.masks_of(state)
    assert [int(masks["embed"].sum()), int(masks["layers"][0]["up"].sum())] == [96, 64]
    assert int(masks["layers"][1]["down"].sum()) == 32
    assert masks["head"] is None
    assert jnp.array_equal(params["embed"] != 0, masks["embed"])


def test_an_explanation_says_what_will_be_left_before_anything_is_done():
    shapes = jax.eval_shape(model)
    found = Rules([Rule("embed", None), Rule("layers", budget=budgets.global_), Rule("head", sparsity=0.9)])
    text = str(found.explain(shapes))
    rows = [line.split() for line in text.splitlines()]
    assert ["head", "8×12", "3", "magnitude", "10", "96"] in rows
    assert ["layers/0/up", "8×16", "2", "magnitude", "shared", "128"] in rows
    kept = {decision.path: decision.kept for decision in found.explain(shapes).decisions}
    assert kept == {"embed": 128, "head": 10, "layers/0/up": None, "layers/1/down": None}
    some = str(Rules([Rule("layers", sparsity=0.5)]).explain(shapes))
    assert some.endswith("No rule matches 'embed', 'head': dense.")


def test_what_is_left_is_what_was_explained():
    params = model()
    for rule in (
        Rule(sparsity=0.33),
        Rule(sparsity=0.4, budget=budgets.erk),
        Rule(pattern=patterns.NM(3, 4)),
        Rule(pattern=patterns.Block((4, 4)), sparsity=0.6),
        Rule(pattern=patterns.Channel(), sparsity=0.4),
    ):
        found = Rules([rule])
        explained = {decision.path: decision.kept for decision in found.explain(params).decisions}
        assert explained == {row.path: row.kept for row in jaxprune.summary(params, found(params))}


def test_a_rule_that_decides_about_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"Rule 2, for 'mlp', decides about no leaf .* There are 'embed', 'head'"):
        Rules([Rule("embed"), Rule("mlp")])(model())
    with pytest.raises(ValueError, match=r"Rule 2, for 'embed', decides about no leaf"):
        Rules([Rule(), Rule("embed")]).explain(model())
    with pytest.raises(ValueError, match=r"Rule 1, for 'bias', decides about no leaf"):
        Rules([Rule("bias")])(model())


@pytest.mark.wrong_types
def test_wrong_rules_say_what_is_wrong():
    with pytest.raises(ValueError, match="is not a regular expression"):
        Rule("(")
    with pytest.raises(ValueError, match=r"`sparsity` must be a fraction between 0 and 1; got 50"):
        Rule(sparsity=50)
    with pytest.raises(ValueError, match=r"`NM\(2, 4\)` fixes the sparsity at 0.5; got 0.7"):
        Rule(pattern=patterns.NM(2, 4), sparsity=0.7)
    with pytest.raises(TypeError, match="`method` must be a function; got str"):
        Rule(method="magnitude")
    with pytest.raises(TypeError, match=r"`Rules` takes a list of `Rule`"):
        Rules(Rule())


_FILE = """
[[rule]]
path = "embed"
method = "keep"

[[rule]]
path = "up"
pattern = "2:4"

[[rule]]
sparsity = 0.75
budget = "global"
"""


def test_a_file_of_rules_is_the_same_as_the_value(tmp_path):
    (tmp_path / "rules.toml").write_text(_FILE)
    found = rules.read(tmp_path / "rules.toml")
    assert found == Rules(
        [Rule("embed", None), Rule("up", pattern=patterns.NM(2, 4)), Rule(sparsity=0.75, budget=budgets.global_)]
    )
    assert same(found(model()), Rules(found.rules)(model()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule = 3", r"must have tables `\[\[rule\]\]` and nothing else; got rule"),
        ("", "nothing else; got nothing"),
        ("x = ", "is not TOML"),
        ("[[rule]]\n[other]", r"nothing else; got rule, other"),
        ("[[rule]]\npaths = 'x'", r"Rule 1 of '.*': there is no 'paths'; a rule has budget, method, path, pattern"),
        ("[[rule]]\n[[rule]]\nmethod = 'l1'", r"Rule 2 of .*: the method must be one of magnitude, lamp, dft, keep"),
        ("[[rule]]\nbudget = 'erd'", "the budget must be one of uniform, global, erk; got 'erd'"),
        ("[[rule]]\npattern = '2/4'", "the pattern must be one of unstructured, channel, along, 'N:M' or 'RxC'"),
        ("[[rule]]\npattern = '5:4'", "needs 0 <= n <= m"),
        ("[[rule]]\npattern = 24", "'pattern' must be a text; got 24"),
        ("[[rule]]\nsparsity = '0.5'", "'sparsity' must be a number; got '0.5'"),
        ("[[rule]]\nsparsity = 5.0", "`sparsity` must be a fraction"),
        ("[[rule]]\npath = '('", "is not a regular expression"),
    ],
)
def test_a_wrong_file_names_the_rule_and_the_key(text, message, tmp_path):
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        rules.read(tmp_path / "rules.toml")


def test_patterns_have_names():
    assert rules.pattern_of("1:8") == patterns.NM(1, 8)
    assert rules.pattern_of("16x4") == patterns.Block((16, 4))
    assert rules.pattern_of("channel") == patterns.Channel()
