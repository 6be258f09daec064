"""How much of a language model is left after pruning without retraining?

SmolLM2-135M, every linear layer of its blocks, calibrated on eight sequences of Wikipedia. For each method and
sparsity: the perplexity on articles that were not seen, and on news; the time, compilation included.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxprune
from benchmarks import history, packages, smollm, texts
from jaxprune import patterns

BLOCKS = jaxprune.filters.is_kernel & jaxprune.filters.named("^layers/")
PATTERNS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "70 %": {"sparsity": 0.7},
    "2:4": {"pattern": patterns.NM(2, 4)},
}


@jax.jit
def _loss(params: Any, tokens: Any) -> Any:
    logits = jax.nn.log_softmax(smollm.fun(params, tokens[None]))[0, :-1]
    return -jnp.mean(jnp.take_along_axis(logits, tokens[1:, None], axis=-1))


def perplexity(params: Any, sequences: Any) -> float:
    """The exponential of the mean loss per token."""
    return float(jnp.exp(jnp.mean(jnp.stack([_loss(params, tokens) for tokens in sequences]))))


def magnitude(params: Any, batches: Any, **asked: Any) -> Any:
    """The baseline that looks at no data."""
    del batches
    return jaxprune.apply(params, jaxprune.magnitude(params, where=BLOCKS, **asked))


def sparsegpt(params: Any, batches: Any, **asked: Any) -> Any:
    """Layer after layer, with what is left adjusted."""
    return jaxprune.sparsegpt(smollm.fun, params, batches, where=BLOCKS, **asked)[0]


def admm(params: Any, batches: Any, **asked: Any) -> Any:
    """Likewise, by 20 iterations of ADMM."""
    return jaxprune.admm(smollm.fun, params, batches, where=BLOCKS, **asked)[0]


METHODS: dict[str, Callable[..., Any]] = {"magnitude": magnitude, "sparsegpt": sparsegpt, "admm": admm}


def main(argv: list[str]) -> None:
    """Prints a row for each method."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks oneshot", description=__doc__)
    parser.add_argument("--cache", type=Path, default=packages.CACHE, help="folder for the model and the texts")
    parser.add_argument("--methods", choices=METHODS, nargs="*", default=tuple(METHODS))
    parser.add_argument("--patterns", choices=PATTERNS, nargs="*", default=tuple(PATTERNS))
    options = parser.parse_args(argv)
    params, tokenizer = smollm.load(options.cache)
    train, test = texts.wikipedia(options.cache)
    batches = [tokens[None] for tokens in texts.sequences(train, tokenizer)]
    held_out = {
        "Wikipedia": texts.sequences(test, tokenizer),
        "news": texts.sequences(texts.news(options.cache), tokenizer),
    }
    print(f"{history.device()}\n\n{'':12}{'':8}{'Wikipedia':>10}{'news':>10}{'seconds':>9}{'CPU':>9}{'GiB':>6}")
    figures = {f"dense, {name}": perplexity(params, sequences) for name, sequences in held_out.items()}
    print(f"{'dense':20}" + "".join(f"{value:10.2f}" for value in figures.values()), flush=True)
    for name in options.methods:
        for wanted in options.patterns:
            start, cpu = time.perf_counter(), time.process_time()
            pruned = jax.block_until_ready(METHODS[name](params, batches, **PATTERNS[wanted]))
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            got = {text: perplexity(pruned, sequences) for text, sequences in held_out.items()}
            row = "".join(f"{value:10.2f}" for value in got.values())
            print(f"{name:12}{wanted:8}{row}{seconds:9.1f}{cpu:9.1f}{_peak():6.1f}", flush=True)
            figures |= {f"{name}, {wanted}, {text}": value for text, value in got.items()}
            figures[f"{name}, {wanted}, seconds"] = seconds
    history.append("oneshot", figures)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
