"""What does pruning add to a training step?

A multilayer perceptron of 4 M parameters at batch 128 with Adam, as ratios to the plain step in the same process:
fixed masks, gradual pruning on a step without a refresh of the masks, and on a step with one, also with packed masks.
On a CPU, the time is what all cores spend on this process, so that other load does not count; `--clock wall` gives the
time that passes.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from benchmarks import history, timing
from jaxprune import budgets

_WIDTHS = (784, 1536, 1536, 256, 10)
_BATCH = 128
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def initialise() -> dict[str, dict[str, jax.Array]]:
    """He-normal kernels and zero biases: 3.96 M parameters."""
    keys = jax.random.split(jax.random.key(0), len(_WIDTHS) - 1)
    return {
        f"dense_{i}": {
            "kernel": jax.random.normal(key, (_WIDTHS[i], _WIDTHS[i + 1])) * (2 / _WIDTHS[i]) ** 0.5,
            "bias": jnp.zeros(_WIDTHS[i + 1]),
        }
        for i, key in enumerate(keys)
    }


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    x = images
    for i in range(len(_WIDTHS) - 1):
        layer = params[f"dense_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i < len(_WIDTHS) - 2 else x
    return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()


class Training:
    """One optimizer's parameters and state, stepped in place as a training loop does.

    Args:
      optimizer: Of the parameters of `initialise`; each training starts from the same ones, with the same data.
      after: From the updated parameters and state to parameters, for a library that masks them there.
    """

    def __init__(
        self, optimizer: optax.GradientTransformation, after: Callable[[Any, Any], Any] = lambda params, _: params
    ) -> None:
        self.params = initialise()
        self.state = optimizer.init(self.params)
        rng = np.random.default_rng(0)
        self.images = jnp.asarray(rng.standard_normal((_BATCH, _WIDTHS[0]), dtype=np.float32))
        self.labels = jnp.asarray(rng.integers(0, 10, _BATCH), jnp.int32)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, images: jax.Array, labels: jax.Array) -> Any:
            updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state, params)
            return after(optax.apply_updates(params, updates), state), state

        self.compiled = step

    def __call__(self) -> Any:
        """One step."""
        self.params, self.state = self.compiled(self.params, self.state, self.images, self.labels)
        return self.params

    def lower(self) -> Any:
        """The lowered step, to compile and to inspect."""
        return self.compiled.lower(self.params, self.state, self.images, self.labels)


def usual_clock() -> str:
    """The clock that suits the device."""
    return "cpu" if jax.default_backend() == "cpu" else "wall"


def main(argv: list[str]) -> None:
    """Times the steps alternately."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__)
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--clock", choices=CLOCKS, default=usual_clock())
    options = parser.parse_args(argv)
    schedule = optax.linear_schedule(0.5, 0.95, 1000)  # still pruning at every refresh that is timed
    strategies = {
        "uniform": jaxprune.magnitude,
        "global": functools.partial(jaxprune.magnitude, budget=budgets.global_),
    }
    trainings = {
        "plain": Training(optax.adam(1e-3)),
        "masked": Training(jaxprune.masked(optax.adam(1e-3), jaxprune.magnitude(initialise(), 0.9))),
    }
    for name, strategy in strategies.items():
        gradual = functools.partial(jaxprune.gradual, optax.adam(1e-3), strategy, schedule, end=10**6)
        trainings[f"gradual {name}, no refresh"] = Training(gradual(every=10**6))
        trainings[f"gradual {name}, refresh"] = Training(gradual(every=1))
    gradual = functools.partial(
        jaxprune.gradual, optax.adam(1e-3), jaxprune.magnitude, schedule, end=10**6, packed=True
    )
    trainings["gradual packed, no refresh"] = Training(gradual(every=10**6))
    trainings["gradual packed, refresh"] = Training(gradual(every=1))
    times = timing.interleaved(trainings, options.repeats, clock=CLOCKS[options.clock])
    count = jaxprune.count_params(initialise())
    print(f"{history.device()}; {count:,} parameters, batch {_BATCH}, Adam; {options.clock} time\n")
    print(f"{'step':32}{'ms':>8}{'ratio to plain':>16}")
    figures = {name: timing.ratio(times, name, "plain") for name in trainings}
    for name, figure in figures.items():
        print(f"{name:32}{1e3 * np.median(times[name]):8.1f}{figure:16.3f}")
    history.append("step", figures)
