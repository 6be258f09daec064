"""Changes the kernels of a model one after another, each for the inputs that the changed ones before it give."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune import layerwise
from jaxprune._arrays import checks, tree
from jaxprune._calibration import _accumulators
from jaxprune._calibration._calibrate import ByShape, checked_batches
from jaxprune._jaxpr.roles.operands import Product, UnsupportedProduct
from jaxprune._jaxpr.roles.rules import Use
from jaxprune._jaxpr.staging.program import Program, Run
from jaxprune._jaxpr.staging.stages import Observer, Term, Unit
from jaxprune._jaxpr.tracing import Traced, arrays
from jaxprune._progress import Progress, reporting
from jaxprune.oneshot import _kernels
from jaxprune.typing import Kernel, Mask, Masks, Params, Where


class Options(TypedDict, total=False):
    """The keyword arguments that all drivers pass on; `oneshot.prune` documents them."""

    propagate: bool
    valid: Callable[..., Any] | None
    progress: Progress | bool


class _Measure(NamedTuple):
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


def _grams_and_crosses(state: _accumulators.Mean, shape: tuple[int, ...], use: Use) -> Float[Array, "stack 2 in in"]:
    pair = [one.gram for one in _accumulators.GRAM_AND_CROSS.finish(state, shape, use)]
    return jnp.stack([matrix.reshape(-1, *matrix.shape[-2:]) for matrix in pair], axis=1)


def _norms(state: _accumulators.Mean, shape: tuple[int, ...], use: Use) -> Float[Array, "stack in"]:
    del shape
    squares = state.mean * state.number.astype(state.mean.dtype)
    return jnp.sqrt(_kernels.matrices(squares, use)[..., 0])


_MEASURES = {"gram": _Measure(_accumulators.GRAM, _grams), "norm": _Measure(_accumulators.NORM, _norms)}
_GRAM_AND_CROSS = _Measure(_accumulators.GRAM_AND_CROSS, _grams_and_crosses)


class Solver(NamedTuple):
    """What is done to each kernel.

    Attributes:
      statistic: What is measured of its inputs.
      prepare: From the statistic, whatever kernels with the same inputs can share.
      solve: `solve(kernel, prepared, mask, path, place)` returns the new kernel and its mask. `mask` is what `run` was
        given; `place` says which kernel of a stack this is: an index along each stacked axis of the leaf.
    """

    statistic: Literal["gram", "norm"]
    prepare: Callable[[Array], Any]
    solve: Callable[[Kernel, Any, Mask | None, str, tuple[int, ...]], tuple[Kernel, Mask]]


def run(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    solver: Solver,
    *,
    where: Where | None,
    masks: Masks = None,
    correction: float = 0.0,
    propagate: bool = True,
    valid: Callable[..., Any] | None = None,
    progress: Progress | bool = False,
) -> tuple[Params, Masks]:
    """Applies a solver to every picked kernel, in the order of the program.

    All batches go through the program together, one stage after another. A stage ends where the inputs of a kernel that
    is still to be changed are known. Kernels with the same input share its statistic. Only what the rest of the program
    needs is kept.

    Args:
      fun: As in `oneshot.prune`, like the other arguments that are not named here.
      params: Any pytree of arrays.
      batches: Each a tuple of the arguments of `fun`, or the one argument.
      solver: What is done to each kernel.
      where: Picks the leaves.
      masks: For each picked leaf an array of its shape, which the solver is given.
      correction: The share in `layerwise.correct`; more than 0 needs a solver that measures Gram matrices.
      propagate: Whether kernels see what the changed ones before them give.
      valid: Says which samples count.
      progress: What is called after each kernel.

    Returns:
      The new parameters and their masks, `None` for leaves that were not picked.

    Raises:
      ValueError: There are no batches, the correction is out of range, or a picked leaf cannot be treated; the message
        names its path.
    """
    if not 0 <= correction <= 1:
        raise ValueError(f"`correction` is the share of a change to make up for, in [0, 1]; got {correction}.")
    correction = correction if propagate else 0.0  # without propagation the inputs do not change
    calls = _calls(fun, params, batches, where, valid, twice=correction > 0)
    paths, leaves = calls[0].traced.paths, list(arrays(params).values())
    for index in calls[0].picked:
        checks.finite(paths[index], leaves[index], "weights", "Leave it out with `where=`, or mend it.")
    work = _Work(solver, correction, paths, calls[0].picked, leaves, masks)
    stages = calls[0].run.program.stages
    total = sum(len(stage.units) for stage in stages)
    given = tuple(work.leaves)
    with reporting(progress) as report:
        for number, stage in enumerate(stages):
            current = work.leaves if propagate else given
            for call in calls:
                call.run.advance(number, current)
                if call.reference is not None:
                    call.reference.advance(number, given)
            work.measure(number, calls, current, given)
            for unit in stage.units:
                work.change(unit)
                report(work.done, total, work.paths[unit.leaf])
    work.warn_of_unseen()
    return _filled(params, work.leaves, keep_others=True), _filled(params, work.masks, keep_others=False)


class _Call(NamedTuple):
    """The evaluation of the function for one batch.

    Attributes:
      run: With the changed kernels.
      reference: With the given kernels, if the two are to be compared.
      valid: Which samples count.
      traced: The function, traced for batches of this shape.
      picked: How each picked leaf is used in it.
    """

    run: Run
    reference: Run | None
    valid: Any
    traced: Traced
    picked: dict[int, Use]


def _calls(
    fun: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    where: Where | None,
    valid: Callable[..., Any] | None,
    twice: bool,
) -> list[_Call]:
    made = ByShape(
        fun, params, where, ("stages", twice), lambda traced, found: (Program(traced, found, twice), traced, found)
    )
    calls = list[_Call]()
    programs = dict[int, Program]()
    for batch in checked_batches(batches):
        (program, traced, found), args = made(batch)
        programs[id(program)] = program
        counts = None if valid is None else jnp.asarray(valid(*args), bool)
        run, *reference = (Run(program, arrays(args).values()) for _ in range(1 + twice))
        calls.append(_Call(run, reference[0] if twice else None, counts, traced, found))
    plans = {
        tuple((stage.units, *(observation.units for observation in stage.observations)) for stage in program.stages)
        for program in programs.values()
    }
    if len(plans) > 1:
        raise ValueError(
            "Batches of different shapes use the kernels in different orders. Give batches of one shape, or `propagate="
            "False` for each shape by itself."
        )
    return calls


@dataclasses.dataclass
class _Measured:
    """The running mean of a statistic, and the shape and the use of the leaves that it was measured for."""

    shape: tuple[int, ...]
    use: Use
    mean: _accumulators.Mean


class _Work:
    """The kernels and masks so far.

    Attributes:
      paths: Of the leaves.
      leaves: The parameters; those of finished units are changed.
      masks: By leaf, `None` where no unit is finished.
      done: How many units have been changed.
      unseen: By path, how many inputs were 0 in every sample, and of how many.
    """

    def __init__(
        self,
        solver: Solver,
        correction: float,
        paths: Sequence[str],
        picked: Mapping[int, Use],
        leaves: list[Any],
        masks: Any,
    ):
        self.paths, self.leaves, self.done = paths, leaves, 0
        self.masks: list[Any] = [None] * len(leaves)
        self._solver, self._picked, self._given_masks = solver, picked, arrays(masks)
        self._correction = correction
        self._measure = _GRAM_AND_CROSS if correction else _MEASURES[solver.statistic]
        self._inputs: dict[Unit, list[_Measured]] = {}
        self._drifts: dict[Unit, _accumulators.Mean] = {}
        self.unseen: dict[str, tuple[int, int]] = {}
        self._is_unseen = np.zeros((0, 0), bool)
        self._last_prepared: tuple[list[_Measured], list[Any]] = ([], [])

    def measure(self, number: int, calls: Sequence[_Call], leaves: Sequence[Any], given: Sequence[Any]) -> None:
        """Measures what the units of a stage are multiplied by, in all batches."""
        for place, observation in enumerate(calls[0].run.program.stages[number].observations):
            use = self._picked[observation.observer.leaf]
            kind, path = self._measure.kind, self.paths[observation.observer.leaf]
            empty = functools.partial(kind.empty, observation.observer.shape, use)

            def with_batch(mean: Any, call: _Call, place: int = place, use: Use = use, path: str = path) -> Any:
                sources, observer, _ = call.run.program.stages[number].observations[place]
                try:
                    reference = None if call.reference is None else call.reference.values(sources, given)
                    seen = call.run.values(sources, leaves)
                    return _take(self._measure.kind, observer, use, mean, seen, reference, call.valid)
                except UnsupportedProduct as error:
                    raise ValueError(
                        f"It cannot be told what multiplies '{path}': {error}. Leave it out with `where=`."
                    ) from error

            mean = functools.reduce(with_batch, calls, empty())
            if not _is_finite(mean):
                bad = next(i for i, call in enumerate(calls) if not _is_finite(with_batch(empty(), call)))
                raise ValueError(
                    f"'{path}': batch {bad} gives inputs with NaN or infinity. Look at the batch, and for NaN in the "
                    "parameters."
                )
            measured = _Measured(observation.observer.shape, use, mean)
            for unit in observation.units:
                self._inputs.setdefault(unit, []).append(measured)
        for place, term in enumerate(calls[0].run.program.stages[number].terms):
            terms = [call.run.program.stages[number].terms[place] for call in calls]
            self._measure_drift(term.unit, zip(calls, terms, strict=True), leaves, given)

    def _measure_drift(
        self, unit: Unit, terms: Iterable[tuple[_Call, Term]], leaves: Sequence[Any], given: Sequence[Any]
    ) -> None:
        """Measures the change of what a unit's product is added to, summed against the unit's inputs."""
        use = self._picked[unit.leaf]
        mean = _accumulators.INPUTS_BY_OUTPUTS.empty(unit.shape, use)
        for call, term in terms:
            assert call.reference is not None  # terms are only looked for to be compared
            sources = call.run.values(term.sources, leaves)
            pair = call.run.values([term.addend.variable], leaves) + call.reference.values(
                [term.addend.variable], given
            )
            try:
                mean = _take_drift(term.observer, use, term.addend.order, mean, sources, pair, call.valid)
            except UnsupportedProduct:
                return  # the unit then makes up for the change of its inputs alone
        old = self._drifts.get(unit)
        self._drifts[unit] = mean if old is None else _accumulators.merge_means(old, mean)

    def change(self, unit: Unit) -> None:
        """Applies the solver to the kernels of a unit."""
        path, use, leaf = self.paths[unit.leaf], self._picked[unit.leaf], jnp.asarray(self.leaves[unit.leaf])
        starts = _starts(unit, leaf.ndim)
        given = self._given_masks.get(path)
        stack = _kernels.matrices(_kernels.part(leaf, starts, unit.shape), use)
        masks = None if given is None else _kernels.matrices(_kernels.part(given, starts, unit.shape), use)
        drift = self._drifts.pop(unit, None)
        residuals = None if drift is None else _accumulators.INPUTS_BY_OUTPUTS.finish(drift, unit.shape, use)
        results = list[tuple[Kernel, Mask]]()
        pairs = self._prepared(path, self._inputs.pop(unit))
        self._note_unseen(path, masks)
        for i, (correct, prepared) in enumerate(pairs):
            residual, mask = (None if of is None else of[i] for of in (residuals, masks))
            kernel = _named(path, functools.partial(correct, residual=residual), stack[i])
            rest = prepared, mask, path, _kernels.place(unit.shape, use, starts, i)
            results.append(_named(path, self._solver.solve, kernel, *rest))
        if self.masks[unit.leaf] is None:
            self.masks[unit.leaf] = jnp.ones(leaf.shape, bool)
            leaf = jnp.copy(leaf)  # `replaced` overwrites what it is given, which here is the caller's
        new, chosen = (_kernels.restored(jnp.stack(column), unit.shape, use) for column in zip(*results, strict=True))
        self.leaves[unit.leaf] = _kernels.replaced(leaf, new, starts)
        self.masks[unit.leaf] = _kernels.replaced(self.masks[unit.leaf], chosen, starts)
        self.done += 1

    def _prepared(self, path: str, inputs: list[_Measured]) -> list[tuple[Callable[..., Kernel], Any]]:
        """For each kernel, how to correct it and what the solver prepared; units with the same inputs share these."""
        last, prepared = self._last_prepared
        if [*map(id, last)] != [*map(id, inputs)]:
            mean = functools.reduce(_accumulators.merge_means, (one.mean for one in inputs))
            statistics = self._measure.split(mean, inputs[0].shape, inputs[0].use)
            prepared = [self._prepare(path, statistic) for statistic in statistics]
            self._last_prepared = inputs, prepared
            grams = statistics[:, 0] if self._correction else statistics
            sizes = grams if grams.ndim == 2 else jnp.diagonal(grams, axis1=1, axis2=2)
            self._is_unseen = np.asarray(sizes) == 0
        return prepared

    def _note_unseen(self, path: str, masks: Any) -> None:
        """Counts inputs that were 0 in every sample, of those whose weights may stay."""
        matters = np.array(True) if masks is None else np.asarray(masks).any(axis=2)
        found, size = int((self._is_unseen & matters).sum()), self._is_unseen.size
        if found:
            before = self.unseen.get(path, (0, 0))
            self.unseen[path] = before[0] + found, before[1] + size

    def warn_of_unseen(self) -> None:
        """Warns if there were inputs that no batch says anything of."""
        if self.unseen:
            found = tree.some([f"{path}: {number} of {size}" for path, (number, size) in self.unseen.items()])
            checks.warn(
                f"Some inputs were 0 in every sample ({found}). Their weights are pruned first, smallest first, and "
                "keep their values where they stay. More calibration samples may reach them."
            )

    def _prepare(self, path: str, statistic: Array) -> tuple[Callable[..., Kernel], Any]:
        if not self._correction:
            return lambda kernel, residual: kernel, _named(path, self._solver.prepare, statistic)
        gram, cross = statistic
        correct = functools.partial(layerwise.correct, gram=gram, cross=cross, share=self._correction)
        return correct, _named(path, self._solver.prepare, gram)


def _is_finite(mean: _accumulators.Mean) -> bool:
    return bool(jnp.isfinite(jnp.sum(mean.mean)))


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
def _take_drift(
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
    changed = dataclasses.replace(product, result=before - now)
    return _accumulators.INPUTS_BY_OUTPUTS.take(mean, changed, use, valid)


def _named(path: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function, and puts the path before its errors and warnings."""
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


def _filled(params: Params, values: Sequence[Any], keep_others: bool) -> Any:
    """The tree with other values in place of its arrays; other leaves are kept, or become `None`."""
    rest = iter(values)
    return jax.tree.map(lambda leaf: next(rest) if tree.is_array(leaf) else (leaf if keep_others else None), params)
