"""Which leaf is added to the products of each kernel: a constant change of the products can go into that leaf."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from jax.extend.core import JaxprEqn, Literal

from jaxprune._jaxpr.contractions import contraction
from jaxprune._jaxpr.primitives import CONTRACTIONS, ONE_TO_ONE, callee, factors, scan_operands, while_operands
from jaxprune._jaxpr.tracing import Traced
from jaxprune._jaxpr.walker import jaxpr_and_constants, shape_of, walk

Steps: TypeAlias = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Bias:
    """A leaf that is added to the products of a kernel.

    Attributes:
      path: The leaf.
      axes: For each of its axes the kernel's axis that corresponds, -1 for none.
      sign: 1 if it is added, -1 if it is subtracted, as a running mean is.
    """

    path: str
    axes: tuple[int, ...]
    sign: int


@dataclasses.dataclass(frozen=True)
class Consumer:
    """A kernel that a contraction multiplies by.

    Attributes:
      inputs: Its axes that are summed over, without the taps of a convolution.
      outputs: Its other axes that the result has.
      groups: Of a convolution; the kernel has the inputs of one group only.
      biases: Leaves added to the result, empty if some result of the kernel has none.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    groups: int
    biases: tuple[Bias, ...]


@dataclasses.dataclass(frozen=True)
class _View:
    """A leaf up to casts, broadcasts and the order of axes.

    Attributes:
      index: Of the leaf.
      axes: The leaf's axis behind each axis of the value, -1 for none.
      steps: For each scan that steps along the leaf, its number and the leaf's axis.
    """

    index: int
    axes: tuple[int, ...]
    steps: Steps = ()


@dataclasses.dataclass(frozen=True)
class _Sum:
    """A sum of products and leaves.

    Attributes:
      products: For each its number, its sign, and the kernel's axis behind each axis, -1 for none.
      leaves: For each the number of its addition, its sign, and the leaf.
    """

    products: tuple[tuple[int, int, tuple[int, ...]], ...]
    leaves: tuple[tuple[int, int, _View], ...] = ()

    def negated(self) -> _Sum:
        """The negative."""
        products = tuple((number, -sign, axes) for number, sign, axes in self.products)
        return _Sum(products, tuple((number, -sign, leaf) for number, sign, leaf in self.leaves))


@dataclasses.dataclass
class _Search:
    """What has been found so far.

    Attributes:
      paths: Of the leaves.
      ranks: Of the leaves.
      products: For each product its kernel, the axes summed over, the others, and the groups.
      taken: For each product the leaf that is added to it: its index, and the bias.
      additions: For every addition of a leaf to a sum: the leaf, and the kernels whose products it is a bias of.
      reads: How often each leaf is read, apart from equations whose result is a view of it.
      uses: How often each variable is read.
      scans: How many scans were entered.
    """

    paths: Sequence[str]
    ranks: Sequence[int]
    products: list[tuple[_View, tuple[int, ...], tuple[int, ...], int]] = dataclasses.field(default_factory=list)
    taken: dict[int, tuple[int, Bias]] = dataclasses.field(default_factory=dict)
    additions: list[tuple[int, set[int]]] = dataclasses.field(default_factory=list)
    reads: Counter[int] = dataclasses.field(default_factory=Counter)
    uses: dict[Any, int] = dataclasses.field(default_factory=dict)
    scans: int = 0


_Known: TypeAlias = "_View | _Sum | None"


def consumers(traced: Traced) -> dict[str, Consumer]:
    """Every leaf that a contraction multiplies an activation by, and what is added to the result.

    A leaf counts as added if it is added to the result, or to a sum that the result is part of, before anything else
    reads either, and if the function does nothing else with the leaf but return it.
    """
    search = _Search(traced.paths, [len(leaf.shape) for leaf in traced.leaves])
    jaxpr, constants = jaxpr_and_constants(traced.jaxpr)
    leaves = [_View(i, tuple(range(rank))) for i, rank in enumerate(search.ranks)]
    _run(search, jaxpr, constants, [*leaves, *[None] * (len(jaxpr.invars) - len(leaves))])
    by_kernel: dict[int, list[int]] = {}
    for number, (kernel, _, _, _) in enumerate(search.products):
        by_kernel.setdefault(kernel.index, []).append(number)
    return {traced.paths[index]: _consumer(search, numbers) for index, numbers in by_kernel.items()}


def _consumer(search: _Search, numbers: Sequence[int]) -> Consumer:
    kinds = {search.products[number][1:] for number in numbers}
    inputs, outputs, groups = search.products[numbers[0]][1:]
    if len(kinds) > 1 or not all(_is_added_everywhere(search, number) for number in numbers):
        return Consumer(inputs, outputs, groups, ())
    return Consumer(inputs, outputs, groups, tuple(dict.fromkeys(search.taken[number][1] for number in numbers)))


def _is_added_everywhere(search: _Search, number: int) -> bool:
    if number not in search.taken:
        return False
    index, _ = search.taken[number]
    took = [kernels for leaf, kernels in search.additions if leaf == index]
    return len(took) == search.reads[index] and all(kernels == took[0] for kernels in took)


def _run(search: _Search, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[_Known]) -> list[_Known]:
    uses = Counter(atom for eqn in jaxpr.eqns for atom in eqn.invars if not isinstance(atom, Literal))
    uses.update(atom for atom in jaxpr.outvars if not isinstance(atom, Literal))
    # Not added to earlier counts: a jaxpr that is called twice has the same variables both times.
    search.uses |= uses
    return walk(jaxpr, arguments, _visit, search, literal=lambda _: None, constants=[None] * len(constants))


def _visit(search: _Search, eqn: JaxprEqn, *operands: _Known) -> Sequence[_Known]:
    """Applies the rule of an equation. A sum that other equations read too is given to it as unknown."""
    alone = [
        None if isinstance(known, _Sum) and search.uses[atom] > 1 else known
        for atom, known in zip(eqn.invars, operands, strict=True)
    ]
    return RULES.get(eqn.primitive.name, _other)(search, eqn, *alone)


def _note_reads(search: _Search, operands: Sequence[_Known]) -> None:
    search.reads.update(known.index for known in operands if isinstance(known, _View))


def _other(search: _Search, eqn: JaxprEqn, *operands: _Known) -> Sequence[_Known]:
    """Calls are looked into; the results of any other primitive are unknown."""
    if (called := callee(eqn)) is not None:
        return _run(search, *called, operands)
    _note_reads(search, operands)
    return [None] * len(eqn.outvars)


def _moved(known: _Known, places: Sequence[int]) -> _Known:
    """The value with its axes in another order: for each new axis the old one, or -1."""

    def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(axes[a] if a >= 0 else -1 for a in places)

    if isinstance(known, _View):
        return _View(known.index, moved(known.axes), known.steps)
    if known is None:
        return None
    leaves = tuple((number, sign, _View(v.index, moved(v.axes), v.steps)) for number, sign, v in known.leaves)
    return _Sum(tuple((number, sign, moved(axes)) for number, sign, axes in known.products), leaves)


def _same(_: _Search, eqn: JaxprEqn, operand: _Known, *rest: _Known) -> list[_Known]:
    return [operand]


def _transpose(_: _Search, eqn: JaxprEqn, operand: _Known) -> list[_Known]:
    return [_moved(operand, eqn.params["permutation"])]


def _squeeze(_: _Search, eqn: JaxprEqn, operand: _Known) -> list[_Known]:
    gone = eqn.params["dimensions"]
    return [_moved(operand, [a for a in range(len(shape_of(eqn.invars[0]))) if a not in gone])]


def _broadcast(_: _Search, eqn: JaxprEqn, operand: _Known, *sizes: _Known) -> list[_Known]:
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    places = [-1] * len(after)
    for axis, out in enumerate(eqn.params["broadcast_dimensions"]):
        if before[axis] == after[out]:
            places[out] = axis
    return [_moved(operand, places)]


def _reshape(search: _Search, eqn: JaxprEqn, operand: _Known) -> list[_Known]:
    """Reshapes that only add or drop axes of one keep what is known."""
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    places = [-1] * len(after)
    if operand is None or 0 in before:
        return [None]
    for left, right in factors(before, after):
        if len(left) == len(right) == 1:
            places[right[0]] = left[0]
        elif left and right:
            _note_reads(search, [operand])
            return [None]
    return [_moved(operand, places)]


def _contract(search: _Search, eqn: JaxprEqn, *operands: _Known) -> list[_Known]:
    views = [isinstance(known, _View) for known in operands]
    _note_reads(search, operands)
    if sum(views) != 1 or eqn.primitive.name == "ragged_dot_general":
        return [None]
    side = views.index(True)
    kernel = operands[side]
    assert isinstance(kernel, _View)
    summed, _ = contraction(eqn)
    inputs = tuple(kernel.axes[axis] for axis in summed[side])
    groups, places = 1, _result_axes(eqn, side)
    if -1 in inputs:
        return [None]
    if eqn.primitive.name == "conv_general_dilated":
        if side == 0 or eqn.params["batch_group_count"] != 1 or set(eqn.params["lhs_dilation"]) != {1}:
            return [None]
        groups = eqn.params["feature_group_count"]
    axes = tuple(kernel.axes[a] if a >= 0 else -1 for a in places)
    steps = [axis for _, axis in kernel.steps]
    search.products.append((kernel, inputs, (*steps, *(a for a in axes if a >= 0)), groups))
    return [_Sum(((len(search.products) - 1, 1, axes),))]


def _result_axes(eqn: JaxprEqn, side: int) -> list[int]:
    """For each axis of a contraction's result, the axis of one operand that it is, or -1."""
    places = [-1] * len(shape_of(eqn.outvars[0]))
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        places[numbers.out_spec[1]] = numbers.rhs_spec[0]
        return places
    summed, batched = eqn.params["dimension_numbers"]
    free = [
        [a for a in range(len(shape_of(atom))) if a not in (*summed[i], *batched[i])]
        for i, atom in enumerate(eqn.invars)
    ]
    start = len(batched[side])
    places[:start] = batched[side]
    start += side * len(free[0])
    places[start : start + len(free[side])] = free[side]
    return places


def _add(search: _Search, eqn: JaxprEqn, left: _Known, right: _Known) -> list[_Known]:
    negative, shape = eqn.primitive.name == "sub", shape_of(eqn.outvars[0])
    if negative and isinstance(right, _Sum):
        right = right.negated()
    sums = [known for known in (left, right) if isinstance(known, _Sum)]
    if not sums:
        _note_reads(search, [left, right])
        return [None]
    products = tuple(product for known in sums for product in known.products)
    leaves = tuple(leaf for known in sums for leaf in known.leaves)
    for known, atom, sign in ((left, eqn.invars[0], 1), (right, eqn.invars[1], -1 if negative else 1)):
        if isinstance(known, _View):
            _note_reads(search, [known])
            if len(shape_of(atom)) == len(shape):
                # Where an axis of one is stretched, the leaf does not depend on the position.
                axes = tuple(a if n == m else -1 for a, n, m in zip(known.axes, shape_of(atom), shape, strict=True))
                search.additions.append((known.index, set()))
                leaf = dataclasses.replace(known, axes=axes)
                leaves = (*leaves, (len(search.additions) - 1, sign, leaf))
    return [_with_biases(search, _Sum(products, leaves), shape)]


def _with_biases(search: _Search, known: _Sum, shape: tuple[int, ...]) -> _Sum:
    """The sum, with the first leaf that has all axes of a product noted as the product's bias."""
    kernels = Counter(search.products[number][0].index for number, _, _ in known.products)
    for number, sign, axes in known.products:
        kernel = search.products[number][0]
        for addition, sign_of_leaf, leaf in known.leaves:
            took = search.additions[addition][1]
            along = _axes_along(kernel, axes, leaf, shape, search.ranks[leaf.index])
            if along is None or number in search.taken or kernels[kernel.index] > 1:
                continue
            took.add(kernel.index)
            search.taken[number] = leaf.index, Bias(search.paths[leaf.index], along, sign * sign_of_leaf)
    return known


def _axes_along(
    kernel: _View, axes: tuple[int, ...], leaf: _View, shape: tuple[int, ...], rank: int
) -> tuple[int, ...] | None:
    """The kernel's axis that corresponds to each axis of a leaf, or `None` if the leaf lacks one of the product's."""
    found: dict[int, int] = {}
    for kernel_axis, leaf_axis, width in zip(axes, leaf.axes, shape, strict=True):
        if kernel_axis >= 0 and width > 1:
            if leaf_axis < 0:
                return None
            found[leaf_axis] = kernel_axis
    layers = dict(leaf.steps)
    for scan, axis in kernel.steps:
        if scan not in layers:
            return None
        found[layers[scan]] = axis
    return tuple(found.get(axis, -1) for axis in range(rank))


def _scan(search: _Search, eqn: JaxprEqn, *operands: _Known) -> list[_Known]:
    constants, carry, scanned = scan_operands(eqn, operands)
    search.scans += 1
    _note_reads(search, carry)
    slices = [
        _View(known.index, known.axes[1:], (*known.steps, (search.scans, known.axes[0])))
        if isinstance(known, _View) and known.axes[0] >= 0
        else None
        for known in scanned
    ]
    # A leaf that is repeated for every step, instead of being stepped along, is not followed further.
    _note_reads(search, [known for known, part in zip(scanned, slices, strict=True) if part is None])
    body = jaxpr_and_constants(eqn.params["jaxpr"])
    outputs = _run(search, *body, [*_leaves(constants), *[None] * len(carry), *slices])
    _note_reads(search, outputs)
    return [None] * len(eqn.outvars)


def _while(search: _Search, eqn: JaxprEqn, *operands: _Known) -> list[_Known]:
    test_constants, body_constants, carry = while_operands(eqn, operands)
    _note_reads(search, carry)
    for name, constants in (("cond_jaxpr", test_constants), ("body_jaxpr", body_constants)):
        arguments = [*_leaves(constants), *[None] * len(carry)]
        _note_reads(search, _run(search, *jaxpr_and_constants(eqn.params[name]), arguments))
    return [None] * len(eqn.outvars)


def _cond(search: _Search, eqn: JaxprEqn, _: _Known, *operands: _Known) -> list[_Known]:
    for branch in eqn.params["branches"]:
        _note_reads(search, _run(search, *jaxpr_and_constants(branch), _leaves(operands)))
    return [None] * len(eqn.outvars)


def _leaves(operands: Sequence[_Known]) -> list[_Known]:
    return [known if isinstance(known, _View) else None for known in operands]


RULES: dict[str, Callable[..., Sequence[_Known]]] = {
    **dict.fromkeys(ONE_TO_ONE, _same),
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    **dict.fromkeys(CONTRACTIONS, _contract),
    **dict.fromkeys(("add", "sub", "add_any"), _add),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
