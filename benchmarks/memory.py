"""How much memory does pruning add to a training step?

The memory that the compiled step needs besides its arguments, and the size of the optimizer state, as multiples of the
bytes of the parameters: for Adam alone, with fixed masks, and with gradual pruning that refreshes its masks, stored as
booleans and packed. Nothing is run and no parameter is allocated, so any size fits.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune
from benchmarks import history

_LAYERS = 8


def loss(params: Any, x: jax.Array) -> jax.Array:
    """The loss of a multilayer perceptron."""
    for kernel in params:
        x = jax.nn.relu(x @ kernel)
    return jnp.mean(x)


def optimizers(masks: Any) -> dict[str, optax.GradientTransformation]:
    """Adam alone, under masks, and with masks that are refreshed."""
    adam, schedule = optax.adam(1e-3), optax.linear_schedule(0.0, 0.9, 1000)
    return {
        "plain": adam,
        "masked": jaxprune.masked(adam, masks),
        "gradual": jaxprune.gradual(adam, jaxprune.magnitude, schedule, end=1000),
        "gradual, packed": jaxprune.gradual(adam, jaxprune.magnitude, schedule, end=1000, packed=True),
    }


def measured(name: str, width: int) -> tuple[float, float]:
    """Working memory of a step and the state's size, as multiples of the parameters."""
    params = [jax.ShapeDtypeStruct((width,) * 2, jnp.float32)] * _LAYERS
    masks = [jax.ShapeDtypeStruct((width,) * 2, bool)] * _LAYERS
    state = jax.eval_shape(lambda params, masks: optimizers(masks)[name].init(params), params, masks)

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        updates, state = optimizers(None)[name].update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    x = jax.ShapeDtypeStruct((16, width), jnp.float32)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, x).compile()
    return working(compiled) / nbytes(params), nbytes(state) / nbytes(params)


def working(compiled: Any) -> int:
    """Bytes that a compiled function needs besides its arguments."""
    analysis = compiled.memory_analysis()
    # A result that takes the place of a donated argument needs no memory of its own.
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


def nbytes(tree: Any) -> int:
    """Bytes of abstract or real arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main(argv: list[str]) -> None:
    """Prints both for every optimizer at every width."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    help_ = f"of {_LAYERS} square kernels; by default 34 M, 134 M and 1 B parameters"
    parser.add_argument("--widths", type=int, nargs="*", default=[2048, 4096, 11184], help=help_)
    options = parser.parse_args(argv)
    print(f"{history.device()}; as multiples of the parameters' bytes\n")
    print(f"{'parameters':>14}  {'step':18}{'working memory':>16}{'state':>8}")
    figures: dict[str, float] = {}
    for width in options.widths:
        size = _LAYERS * width**2
        for name in optimizers(None):
            working_memory, state = measured(name, width)
            figures |= {f"{size:,}, {name}, working memory": working_memory, f"{size:,}, {name}, state": state}
            print(f"{size:14,}  {name:18}{working_memory:16.3f}{state:8.3f}", flush=True)
    history.append("memory", figures)
