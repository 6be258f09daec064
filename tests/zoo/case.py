"""What a model of the zoo states about itself, and how it is checked."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._arrays import tree
from jaxprune._masks import masking
from jaxprune.structured._coupling import Coupling, couple
from jaxprune.structured._shrink import shrink


@dataclasses.dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
      build: Makes `(fun, params, args)`: `fun(params, *args)` at batch 2.
      least: The fraction of parameters that removing half of each group must remove at least.
      frozen: Regular expression over "path[axis]" -> expression over the stated reason. Every frozen axis must
        match one, and every one must match an axis.
      options: Passed to `couple`.
      batched: Which of `args` carry the batch on their first axis; empty if the batch size is fixed.
      tolerance: Relative to the largest output.
    """

    build: Callable[[], tuple[Callable[..., Any], Any, tuple[Any, ...]]]
    least: float
    frozen: dict[str, str]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    batched: tuple[int, ...] = (0,)
    tolerance: float = 1e-5


def randomised(params: Any, seed: int = 0) -> Any:
    """Every floating leaf random; those with one axis positive, since some are variances."""
    generator = np.random.default_rng(seed)

    def leaf(path: str, x: Any) -> Any:
        if not tree.is_floating(x):
            return jnp.full(x.shape, 3, x.dtype) if tree.is_array(x) else x
        value = generator.normal(size=x.shape) * 0.4
        if len(x.shape) < 2 or re.search("var|scale", path):
            value = np.abs(value) + 0.1
        return jnp.asarray(value, x.dtype)

    return tree.map_with_path(leaf, params)


def unit_masks(coupling: Coupling, params: Any, fraction: float = 0.5, seed: int = 1) -> Any:
    """Masks that remove a random `fraction` of each group's units, others in each layer of a stack."""
    generator = np.random.default_rng(seed)
    alive = []
    for group in coupling.groups:
        rows = np.ones((group.layers, group.width), bool)
        for row in rows:
            row[generator.permutation(group.width)[: int(group.width * fraction)]] = False
        alive.append(rows)

    def leaf(path: str, x: Any) -> Any:
        if path not in coupling.units:
            return None
        mask = np.ones(x.shape, bool)
        for axis, units in enumerate(coupling.units[path]):
            for group, rows in zip(coupling.groups, alive, strict=True):
                mine = (units >= group.start) & (units < group.start + group.width)
                if mine.any():
                    stays = np.ones((len(rows), len(units)), bool)
                    stays[:, mine] = rows[:, units[mine] - group.start]
                    shape = [1] * len(x.shape)
                    shape[axis] = len(units)
                    if group.stack is not None:
                        shape[group.stack] = len(rows)
                    mask &= (stays if group.stack is None or group.stack < axis else stays.T).reshape(shape)
        return jnp.asarray(mask)

    return tree.map_with_path(leaf, params)


def size(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params) if tree.is_array(leaf))


def check_frozen(coupling: Coupling, expected: dict[str, str]) -> None:
    """Every frozen axis is stated with its reason, and every statement holds."""
    unmet = set(expected)
    missed = []
    for (path, axis), reason in coupling.frozen.items():
        name = f"{path}[{axis}]"
        met = [p for p, words in expected.items() if re.search(p, name) and re.search(words, reason)]
        unmet -= set(met)
        if not met:
            missed.append(f"{name}: {reason}")
    assert not missed, "prunable, but kept whole:\n  " + "\n  ".join(missed)
    assert not unmet, f"stated as kept whole, but not: {sorted(unmet)}"


def check(case: Case) -> Coupling:
    """Shrinks half of everything and compares with the masked model, at another batch size than the coupled one."""
    fun, params, args = case.build()
    coupling = couple(fun, params, *args, **case.options)
    check_frozen(coupling, case.frozen)
    params = randomised(params)
    masks = unit_masks(coupling, params)
    small_fun, small_params, plan = shrink(fun, params, masks, coupling)
    removed = 1 - size(small_params) / size(params)
    assert removed >= case.least, f"only {removed:.3f} of the parameters went"
    arrays = tuple(sampled(arg, i in case.batched) for i, arg in enumerate(args))
    expected = plan.take(jitted(fun)(masking.apply(params, masks), *arrays))
    compare(jitted(small_fun)(small_params, *arrays), expected, case.tolerance)
    return coupling


def of_arrays(fun: Callable[..., Any], params: Any) -> tuple[Callable[..., Any], list[Any]]:
    """The function of the parameters' arrays alone, for trees with leaves that are not arrays; and these arrays."""
    leaves, structure = jax.tree.flatten(params)
    places = [i for i, leaf in enumerate(leaves) if tree.is_array(leaf)]

    def call(arrays: list[Any], *args: Any) -> Any:
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return fun(structure.unflatten(filled), *args)

    return call, [leaves[i] for i in places]


def jitted(fun: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` for trees with leaves that are not arrays."""

    def call(params: Any, *args: Any) -> Any:
        inner, arrays = of_arrays(fun, params)
        return jax.jit(inner)(arrays, *args)

    return call


def compare(got: Any, expected: Any, tolerance: float) -> None:
    """Equal up to `tolerance` of the largest entry, and not trivially so."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert a.shape == b.shape
        assert np.isfinite(b).all()
        assert np.abs(b).max() > 0
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def sampled(arg: Any, batched: bool = False, seed: int = 2) -> Any:
    """Values for an abstract argument; three samples on the first axis if it is `batched`."""
    generator = np.random.default_rng(seed)
    if not isinstance(arg, jax.ShapeDtypeStruct):
        return arg
    shape = (3, *arg.shape[1:]) if batched else arg.shape
    if np.issubdtype(arg.dtype, np.integer):
        return jnp.asarray(generator.integers(0, 5, shape), arg.dtype)
    return jnp.asarray(generator.normal(size=shape), arg.dtype)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """An abstract float32 argument."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    """An abstract int32 argument, small numbers when run."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def kernels(**shapes: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Abstract parameters by name."""
    return {name: floats(*shape) for name, shape in shapes.items()}
