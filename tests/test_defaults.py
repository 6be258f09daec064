"""The defaults of every public function and class, which are as much a promise as their names."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import (
    budgets,
    corruptions,
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

DEFAULTS = {
    "Convergence": "window=1",
    "Coupling": "semantics='masked'",
    "LeafSummary": "picked=True",
    "Plan": "semantics='masked'",
    "Spectral": "transform='dft'",
    "acdc": "begin=0",
    "admm": "iterations=20, damping=0.3, within='output'",
    "calibrate": "statistic='norm'",
    "couple": "split='outer', semantics='masked'",
    "dft": "keep='energy', transform='dft'",
    "dpf": "begin=0, every=1, decay=0.0",
    "from_scores": "absolute=False",
    "gradual": "begin=0, every=1, packed=False",
    "magnitude": "norm='l1'",
    "movement": "begin=0, every=1",
    "prune_retrain": "epochs=10, minimum=-inf, progress=False",
    "Report": "masked=True",
    "report": "timed=False",
    "ria": "power=0.5",
    "rigl": "begin=0, every=100, per_leaf=True",
    "select": "absolute=False",
    "slim": "norm='l2', aggregate='mean', normalize=True, round_to=1, keep_at_least=1, alike=False",
    "sparse_evolution": "begin=0, every=100, per_leaf=True",
    "sparsegpt": "block=128, damping=0.1, within='block'",
    "steps_to": "window=1",
    "summary": "dense=False",
    "synflow": "rounds=100",
    "variance": "remove='smallest'",
    "budgets.cumulative": "per_leaf=True",
    "budgets.global_": "normalize=False",
    "budgets.owl": "threshold=5.0, deviation=0.08",
    "formats.Dense": "transposed=False",
    "formats.Strips": "method='strip by strip'",
    "io.Compared": "same=False",
    "io.compare": "progress=False",
    "io.inspect": "layout='auto', progress=False",
    "io.pack": "layout='auto', progress=False",
    "io.prune": "layout='auto', packed=False, progress=False",
    "io.save": "packed=False",
    "io.unpack": "progress=False",
    "layerwise.ADMM": "iterations=20, damping=0.3, within='output', refit=False",
    "layerwise.SparseGPT": "block=128, damping=0.1, within='block'",
    "layerwise.Wanda": "within='output'",
    "layerwise.admm": "iterations=20, damping=0.01, penalty=1.0, within='layer', refit=False",
    "layerwise.correct": "share=1.0, damping=0.3",
    "layerwise.damp": "damping=0.01",
    "layerwise.obs": "damping=0.0, within='layer'",
    "layerwise.refit": "damping=0.01, exact=False",
    "layerwise.sparsegpt": "block=128, damping=0.01, within='block'",
    "layerwise.swap": "steps=100",
    "layerwise.wanda": "within='output'",
    "oneshot.prune": "propagate=True, progress=False",
    "oneshot.repair": "damping=0.01, correction=0.0",
    "oneshot.swap": "steps=100",
    "patterns.Block": "balanced=False",
    "patterns.NM": "group=1",
    "rules.Rule": "path=''",
    "scores.magnitude": "norm='l1'",
    "scores.ria": "power=0.5",
    "structured.latency": "other=0.0",
    "structured.of_norms": "norm='l2', aggregate='mean', normalize=True",
    "structured.of_slices": "aggregate='mean', normalize=True",
    "targets.AtMost": "rounds=5",
    "targets.AtSparsity": "rounds=5",
    "targets.Within": "factor=0.5, resolution=0.2, rounds=12",
}
MODULES = (
    jaxprune, budgets, corruptions, formats, io, layerwise, oneshot, patterns, rules, scores, statistics, structured,
    targets,
)  # fmt: skip


def found():
    """Numbers and words that are taken unless told otherwise."""
    values, seen = {}, set()
    for module in MODULES:
        for name, value in inspect.getmembers(module, callable):
            if name[0] == "_" or not value.__module__.startswith("jaxprune") or value in seen:
                continue
            seen.add(value)
            parameters = inspect.signature(value).parameters.values()
            given = [f"{p.name}={p.default!r}" for p in parameters if isinstance(p.default, bool | int | float | str)]
            if given:
                prefix = "" if module is jaxprune else module.__name__.removeprefix("jaxprune.") + "."
                values[prefix + name] = ", ".join(given)
    return values


def test_every_default_is_as_promised():
    assert found() == DEFAULTS


@pytest.mark.parametrize(("pattern", "penalty"), [(patterns.Unstructured(), 3.0), (patterns.NM(2, 4), 1.0)])
def test_admm_weighs_its_penalty_by_the_pattern(pattern, penalty):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(24, 8)).astype(np.float32), jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    gram = jnp.asarray(x.T @ x)
    default, _ = layerwise.ADMM(iterations=3).prune(kernel, gram, 0.5, pattern)
    given, _ = layerwise.ADMM(iterations=3, penalty=penalty).prune(kernel, gram, 0.5, pattern)
    np.testing.assert_array_equal(default, given)
