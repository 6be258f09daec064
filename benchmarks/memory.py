"""How much memory does pruning add to a training step?

What the compiled step needs beside its arguments, and what lies in the optimizer state, as multiples of the parameters
in bytes: Adam alone, with fixed masks, and with gradual pruning that refreshes, with masks as booleans and packed.
Nothing is run, so any size fits.
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
    """Of a multilayer perceptron."""
    for kernel in params:
        x = jax.nn.relu(x @ kernel)
    return jnp.mean(x)


def measured(optimizer: optax.GradientTransformation, params: Any, x: Any) -> tuple[float, float]:
    """Temporary memory and the state's size, as multiples of the parameters."""

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        updates, state = optimizer.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    analysis = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, x).compile().memory_analysis()
    size = nbytes(params)
    # What a donated argument leaves its place to needs no other.
    own = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return own / size, nbytes(state) / size


def nbytes(tree: Any) -> int:
    """Bytes of abstract or real arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main(argv: list[str]) -> None:
    """Prints both for every optimizer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__)
    parser.add_argument("--width", type=int, default=2048, help=f"of {_LAYERS} square kernels")
    options = parser.parse_args(argv)
    params = [jax.ShapeDtypeStruct((options.width,) * 2, jnp.float32)] * _LAYERS
    x = jax.ShapeDtypeStruct((16, options.width), jnp.float32)
    masks = [jnp.ones((options.width,) * 2, bool)] * _LAYERS
    adam, schedule = optax.adam(1e-3), optax.linear_schedule(0.0, 0.9, 1000)
    optimizers = {
        "plain": adam,
        "masked": jaxprune.masked(adam, masks),
        "gradual": jaxprune.gradual(adam, jaxprune.magnitude, schedule, end=1000),
        "gradual, packed": jaxprune.gradual(adam, jaxprune.magnitude, schedule, end=1000, packed=True),
    }
    print(f"{history.device()}; {_LAYERS * options.width**2:,} parameters, as multiples of their bytes\n")
    print(f"{'step':18}{'working memory':>16}{'state':>8}")
    figures: dict[str, float] = {}
    for name, optimizer in optimizers.items():
        working, state = measured(optimizer, params, x)
        figures |= {f"{name}, working memory": working, f"{name}, state": state}
        print(f"{name:18}{working:16.3f}{state:8.3f}", flush=True)
    history.append("memory", figures)
