"""What the visitors of a jaxpr share: tables of primitives, the parts of loops and calls, and how reshapes align."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxprune._jaxpr.walker import jaxpr_and_constants, shape_of

T = TypeVar("T")

CONTRACTIONS = ("dot_general", "ragged_dot_general", "conv_general_dilated")
CONTROL = ("scan", "while", "cond")
# Calls that can be rebuilt around smaller operands.
PLAIN_CALLS = ("jit", "closed_call", "call", "eval_jaxpr", "composite", "custom_vmap_call", "custom_partitioning")
CALLS = (*PLAIN_CALLS, "remat2", "custom_jvp_call", "custom_vjp_call")
# These give back each of their operands.
UNCHANGED = frozenset(("optimization_barrier", "device_put"))

# f(0) = 0, so a position that held 0 still does.
ZERO_PRESERVING = frozenset(
    "neg sign abs floor ceil round sqrt cbrt sin tan sinh tanh asin atan asinh atanh expm1 log1p erf erf_inv "
    "convert_element_type reduce_precision square real imag conj copy stop_gradient".split()
)
# The result has the values of the operand, up to rounding, at the same positions.
ONE_TO_ONE = frozenset(
    "convert_element_type copy reduce_precision sharding_constraint reshard name layout_constraint relayout "
    "with_memory_space_constraint".split()
)
ELEMENTWISE = frozenset(
    "add sub mul div rem max min pow integer_pow atan2 nextafter and or xor not eq ne lt le gt ge eq_to le_to lt_to "
    "add_any exp exp2 log log2 logistic cos cosh acos acosh rsqrt is_finite population_count clz select_n clamp "
    "shift_left shift_right_logical shift_right_arithmetic lgamma digamma polygamma erfc igamma igammac igamma_grad_a "
    "regularized_incomplete_beta bessel_i0e bessel_i1e zeta threefry2x32 threefry4x32 complex bitcast_convert_type "
    "mulhi one_minus_square polynomial random_gamma_grad".split()
).union(ZERO_PRESERVING, ONE_TO_ONE, UNCHANGED)
# These change what is known of the devices' values, and not the values.
VARYING = frozenset(
    "pvary preduced reduced_vary_cast reduced_vary_cast_p vary_unreduced_cast vary_unreduced_cast_p".split()
)
# Collectives that combine, or send on, the same position of every device.
SAME_ON_DEVICES = VARYING | frozenset(
    "psum_invariant unreduced_psum unreduced_pmax unreduced_pmin ppermute pbroadcast".split()
)

# The largest along an axis: values and positions.
CHOICES = frozenset({"top_k", "approx_top_k"})


def choice_axis(eqn: JaxprEqn) -> int:
    """The axis along which one of `CHOICES` takes some of the positions."""
    axis: int = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1))
    return axis % len(shape_of(eqn.invars[0]))


def _stacked(*arrays: Any, axis: int) -> Any:
    return lax.concatenate([lax.expand_dims(array, [axis]) for array in arrays], axis)


def _unstacked(array: Any, *, axis: int) -> list[Any]:
    return [lax.squeeze(part, [axis]) for part in lax.split(array, (1,) * array.shape[axis], axis)]


# Primitives that are others put together. Each is walked as a call of these, so that no question needs a rule for it.
COMPOSED: dict[str, Callable[..., Any]] = {"stack": _stacked, "unstack": _unstacked}

# Values that depend on no parameter.
GENERATED = frozenset(
    "iota empty empty2 rng_bit_generator rng_uniform random_bits random_seed random_wrap random_unwrap random_fold_in "
    "random_split random_clone random_gamma axis_index platform_index create_token".split()
)
# The order along an axis matters.
ORDERED = CHOICES.union("cumsum cumprod cummax cummin cumlogsumexp sort fft".split())
# Primitives without a rule for the labels, by the reason; they freeze what they touch.
_OPAQUE = {
    "what it computes is not in the program": (
        "pure_callback io_callback ffi_call call_exported tpu_custom_call pallas_call cudnn_fusion core_map run_state "
        "dot_product_attention_fwd dot_product_attention_fwd_wrapper dot_product_attention_bwd "
        "dot_product_attention_bwd_wrapper dot_product_attention_fp8_fwd dot_product_attention_fp8_fwd_wrapper "
        "dot_product_attention_fp8_bwd dot_product_attention_fp8_bwd_wrapper call_hi_primitive "
        "call_hi_primitive_linearized"
    ),
    "what it solves is not in the program": "custom_linear_solve",
    "its scales belong to blocks of what it sums over": "scaled_matmul scaled_matmul_wrapper scaled_dot",
    "its transpose is a function of its own": "linear_call custom_lin",
}
_WITHOUT_PRODUCTS = {
    "it reads or writes a mutable array": (
        "accum_grad_in_ref addupdate box_get box_set create_linear empty_ref free_ref freeze get log_extend log_read "
        "new_box new_log new_ref pin swap unpin"
    ),
    "it begins or ends a collective of which JAX makes two": (
        "all_gather_start all_gather_done all_gather_reduced_start all_to_all_start all_to_all_done pbroadcast_start "
        "pbroadcast_done ppermute_start ppermute_done psum_start psum_done psum_invariant_start reduce_scatter_start "
        "reduce_scatter_done unreduced_psum_start unreduced_reduce_scatter_start precv psend pbroadcast_dynamic"
    ),
    "it sends each device another number of positions": "ragged_all_to_all",
    "it scatters to the largest of a window": "select_and_scatter",
    "it is made while JAX transforms or compiles a program": (
        "broadcast_to custom_jvp_call_jaxpr dimension_size from_edtype to_edtype iota_2x32_shape "
        "philox2x32 philox4x32 remat_opt shape_assertion stage tie unreachable zeros_like"
    ),
}
FROZEN = {name: reason for reason, names in (_OPAQUE | _WITHOUT_PRODUCTS).items() for name in names.split()}
# Each works on whole matrices, or on whole vectors, for every position of the axes before these.
MATRICES = frozenset(
    "cholesky cholesky_update eig eigh geqp3 geqrf hessenberg householder_product lu ormqr qr schur svd "
    "symmetric_product triangular_solve tridiagonal tridiagonal_solve".split()
)
VECTORS = frozenset(("lu_pivots_to_permutation",))
# What may multiply matrices, uncounted.
MAY_MULTIPLY = MATRICES.union(*map(str.split, _OPAQUE.values()))

_INNER_JAXPR = ("jaxpr", "call_jaxpr", "call")
# These hold how two numbers are combined, or what is done to a part of each operand: no program of their operands.
_NO_CALLS = ("reduce", "reduce_window", "shard_map")


def inner_jaxpr(eqn: JaxprEqn) -> tuple[Jaxpr, list[Any]]:
    """The jaxpr that an equation holds, or that it is put together from, and its constants."""
    if eqn.primitive.name in COMPOSED:
        avals: list[Any] = [atom.aval for atom in eqn.invars]
        shapes = tuple((aval.shape, aval.dtype) for aval in avals)
        return jaxpr_and_constants(_composed(eqn.primitive.name, shapes, tuple(eqn.params.items())))
    for name in _INNER_JAXPR:
        if name in eqn.params:
            return jaxpr_and_constants(eqn.params[name])
    raise TypeError(f"`{eqn.primitive.name}` holds no jaxpr under a known name; it has {sorted(eqn.params)}.")


@functools.cache
def _composed(name: str, shapes: tuple[Any, ...], params: tuple[tuple[str, Any], ...]) -> ClosedJaxpr:
    """Made once, because what is known of a value is looked up by its variable."""
    return jax.make_jaxpr(functools.partial(COMPOSED[name], **dict(params)))(
        *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)
    )


def callee(eqn: JaxprEqn) -> tuple[Jaxpr, list[Any]] | None:
    """The jaxpr that an equation calls on its operands as they are, and its constants; `None` if it calls none.

    A call is known by what it holds and not by its name, so that calls of later versions of JAX are looked into too.
    """
    name = eqn.primitive.name
    if name in (*CONTROL, *_NO_CALLS) or not (name in COMPOSED or any(key in eqn.params for key in _INNER_JAXPR)):
        return None
    jaxpr, constants = inner_jaxpr(eqn)
    return (jaxpr, constants) if len(jaxpr.invars) == len(eqn.invars) else None


def manual_axes(eqn: JaxprEqn) -> frozenset[str]:
    """The axes of the mesh along which a `shard_map` divides the work."""
    # JAX 0.10.2 renamed the parameter.
    return frozenset(eqn.params["newly_manual_axes" if "newly_manual_axes" in eqn.params else "manual_axes"])


def devices_along(eqn: JaxprEqn, spec: Any, rank: int) -> list[int]:
    """Among how many devices a `shard_map` divides each axis of an operand or a result."""
    sizes, manual = eqn.params["mesh"].shape, manual_axes(eqn)
    names = [name if isinstance(name, tuple) else (name,) for name in spec]
    numbers = [math.prod(sizes[name] for name in along if name in manual) for along in names]
    return [*numbers, *[1] * (rank - len(numbers))]


def number_of_devices(eqn: JaxprEqn) -> int:
    """How many devices a `shard_map` runs on."""
    return math.prod(eqn.params["mesh"].shape[name] for name in manual_axes(eqn))


def scan_operands(eqn: JaxprEqn, operands: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """The operands of a `scan`: its constants, what it carries, and what every step takes one position of."""
    if "num_consts" in eqn.params:
        fixed, carried = eqn.params["num_consts"], eqn.params["num_carry"]
    else:
        # JAX 0.12 replaced the two counts by flat trees.
        constants, carry, _ = eqn.params["ft_in"].unpack()
        fixed, carried = len(constants), len(carry)
    return operands[:fixed], operands[fixed : fixed + carried], operands[fixed + carried :]


def while_operands(eqn: JaxprEqn, operands: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """The operands of a `while`: the constants of its condition, those of its body, and what it carries."""
    tests, bodies = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    return operands[:tests], operands[tests : tests + bodies], operands[tests + bodies :]


def factors(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Aligns two shapes of equal size into the finest runs of axes with equal products."""
    i, j = 0, 0
    while i < len(before) or j < len(after):
        left, right, products = [], [], [1, 1]
        while not (left and right) or products[0] != products[1]:
            if not left and i < len(before) and before[i] == 1:
                break
            if not right and left == [] and j < len(after) and after[j] == 1:
                break
            if (products[0] <= products[1] or j >= len(after)) and i < len(before):
                products[0] *= before[i]
                left.append(i)
                i += 1
            elif j < len(after):
                products[1] *= after[j]
                right.append(j)
                j += 1
            else:
                break
        if not left and not right:
            if i < len(before) and before[i] == 1:
                left.append(i)
                i += 1
            else:
                right.append(j)
                j += 1
        yield left, right
