"""Times the forms of one kernel against each other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NewType

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.formats import _timing
from jaxprune.formats._candidates import candidates
from jaxprune.formats._dense import Dense
from jaxprune.formats._products import Products

_MARGIN, _LAYOUT_MARGIN = 1.05, 1.01  # least gains of a form and of a layout, so that noise chooses neither
_ROUGH, _FINE = 5, 11  # timings of every form, and of the best, at least
_FINALISTS = 2


class Winner(NamedTuple):
    """The fastest form of a kernel.

    Attributes:
      form: `None` where the kernel had best stay as it is.
      dense: Milliseconds in the better of the two dense layouts.
      milliseconds: In the form that won.
      reason: Why.
    """

    form: Any
    dense: float
    milliseconds: float
    reason: str


Known = NewType("Known", dict[Any, tuple[int, Winner]])
"""Earlier results: kernels whose forms have the same sizes and products are timed once."""


def fastest(kernel: np.ndarray, mask: np.ndarray, products: Products, known: Known) -> Winner:
    """Finds the form in which the products of a kernel are fastest, here and now.

    Args:
      kernel: `(in, out)`, masked.
      mask: Of the same shape.
      products: What it is multiplied with.
      known: Earlier results; this one is added.
    """
    forms = [*_dense(kernel), *candidates(kernel, mask, max(x.shape[0] for x in products.operands))]
    key = (*map(str, (products, *forms)), *(_rounded(leaf.size) for leaf in jax.tree.leaves(forms)))
    if key not in known:
        known[key] = _winner(forms, products)
    place, winner = known[key]
    return winner._replace(form=forms[place] if place else None)


def shrunk(kernel: np.ndarray, products: Products, small: np.ndarray, small_products: Products, known: Known) -> Winner:
    """Times the products of a kernel that is smaller against those of the full one.

    Args:
      kernel: `(in, out)`, full.
      products: What it is multiplied with.
      small: The smaller kernel.
      small_products: What that is multiplied with.
      known: Earlier results; this one is added.

    Returns:
      The dense form of the smaller kernel, or `None` for its form where it gains nothing.
    """
    key = (str(products), str(small_products), kernel.shape, small.shape)
    if key not in known:
        times = _timing.seconds([*_calls(_dense(kernel), products), *_calls(_dense(small), small_products)], _FINE)
        medians = 1e3 * np.median(times, axis=1)
        layout, best = int(np.argmin(medians[:2])), 2 + int(np.argmin(medians[2:]))
        gain = _timing.speedup(times, of=best, over=layout)
        wins = gain >= _MARGIN and _timing.sure_speedup(times, of=best, over=layout) > 1
        why = f"shrunk to {small.shape[0]}×{small.shape[1]}: {gain:.2f} times the best dense"
        known[key] = best if wins else 0, Winner(None, float(medians[layout]), float(medians[best]), why)
    place, winner = known[key]
    return winner._replace(form=_dense(small)[place - 2] if place else None)


def _dense(kernel: np.ndarray) -> list[Dense]:
    return [Dense.of(jnp.asarray(kernel), transposed=transposed) for transposed in (False, True)]


def _calls(forms: Sequence[Any], products: Products) -> list[Callable[[], Any]]:
    rng = np.random.default_rng(0)
    xs = [jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype) for x in products.operands]
    run = jax.jit(_multiply, static_argnames="dtypes")
    return [functools.partial(run, form, xs, dtypes=products.dtypes) for form in forms]


def _winner(forms: list[Any], products: Products) -> tuple[int, Winner]:
    calls = _calls(forms, products)
    rivals = [i for i in range(2, len(forms)) if _runs(calls[i])]
    rough = np.median(_timing.seconds([calls[i] for i in rivals], _ROUGH), axis=1) if rivals else np.empty(0)
    finalists = [0, 1, *(rivals[i] for i in np.argsort(rough)[:_FINALISTS])]
    times = _timing.seconds([calls[i] for i in finalists], _FINE)
    medians = 1e3 * np.median(times, axis=1)
    layout = int(np.argmin(medians[:2]))
    dense = float(medians[layout])
    sparse = int(np.argmin(medians[2:])) + 2 if len(finalists) > 2 else layout
    gain = _timing.speedup(times, of=sparse, over=layout)
    if gain >= _MARGIN and _timing.sure_speedup(times, of=sparse, over=layout) > 1:
        return finalists[sparse], Winner(None, dense, float(medians[sparse]), f"{gain:.2f} times the best dense")
    why = (
        f"the best sparse form: {gain:.2f} times the best dense"
        if sparse != layout
        else "no stored form is worth timing: too few blocks are empty, too few weights 0"
    )
    if _timing.sure_speedup(times, of=1, over=0) >= _LAYOUT_MARGIN:
        return 1, Winner(None, dense, dense, why)
    return 0, Winner(None, dense, float(medians[0]), why)


def _runs(call: Callable[[], Any]) -> bool:
    """Whether a form runs at all: a Pallas kernel may need more memory than a core of this device has."""
    try:
        jax.block_until_ready(call())
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _multiply(form: Any, xs: list[Any], *, dtypes: tuple[Any, ...]) -> list[Any]:
    return [form.astype(dtype).matmul(x) for x, dtype in zip(xs, dtypes, strict=True)]


def _rounded(size: int) -> str:
    """A size to two digits: a few weights more or less do not change who wins."""
    return f"{size:.1e}"
