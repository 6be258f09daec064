"""Running means, variances and Gram matrices of the inputs of products, merged batch by batch.

Each kind of statistic is three functions: `empty` makes the state before the first batch, `take` adds a product to a
state, `finish` makes the public value. The first axes of a state are those of the leaf, of size 1 where the statistic
does not vary along them. A state holds means, not sums: a new batch is added in proportion to its number of samples, so
rounding errors do not grow with the number of batches.

References:
  Chan, Golub & LeVeque, 1983, "Algorithms for Computing the Sample Variance: Analysis and Recommendations".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprune._arrays import meshes
from jaxprune._jaxpr.roles.operands import AlignedValues, Product, UnsupportedProduct
from jaxprune._jaxpr.roles.rules import Use
from jaxprune.statistics import Gram, Moments, Norm, Variance
from jaxprune.typing import Axes


class Kind(NamedTuple):
    """A statistic: `empty(shape, use)`, `take(state, product, use, valid)` and `finish(state, shape, use)`."""

    empty: Callable[..., Any]
    take: Callable[..., Any]
    finish: Callable[..., Any]


class Mean(NamedTuple):
    """A mean, and over how many samples; for a matrix the number has two axes fewer."""

    mean: Float[Array, "..."]
    number: Int[Array, "..."]


def _empty_norm(shape: Sequence[int], use: Use) -> Mean:
    return _empty_mean(_input_extents(shape, use))


def _take_norm(state: Mean, product: Product, use: Use, valid: Any) -> Mean:
    seen = product.inputs()
    squares, samples, count = _counted(seen._replace(values=jnp.square(_wide(seen.values))), valid)
    return _into(state, Mean(_mean(squares, samples, count), count), seen.start, merge_means)


def _finish_norm(state: Mean, shape: Sequence[int], use: Use) -> Norm:
    mean, number = _ungrouped(state, shape, use)
    return Norm(mean, number, _axes(use))


def _empty_variance(shape: Sequence[int], use: Use) -> tuple[Moments, Moments]:
    outputs = [n if a in (*use.outputs, *use.stacked) else 1 for a, n in enumerate(shape)]
    return _empty_moments(_input_extents(shape, use)), _empty_moments(outputs)


def _take_variance(state: tuple[Moments, Moments], product: Product, use: Use, valid: Any) -> tuple[Moments, Moments]:
    del use
    inputs, outputs = product.inputs(), product.outputs()
    return _take_moments(state[0], inputs, valid), _take_moments(state[1], outputs, valid)


def _take_moments(state: Moments, seen: AlignedValues, valid: Any) -> Moments:
    values, samples, count = _counted(seen._replace(values=_wide(seen.values)), valid)
    mean = _mean(values, samples, count)
    deviations = jnp.square(_wide(seen.values) - jnp.expand_dims(mean, tuple(range(samples))))
    squares, _, _ = _counted(seen._replace(values=deviations), valid)
    return _into(state, Moments(mean, _mean(squares, samples, count), count), seen.start, _merge_moments)


def _finish_variance(state: tuple[Moments, Moments], shape: Sequence[int], use: Use) -> Variance:
    return Variance(_ungrouped(state[0], shape, use), state[1], _axes(use))


def _empty_gram(shape: Sequence[int], use: Use, matrices: int = 1) -> Mean:
    extents = [1 if a in use.inputs else n for a, n in enumerate(_input_extents(shape, use))]
    size = math.prod(shape[a] for a in use.inputs)
    return Mean(jnp.zeros((*extents, size, matrices * size), jnp.float32), jnp.zeros(extents, jnp.int32))


def _take_gram(state: Mean, product: Product, use: Use, valid: Any, *references: Product) -> Mean:
    """Adds to the Gram matrix; with references, also to the products of the inputs with those of each reference.

    All matrices are concatenated along the last axis, the Gram matrix first.
    """
    seen = product.inputs()
    rows, samples, start, _ = _rows(seen, use.inputs, valid)
    if rows.shape[-1] != state.mean.shape[-2]:
        raise UnsupportedProduct("a product sums over a part of its inputs only")
    others = [rows, *(_rows(reference.inputs(), use.inputs, valid).values for reference in references)]
    total = jnp.concatenate([_summed(rows, other, samples) for other in others], axis=-1)
    count = _count(_counting(seen, valid), rows.shape[:samples], rows.shape[samples:-1])
    return _into(state, Mean(total / _divisor(count)[..., None, None], count), start, merge_means)


def _summed(rows: Any, columns: Any, samples: int) -> Any:
    """The outer products along the last axes of both, summed over the samples."""
    summed, batch = tuple(range(samples)), tuple(range(samples, rows.ndim - 1))
    return lax.dot_general(
        rows,
        columns,
        ((summed, summed), (batch, batch)),
        precision=lax.Precision.HIGHEST,
        out_sharding=meshes.replicated(rows),
    )


def _rows(seen: AlignedValues, axes: Sequence[int], valid: Any) -> AlignedValues:
    """The values with these axes of the leaf merged into a last one, and 0 for samples that do not count."""
    values, samples, _ = _counted(seen._replace(values=_wide(seen.values)), valid)
    leaf = values.shape[samples:]
    rest = [a for a in range(len(leaf)) if a not in axes]
    rows = values.transpose(*range(samples), *(samples + a for a in (*rest, *axes)))
    extents = [1 if a in axes else n for a, n in enumerate(leaf)]
    return AlignedValues(rows.reshape(*values.shape[:samples], *extents, -1), samples, seen.start)


def _finish_gram(state: Mean, shape: Sequence[int], use: Use) -> Gram:
    del shape
    gone = [*use.inputs, *(a for a in use.outputs if use.groups == 1 or a != use.outputs[0])]
    return Gram(state.mean.squeeze(gone), state.number.squeeze(gone), _axes(use))


def _finish_gram_and_cross(state: Mean, shape: Sequence[int], use: Use) -> tuple[Gram, Gram]:
    halves = jnp.split(state.mean, 2, axis=-1)
    gram, cross = (_finish_gram(Mean(half, state.number), shape, use) for half in halves)
    return gram, cross


def _empty_inputs_by_outputs(shape: Sequence[int], use: Use) -> Mean:
    inputs, outputs = (math.prod(shape[a] for a in axes) for axes in (use.inputs, use.outputs))
    extents = [n if a in use.stacked else 1 for a, n in enumerate(shape)]
    return Mean(jnp.zeros((*extents, inputs, outputs), jnp.float32), jnp.zeros(extents, jnp.int32))


def _take_inputs_by_outputs(state: Mean, product: Product, use: Use, valid: Any) -> Mean:
    seen = product.inputs()
    rows, samples, start, _ = _rows(seen, use.inputs, valid)
    columns = _rows(product.outputs(), use.outputs, valid).values
    if rows.shape[:-1] != columns.shape[:-1] or (rows.shape[-1], columns.shape[-1]) != state.mean.shape[-2:]:
        raise UnsupportedProduct("its inputs and outputs do not have the same samples")
    total, count = (
        _summed(rows, columns, samples),
        _count(_counting(seen, valid), rows.shape[:samples], rows.shape[samples:-1]),
    )
    return _into(state, Mean(total / _divisor(count)[..., None, None], count), start, merge_means)


def _finish_inputs_by_outputs(state: Mean, shape: Sequence[int], use: Use) -> Float[Array, "stack in out"]:
    del shape, use
    total = state.mean * state.number.astype(state.mean.dtype)[..., None, None]
    return total.reshape(-1, *total.shape[-2:])


def _at_each_position(take: Callable[..., Any]) -> Callable[..., Any]:
    """Takes the samples of each position apart where the program computes which kernel of a stack each one uses."""

    def take_all(state: Any, product: Product, use: Use, valid: Any, *references: Product) -> Any:
        axis = product.looked_up()
        if axis is None:
            return take(state, product, use, valid, *references)
        # In the order of their groups, samples cannot be found again: neither in the batch nor in another model's.
        in_order = product.part.looked_up is not None
        if valid is not None and not in_order:
            raise UnsupportedProduct("its samples are in the order of their groups, and `valid` gave the batch's")
        products = [product, *(reference if in_order else product for reference in references)]

        def take_one(position: Any, state: Any) -> Any:
            there = [one.at(position) for one in products]
            # Another model may route a sample elsewhere: those count that both send here.
            members = functools.reduce(operator.and_, (one.members for one in there))
            first, *others = (dataclasses.replace(one, members=members) for one in there)
            return take(state, first, use, valid, *others)

        return lax.fori_loop(0, max(array.shape[axis] for array in jax.tree.leaves(state)), take_one, state)

    return take_all


NORM = Kind(_empty_norm, _at_each_position(_take_norm), _finish_norm)
VARIANCE = Kind(_empty_variance, _at_each_position(_take_variance), _finish_variance)
GRAM = Kind(_empty_gram, _at_each_position(_take_gram), _finish_gram)
GRAM_AND_CROSS = Kind(functools.partial(_empty_gram, matrices=2), _at_each_position(_take_gram), _finish_gram_and_cross)
"""Two matrices: the products of the inputs with each other, and with the inputs of a reference product."""
INPUTS_BY_OUTPUTS = Kind(
    _empty_inputs_by_outputs, _at_each_position(_take_inputs_by_outputs), _finish_inputs_by_outputs
)
"""The products of the inputs with `Product.result`, which a caller may replace, summed over samples."""


def _input_extents(shape: Sequence[int], use: Use) -> list[int]:
    """The shape of a value for each input: that of the leaf, with 1 (or the number of groups) along the outputs."""
    extents = [n if a in (*use.inputs, *use.stacked) else 1 for a, n in enumerate(shape)]
    if use.groups > 1:
        extents[use.outputs[0]] = use.groups
    return extents


def _empty_mean(extents: Sequence[int]) -> Mean:
    return Mean(jnp.zeros(extents, jnp.float32), jnp.zeros(extents, jnp.int32))


def _empty_moments(extents: Sequence[int]) -> Moments:
    zeros = jnp.zeros(extents, jnp.float32)
    return Moments(zeros, jnp.zeros_like(zeros), jnp.zeros(extents, jnp.int32))


def _wide(values: Any) -> Float[Array, "..."]:
    return values.astype(jnp.float32)


def _counted(seen: AlignedValues, valid: Any) -> tuple[Any, int, Int[Array, "..."]]:
    """The values with 0 for samples that do not count, how many axes the samples have, and how many samples count."""
    values, samples, _, _ = seen
    shape, leaf = values.shape[:samples], values.shape[samples:]
    valid = _counting(seen, valid)
    if valid is not None:
        values = jnp.where(valid.reshape(*valid.shape, *(1,) * (values.ndim - valid.ndim)), values, 0)
    return values, samples, _count(valid, shape, leaf)


def _counting(seen: AlignedValues, valid: Any) -> Bool[Array, "..."] | None:
    """Which samples count and are chosen, over the leading axes of the samples; `None` if all do."""
    shape = seen.values.shape[: seen.samples]
    if seen.chosen is None:
        return None if valid is None else _aligned(valid, shape)
    chosen = jnp.broadcast_to(seen.chosen, shape)
    if valid is None:
        return chosen
    valid = _aligned(valid, shape)
    return chosen & valid.reshape(*valid.shape, *(1,) * (chosen.ndim - valid.ndim))


def _count(valid: Any, samples: Sequence[int], leaf: Sequence[int]) -> Int[Array, "..."]:
    if valid is None:
        return jnp.full(leaf, math.prod(samples), jnp.int32)
    each = math.prod(samples) // math.prod(valid.shape)
    return jnp.full(leaf, jnp.sum(valid, dtype=jnp.int32) * each)


def _aligned(valid: Any, samples: Sequence[int]) -> Bool[Array, "..."]:
    """Which samples count, over the leading axes of the samples; the program may have merged these into one."""
    if tuple(samples[: valid.ndim]) == valid.shape:
        return valid
    if samples and samples[0] == valid.size:
        return valid.reshape(-1)
    raise UnsupportedProduct(f"its samples have the axes {tuple(samples)}, and `valid` gave {valid.shape}")


def _mean(values: Any, samples: int, count: Int[Array, "..."]) -> Float[Array, "..."]:
    return jnp.sum(values, axis=tuple(range(samples))) / _divisor(count)


def _divisor(count: Int[Array, "..."]) -> Float[Array, "..."]:
    return jnp.maximum(count, 1).astype(jnp.float32)


def _into(state: Any, new: Any, start: Sequence[Any], merge: Callable[[Any, Any], Any]) -> Any:
    """Merges a state of the part of a leaf that begins at `start` into the state of the whole leaf."""
    whole = all(a.shape == b.shape for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True))
    if whole and all(isinstance(place, int) and place == 0 for place in start):
        return merge(state, new)

    def places(x: Any) -> list[Any]:
        return [jnp.asarray(place, jnp.int32) for place in (*start, *(0,) * (x.ndim - len(start)))]

    old = jax.tree.map(lambda x, y: lax.dynamic_slice(x, places(x), y.shape), state, new)
    return jax.tree.map(lambda x, y: lax.dynamic_update_slice(x, y, places(x)), state, merge(old, new))


def merge_means(old: Mean, new: Mean) -> Mean:
    """The mean over the samples of both."""
    count, share = _shares(old.number, new.number)
    share = share.reshape(*share.shape, *(1,) * (old.mean.ndim - share.ndim))
    return Mean(old.mean + (new.mean - old.mean) * share, count)


def _merge_moments(old: Moments, new: Moments) -> Moments:
    count, share = _shares(old.count, new.count)
    apart = new.mean - old.mean
    between = jnp.square(apart) * share * (1 - share)
    return Moments(old.mean + apart * share, old.variance + (new.variance - old.variance) * share + between, count)


def _shares(old: Int[Array, "..."], new: Int[Array, "..."]) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """The sum of both counts, and the share of the new samples in it."""
    total = old + new
    return total, new.astype(jnp.float32) / _divisor(total)


def _ungrouped(state: Any, shape: Sequence[int], use: Use) -> Any:
    """Repeats the entry of each group for every output of the group."""
    if use.groups == 1:
        return state
    along = use.outputs[0]
    return jax.tree.map(lambda x: jnp.repeat(x, shape[along] // use.groups, axis=along), state)


def _axes(use: Use) -> Axes:
    return Axes(use.inputs, use.outputs, use.stacked)
