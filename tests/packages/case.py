"""What a model from outside states about itself, and how the library is checked on it."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from zoo import case as zoo

import jaxprune
from jaxprune import filters, patterns
from jaxprune._arrays import tree
from jaxprune._jaxpr.tracing import arrays

# Models of others promote implicitly.
MARKS = [pytest.mark.packages, pytest.mark.dtype_promotion, pytest.mark.rank_promotion]

# Reasons that many share.
TAPS, ONE, INPUT, OUTPUT = "taps of a convolution", "an axis of one", "of argument", "of the output"
TABLE = {r"embed.*\[0\]|w[pt]e.*\[0\]": "'gather' indexes it"}

Built = tuple[Callable[..., Any], Any, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A small configuration of a model that others wrote, with random parameters.

    Attributes:
      title: What it is, for the page.
      package: Its name in the package index; the test is skipped without it.
      build: Makes `(fun, params, args)`, of which the parameters and arguments may be abstract.
      least: The fraction of parameters that removing half of each group must remove at least.
      frozen: Regular expression over "path[axis]" -> expression over the stated reason. Every axis that stays whole
        must match one, and every one must match an axis.
      summed: Regular expression over a path -> the axis that groups of N:M lie along. Every parameter that something
        is multiplied by must match one, and every one must match a parameter.
      unmultiplied: Regular expression over the paths of all other parameters of two axes and more.
      options: Passed to `couple`.
    """

    title: str
    package: str
    build: Callable[[], Built]
    least: float
    frozen: dict[str, str]
    summed: dict[str, int]
    unmultiplied: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def check(model: Model, record_property: Callable[[str, Any], None]) -> None:
    """Every function of the library on one model; what it finds goes into the page."""
    try:
        version = importlib.metadata.version(model.package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{model.package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what packages say of one another
        fun, params, args = model.build()
        params, args = zoo.randomised(params), tuple(map(zoo.sampled, args))
        call, leaves = zoo.of_arrays(fun, params)
        jaxpr = jax.make_jaxpr(call)(leaves, *args).jaxpr
        jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # a product that no output needs is not made
        warnings.filterwarnings("error", r"[\s\S]*(`\w+`|dense)", UserWarning)  # what the library says
        coupling, removed = _check_units(model, fun, params, args)
        assert jaxprune.macs(fun, params, *args).dense == coupling.macs() == _products(jaxpr)
        along = _check_layout(model, fun, params, args)
        _check_data(fun, params, args, along)
    kept = collections.Counter(coupling.frozen.values())
    row = {"title": model.title, "package": f"{model.package} {version}", "removed": removed}
    record_property("model", {**row, "groups": len(coupling.groups), "kernels": len(along), "kept": dict(kept)})


def _check_units(model: Model, fun: Any, params: Any, args: Any) -> tuple[jaxprune.Coupling, float]:
    """Half of each group goes by `slim`, nothing stays whole unsaid, and the small model is the masked one."""
    coupling = jaxprune.couple(fun, params, *args, **model.options)
    zoo.check_frozen(coupling, model.frozen)
    masks = jaxprune.slim(params, 0.5, coupling=coupling)
    small_fun, small_params, plan = jaxprune.shrink(fun, params, masks, coupling)
    removed = 1 - zoo.size(small_params) / zoo.size(params)
    assert removed >= model.least, f"only {removed:.3f} of the parameters went"
    expected = plan.take(zoo.jitted(fun)(jaxprune.apply(params, masks), *args))
    zoo.compare(zoo.jitted(small_fun)(small_params, *args), expected, 1e-5)
    return coupling, removed


def _check_layout(model: Model, fun: Any, params: Any, args: Any) -> dict[str, int]:
    """Every parameter is multiplied along the stated axis, or is among those that are not multiplied at all."""
    layout = jaxprune.layout(fun, params, *args)
    along = {path: axes.inputs[-1] for path, axes in layout.axes.items()}
    missed = {path: axis for path, axis in along.items() if _matching(model.summed, path) != {axis}}
    assert not missed, f"summed over other axes than stated: {missed}"
    idle = {path: why for path, why in layout.without.items() if arrays(params)[path].ndim > 1}
    missed = {path: why for path, why in idle.items() if not any(re.search(p, path) for p in model.unmultiplied)}
    assert not missed, f"multiplied by nothing: {missed}"
    unmet = [p for p in model.summed if not any(re.search(p, path) for path in along)]
    unmet += [p for p in model.unmultiplied if not any(re.search(p, path) for path in idle)]
    assert not unmet, f"stated of no parameter: {unmet}"
    return along


def _check_data(fun: Any, params: Any, args: Any, along: dict[str, int]) -> None:
    """Every kernel is measured, and `sparsegpt` prunes each that holds groups of four along its inputs."""
    kernels = {path for path, leaf in arrays(params).items() if filters.is_kernel(path, leaf)}
    with pytest.warns(UserWarning, match="stay dense") if kernels - set(along) else contextlib.nullcontext():
        grams = jaxprune.calibrate(fun, params, [args], statistic="gram")
    measured = {path for path, leaf in _by_path(params, grams).items() if leaf is not None}
    assert measured == kernels & set(along)
    fits = {path for path, leaf in arrays(params).items() if path in measured and leaf.shape[along[path]] % 4 == 0}
    assert fits
    _, masks = jaxprune.sparsegpt(
        fun, params, [args], pattern=patterns.NM(2, 4), where=lambda path, _: path in fits, correction=0.0
    )
    found = {path: np.asarray(mask) for path, mask in _by_path(params, masks).items() if mask is not None}
    assert set(found) == fits
    for path, mask in found.items():
        assert (np.moveaxis(mask, along[path], -1).reshape(-1, 4).sum(axis=1) == 2).all(), path


def _matching(stated: dict[str, int], path: str) -> set[int]:
    return {axis for pattern, axis in stated.items() if re.search(pattern, path)}


def _by_path(params: Any, values: Any) -> dict[str, Any]:
    """What a tree holds for each array of the parameters."""
    rows = tree.flatten(params, values)[0]
    return {path: value for path, leaf, value in rows if tree.is_array(leaf)}


def _products(jaxpr: Any) -> int:
    """Multiply-accumulates, counted by other code than the library's."""
    total = 0
    for eqn in jaxpr.eqns:
        shapes, size = [v.aval.shape for v in eqn.invars], sum(v.aval.size for v in eqn.outvars)
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += size * math.prod(shapes[0][axis] for axis in contracted)
        elif eqn.primitive.name == "ragged_dot_general":
            total += size * shapes[0][-1]  # each row by the kernel of its group
        elif eqn.primitive.name == "conv_general_dilated":
            total += size * math.prod(shapes[1]) // shapes[1][eqn.params["dimension_numbers"].rhs_spec[0]]
        else:
            values = jax.tree.leaves(tuple(eqn.params.values()))
            inner = [getattr(value, "jaxpr", value) for value in values]
            counts = [_products(body) for body in inner if hasattr(body, "eqns")]
            if eqn.primitive.name == "cond":
                total += max(counts)
            else:
                total += sum(counts) * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)
    return total
