"""A run of `prune_retrain` for `test_training.py` to kill: `killed_run.py FOLDER RESULT PAUSE`."""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune

FOLDER, RESULT, PAUSE = sys.argv[1], pathlib.Path(sys.argv[2]), float(sys.argv[3])
OPTIMIZER = optax.adam(0.02)
X = jax.random.normal(jax.random.key(0), (64, 16))
Y = jnp.tanh(X @ jax.random.normal(jax.random.key(1), (16, 4)))


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - y) ** 2)


@jax.jit
def step(params, state, rows):
    time_to_be_killed()
    grads = jax.grad(loss)(params, X[rows], Y[rows])
    updates, state = jaxprune.masked(OPTIMIZER, None).update(grads, state, params)
    return optax.apply_updates(params, updates), state


def time_to_be_killed():
    jax.debug.callback(lambda: time.sleep(PAUSE), ordered=True)


def batches(index, epoch):
    order = np.random.default_rng((index, epoch)).permutation(64)
    print("epoch", index, epoch, flush=True)
    return order.reshape(4, 16)


trainer = jaxprune.Trainer(
    init=lambda params, masks: jaxprune.masked(OPTIMIZER, masks).init(params),
    step=step,
    batches=batches,
    evaluate=lambda params: -loss(params, X, Y),
)
start = {"w": jax.random.normal(jax.random.key(2), (16, 4)), "b": jnp.zeros(4)}
found = jaxprune.prune_retrain(
    start, jaxprune.magnitude, trainer, jaxprune.targets.AtSparsity(0.8, rounds=3), epochs=3, folder=FOLDER
)
leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((found.params, found.masks))]
RESULT.write_bytes(b"".join(leaves) + found.to_markdown().encode())
