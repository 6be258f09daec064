"""Changes the kernels of a model one after another, each for the inputs that the changed ones before it give."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune import layerwise
from jaxprune._arrays import tree
from jaxprune._calibration import _accumulators
from jaxprune._calibration._calibrate import ByShape
from jaxprune._jaxpr.roles.operands import Product, UnsupportedProduct
from jaxprune._jaxpr.roles.rules import Use
from jaxprune._jaxpr.staging.program import Program, Run
from jaxprune._jaxpr.staging.stages import Observer, Term, Unit
from jaxprune._jaxpr.tracing import Traced, arrays
from jaxprune.oneshot import _kernels
from jaxprune.typing import Kernel, Mask, Masks, Params, Where

Progress: TypeAlias = Callable[[int, int, str], Any]
"""Called as `progress(done, total, path)` whenever a leaf, or one layer of a stack, is done."""


class Measure(NamedTuple):
    """What is measured of the inputs.

    Attributes:
      kind: The statistic.
      split: `split(state, shape, use)` gives an array with a statistic for each kernel of a unit.
    """

    kind: _accumulators.Kind
    split: Callable[[_accumulators.Mean, tuple[int, ...], Use], Array]


def _grams(state: _accumulators.Mean, shape: tuple[int, ...], use: Use) -> Float[Array, "stack in in"]:
    gram = _accumulators.GRAM.finish(state, shape, use).gram
    return gram.reshape(-1, *gram.shape[-2:])


def _grams_beside(state: _accumulators.Mean, shape: tuple[int, ...], use: Use) -> Float[Array, "stack 2 in in"]:
    pair = [one.gram for one in _accumulators.GRAM_BESIDE.finish(state, shape, use)]
    return jnp.stack([matrix.reshape(-1, *matrix.shape[-2:]) for matrix in pair], axis=1)


def _norms(state: _accumulators.Mean, shape: tuple[int, ...], use: Use) -> Float[Array, "stack in"]:
    del shape
    squares = state.mean * state.number.astype(state.mean.dtype)
    return jnp.sqrt(_kernels.matrices(squares, use)[..., 0])


GRAM, NORM = Measure(_accumulators.GRAM, _grams), Measure(_accumulators.NORM, _norms)
_GRAM_BESIDE = Measure(_accumulators.GRAM_BESIDE, _grams_beside)


class Method(NamedTuple):
    """What to do with a kernel.

    Attributes:
      measure: Of its inputs: `GRAM` or `NORM`.
      prepare: From that, whatever kernels with the same inputs can share.
      solve: `solve(kernel, prepared, mask, path, place)` returns the new kernel and its mask. `mask` is what `run` was
        given; `place` says which kernel of a stack this is: an index along each stacked axis of the leaf.
    """

    measure: Measure
    prepare: Callable[[Array], Any]
    solve: Callable[[Kernel, Any, Mask | None, str, tuple[int, ...]], tuple[Kernel, Mask]]


def run(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    method: Method,
    *,
    where: Where,
    masks: Masks = None,
    valid: Callable[..., Any] | None = None,
    propagate: bool = True,
    correction: float = 0.0,
    progress: Progress | None = None,
) -> tuple[Params, Masks]:
    """Applies a method to every picked kernel, in the order of the program.

    All batches go through the program together, one stage after another: a stage ends where the input of a kernel that
    has not been changed yet is known. Kernels with the same input share its statistic. Only what the rest of the
    program needs is kept.

    Args:
      fun: The model, `fun(params, *args)`.
      params: Any pytree of arrays.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      method: What to do.
      where: Picks the leaves.
      masks: Handed to the method, for each picked leaf an array of its shape.
      valid: `valid(*args)` says which samples count, as `mask` of `calibrate`.
      propagate: Whether a kernel sees the outputs of the changed ones before it, or of the given ones.
      correction: The share in `layerwise.correct`; more than 0 needs a method that measures `GRAM`, and a second run.
      progress: Told of each kernel.

    Returns:
      The new parameters and their masks, `None` for leaves that were not picked.

    Raises:
      ValueError: There are no batches, the correction is out of range, or a picked leaf cannot be treated; the message
        names its path.
    """
    if not 0 <= correction <= 1:
        raise ValueError(f"`correction` is the share of a change to make up for, in [0, 1]; got {correction}.")
    correction = correction if propagate else 0.0  # what is not propagated changes nothing
    calls = _calls(fun, params, batches, where, valid, twice=correction > 0)
    work = _Work(method, correction, calls[0].traced.paths, calls[0].picked, list(arrays(params).values()), masks)
    stages = calls[0].run.program.stages
    total = sum(len(stage.units) for stage in stages)
    given = tuple(work.leaves)
    for number, stage in enumerate(stages):
        for call in calls:
            call.run.advance(number, work.leaves if propagate else given)
            if call.reference is not None:
                call.reference.advance(number, given)
        work.look(number, calls, work.leaves if propagate else given, given)
        for unit in stage.units:
            work.change(unit)
            if progress is not None:
                progress(work.done, total, work.paths[unit.leaf])
    return _filled(params, work.leaves, others=True), _filled(params, work.masks, others=False)


class _Call(NamedTuple):
    """A batch: its run, perhaps one with the given kernels, which samples count, and what its shape was traced to."""

    run: Run
    reference: Run | None
    valid: Any
    traced: Traced
    picked: dict[int, Use]


def _calls(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    where: Where,
    valid: Callable[..., Any] | None,
    twice: bool,
) -> list[_Call]:
    made = ByShape(fun, params, where, lambda traced, found: (Program(traced, found, twice), traced, found))
    calls = list[_Call]()
    for batch in batches:
        (program, traced, found), args = made(batch)
        counted = None if valid is None else jnp.asarray(valid(*args), bool)
        run, *reference = (Run(program, arrays(args).values()) for _ in range(1 + twice))
        calls.append(_Call(run, reference[0] if twice else None, counted, traced, found))
    if not calls:
        raise ValueError("At least one batch is needed; `batches` is empty.")
    plans = {
        tuple((stage.units, *(observation.units for observation in stage.observations)) for stage in program.stages)
        for program, _, _ in made.made.values()
    }
    if len(plans) > 1:
        raise ValueError(
            "Batches of different shapes use the kernels in different orders. Give batches of one shape, or `propagate="
            "False` for each shape by itself."
        )
    return calls


@dataclasses.dataclass
class _Seen:
    """A statistic on its way: for which leaf's layout, and its running mean."""

    shape: tuple[int, ...]
    use: Use
    mean: _accumulators.Mean


class _Work:
    """The kernels so far.

    Attributes:
      leaves: Changed as far as the work has come.
      masks: By leaf.
      done: How many units have been changed.
    """

    def __init__(
        self,
        method: Method,
        correction: float,
        paths: Sequence[str],
        picked: Mapping[int, Use],
        leaves: list[Any],
        masks: Any,
    ):
        self.paths, self.leaves, self.done = paths, leaves, 0
        self.masks: list[Any] = [None] * len(leaves)
        self._method, self._picked, self._given = method, picked, arrays(masks)
        self._correction, self._measure = correction, _GRAM_BESIDE if correction else method.measure
        self._seen: dict[Unit, list[_Seen]] = {}
        self._astray: dict[Unit, _accumulators.Mean] = {}
        self._shared: tuple[list[_Seen], list[Any]] = ([], [])

    def look(self, number: int, calls: Sequence[_Call], leaves: Sequence[Any], given: Sequence[Any]) -> None:
        """Sees what the units of a stage are multiplied by, in all batches."""
        for place, observation in enumerate(calls[0].run.program.stages[number].observations):
            use = self._picked[observation.observer.leaf]
            kind = self._measure.kind
            mean = kind.empty(observation.observer.shape, use)
            for call in calls:
                sources, observer, _ = call.run.program.stages[number].observations[place]
                try:
                    reference = None if call.reference is None else call.reference.values(sources, given)
                    mean = _take(kind, observer, use, mean, call.run.values(sources, leaves), reference, call.valid)
                except UnsupportedProduct as error:
                    raise ValueError(
                        f"It cannot be told what multiplies '{self.paths[observer.leaf]}': {error}. Leave it out with "
                        "`where=`."
                    ) from error
            seen = _Seen(observation.observer.shape, use, mean)
            for unit in observation.units:
                self._seen.setdefault(unit, []).append(seen)
        for place, term in enumerate(calls[0].run.program.stages[number].terms):
            terms = [call.run.program.stages[number].terms[place] for call in calls]
            self._look_astray(term.unit, zip(calls, terms, strict=True), leaves, given)

    def _look_astray(
        self, unit: Unit, seen: Iterable[tuple[_Call, Term]], leaves: Sequence[Any], given: Sequence[Any]
    ) -> None:
        """Sees how far what a unit is added to has gone from where it was, against the unit's inputs."""
        use = self._picked[unit.leaf]
        mean = _accumulators.BETWEEN.empty(unit.shape, use)
        for call, term in seen:
            assert call.reference is not None  # terms are only looked for to be compared
            sources = call.run.values(term.sources, leaves)
            pair = call.run.values([term.addend.variable], leaves) + call.reference.values(
                [term.addend.variable], given
            )
            try:
                mean = _take_astray(term.observer, use, term.addend.order, mean, sources, pair, call.valid)
            except UnsupportedProduct:
                return  # it makes up for what has become of its inputs alone
        old = self._astray.get(unit)
        self._astray[unit] = mean if old is None else _accumulators.merge_means(old, mean)

    def change(self, unit: Unit) -> None:
        """Applies the method to the kernels of a unit."""
        path, use, leaf = self.paths[unit.leaf], self._picked[unit.leaf], jnp.asarray(self.leaves[unit.leaf])
        starts = _starts(unit, leaf.ndim)
        given = self._given.get(path)
        stack = _kernels.matrices(_kernels.part(leaf, starts, unit.shape), use)
        masks = None if given is None else _kernels.matrices(_kernels.part(given, starts, unit.shape), use)
        astray = self._astray.pop(unit, None)
        residuals = None if astray is None else _accumulators.BETWEEN.finish(astray, unit.shape, use)
        results = list[tuple[Kernel, Mask]]()
        for i, (correct, prepared) in enumerate(self._prepared(path, self._seen.pop(unit))):
            residual, kept = (None if of is None else of[i] for of in (residuals, masks))
            kernel = _named(path, functools.partial(correct, residual=residual), stack[i])
            rest = prepared, kept, path, _kernels.place(unit.shape, use, starts, i)
            results.append(_named(path, self._method.solve, kernel, *rest))
        if self.masks[unit.leaf] is None:
            self.masks[unit.leaf] = jnp.ones(leaf.shape, bool)
            leaf = jnp.copy(leaf)  # the given one stays whole
        new, chosen = (_kernels.restored(jnp.stack(column), unit.shape, use) for column in zip(*results, strict=True))
        self.leaves[unit.leaf] = _kernels.replaced(leaf, new, starts)
        self.masks[unit.leaf] = _kernels.replaced(self.masks[unit.leaf], chosen, starts)
        self.done += 1

    def _prepared(self, path: str, seen: list[_Seen]) -> list[tuple[Callable[..., Kernel], Any]]:
        """How to correct kernels, and what the method makes of a statistic; once for units that have seen the same."""
        last, prepared = self._shared
        if [*map(id, last)] != [*map(id, seen)]:
            mean = functools.reduce(_accumulators.merge_means, (one.mean for one in seen))
            statistics = self._measure.split(mean, seen[0].shape, seen[0].use)
            prepared = [self._prepare(path, statistic) for statistic in statistics]
            self._shared = seen, prepared
        return prepared

    def _prepare(self, path: str, statistic: Array) -> tuple[Callable[..., Kernel], Any]:
        if not self._correction:
            return lambda kernel, residual: kernel, _named(path, self._method.prepare, statistic)
        gram, cross = statistic
        correct = functools.partial(layerwise.correct, gram=gram, cross=cross, share=self._correction)
        return correct, _named(path, self._method.prepare, gram)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _take(
    kind: _accumulators.Kind, observer: Observer, use: Use, mean: Any, seen: Sequence[Any], reference: Any, valid: Any
) -> Any:
    def record(product: Product, mean: Any) -> Any:
        if reference is None:
            return kind.take(mean, product, use, valid)
        return kind.take(mean, product, use, valid, observer.product(reference) or product)

    return observer.take(mean, seen, record)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _take_astray(
    observer: Observer,
    use: Use,
    order: tuple[int, ...],
    mean: Any,
    seen: Sequence[Any],
    pair: Sequence[Any],
    valid: Any,
) -> Any:
    now, before = (added.astype(jnp.float32).transpose(order) for added in pair)
    product = observer.product(seen)
    assert product is not None  # only products have sums
    return _accumulators.BETWEEN.take(mean, dataclasses.replace(product, result=before - now), use, valid)


def _named(path: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function, and puts the path before what it says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(*args)
        except ValueError as error:
            raise ValueError(f"'{path}': {error}") from error
    for warning in caught:
        warnings.warn(f"'{path}': {warning.message}", warning.category, stacklevel=6)
    return result


def _starts(unit: Unit, rank: int) -> tuple[int, ...]:
    starts = {axis: start for axis, start, _ in unit.place}
    return tuple(starts.get(axis, 0) for axis in range(rank))


def _filled(params: Params, values: Sequence[Any], others: bool) -> Any:
    """The tree with other values in place of its arrays; what is no array stays, or becomes `None`."""
    rest = iter(values)
    return jax.tree.map(lambda leaf: next(rest) if tree.is_array(leaf) else (leaf if others else None), params)
