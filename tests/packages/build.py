"""Makes models of each framework into functions of their parameters, without allocating where that is possible."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from packages.case import Built


def zeros(args: Any) -> Any:
    """Arrays for abstract arguments."""
    return jax.tree.map(lambda arg: jnp.zeros(arg.shape, arg.dtype), args)


def linen(module: Any, *args: Any, call: Callable[..., Any] | None = None, **options: Any) -> Built:
    """A Linen module by its variables; `call` chooses among what it returns."""
    params = jax.eval_shape(lambda key: module.init(key, *zeros(args), **options), jax.random.key(0))
    return lambda params, *args: (call or _itself)(module.apply(params, *args, **options)), params, args


def nnx(make: Callable[..., Any], *args: Any, call: Callable[..., Any]) -> Built:
    """An NNX module by its `nnx.Param`s; `call(module, *args)` runs it."""
    from flax import nnx

    graph, params, rest = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    rest = zeros(nnx.to_pure_dict(rest))
    return lambda params, *args: call(nnx.merge(graph, params, rest), *args), nnx.to_pure_dict(params), args


def equinox(make: Callable[[Any], Any], *args: Any, call: Callable[..., Any] | None = None) -> Built:
    """An Equinox module, which is its own parameters; `call(module, *args)` runs it on one sample."""
    import equinox as eqx

    def fun(model: Any, *args: Any) -> Any:
        return jax.vmap(lambda *args: (call or type(model).__call__)(model, *args))(*args)

    return fun, eqx.nn.inference_mode(eqx.filter_eval_shape(make, jax.random.key(0))), args


def haiku(function: Callable[..., Any], *args: Any, **options: Any) -> Built:
    """A Haiku function by its parameters and state; the `options` are given at initialisation alone."""
    import haiku as hk

    made = hk.without_apply_rng(hk.transform_with_state(function))
    init = hk.transform_with_state(lambda *args: function(*args, **options)).init
    params, state = jax.eval_shape(init, jax.random.key(0), *args)
    both = {"params": params, "state": state} if state else {"params": params}
    return lambda both, *args: made.apply(both["params"], both.get("state"), *args)[0], both, args


def _itself(value: Any) -> Any:
    return value
