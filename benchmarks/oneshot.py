"""How much of a language model is left after pruning without retraining?

SmolLM2-135M, every linear layer of its blocks, calibrated on eight sequences of Wikipedia. For each method and
sparsity: the perplexity on other articles, and on news; the seconds, compilation included; and the peak memory of the
process by then, the model and JAX itself included. Every row is measured in a process of its own and stored in
`oneshot.jsonl` next to this file; some stored rows are measured again each time.
"""

import argparse
import functools
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxprune
from benchmarks import history, packages, rows, smollm, texts
from jaxprune import _text, budgets, layerwise, oneshot, patterns
from jaxprune._arrays import tree

_CACHE = Path(__file__).parent / "oneshot.jsonl"
SEQUENCES_PER_BATCH = 4
_TOLERANCE = 0.02  # of a perplexity, between devices
_PROTOCOL = 1  # raise it when anything below changes a result
BLOCKS = jaxprune.filters.is_kernel & jaxprune.filters.named("^layers/")
OWL = functools.partial(budgets.owl, threshold=5.0, deviation=0.08, layer=lambda path: path.rsplit("/", 1)[0])
PATTERNS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "60 %": {"sparsity": 0.6},
    "70 %": {"sparsity": 0.7},
    "2:4": {"pattern": patterns.NM(2, 4)},
    "60 %, owl": {"sparsity": 0.6, "budget": OWL},
    "70 %, owl": {"sparsity": 0.7, "budget": OWL},
}


@jax.jit
def _loss(params: Any, tokens: Any) -> Any:
    logits = jax.nn.log_softmax(smollm.fun(params, tokens[None]))[0, :-1]
    return -jnp.mean(jnp.take_along_axis(logits, tokens[1:, None], axis=-1))


def perplexity(params: Any, sequences: Any) -> float:
    """The exponential of the mean loss per token."""
    return float(jnp.exp(jnp.mean(jnp.stack([_loss(params, tokens) for tokens in sequences]))))


def dense(params: Any, batches: Any) -> Any:
    """The model as it is."""
    del batches
    return params


def magnitude(params: Any, batches: Any, **asked: Any) -> Any:
    """The baseline that uses no data."""
    del batches
    return jaxprune.apply(params, jaxprune.magnitude(params, where=BLOCKS, **asked))


def sequential(method: layerwise.Method, params: Any, batches: Any, *, budget: Any = None, **asked: Any) -> Any:
    """Layer by layer, each for the inputs that the pruned layers before it give."""
    if budget is not None:
        asked["sparsity"] = _spread(params, batches, asked["sparsity"], budget)
    return oneshot.prune(smollm.fun, params, batches, method, where=BLOCKS, **asked)[0]


def _spread(params: Any, batches: Any, sparsity: float, budget: Any) -> Any:
    """A sparsity for each kernel, by the outliers among its Wanda scores in the dense model."""
    statistics = jaxprune.calibrate(smollm.fun, params, batches, where=BLOCKS)
    scores = jaxprune.scores.wanda(params, statistics, where=BLOCKS)
    counts = budget(scores, sparsity, patterns.Unstructured())
    return tree.map_with_path(lambda _, score, count: 1 - int(count) / score.size, scores, counts)


METHODS: dict[str, Callable[..., Any]] = {
    "magnitude": magnitude,
    "wanda": functools.partial(sequential, layerwise.Wanda()),
    "sparsegpt, published": functools.partial(sequential, layerwise.SparseGPT(damping=0.01), correction=0.0),
    "sparsegpt": functools.partial(sequential, layerwise.SparseGPT()),
    "admm": functools.partial(sequential, layerwise.ADMM()),
}


def measure(method: str, asked: str, cache: Path) -> rows.Row:
    """Prunes the model in one way: what that took, and the perplexity afterwards."""
    params, tokenizer = smollm.load(cache)
    train, test = texts.wikipedia(cache)
    sequences = texts.sequences(train, tokenizer)
    batches = list(sequences.reshape(-1, SEQUENCES_PER_BATCH, sequences.shape[-1]))
    prune = functools.partial(METHODS[method], **PATTERNS[asked]) if method != "dense" else dense
    start, cpu = time.perf_counter(), time.process_time()
    pruned = jax.block_until_ready(prune(params, batches))
    took = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu": round(time.process_time() - cpu, 1),
        "gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    held_out = {"wikipedia": test, "news": texts.news(cache)}
    left = {name: perplexity(pruned, texts.sequences(text, tokenizer)) for name, text in held_out.items()}
    return {
        "method": method,
        "asked": asked,
        **{name: round(value, 2) for name, value in left.items()},
        **took,
        "device": history.device(),
        "protocol": _PROTOCOL,
    }


def table(found: list[rows.Row]) -> str:
    """The rows as a table in Markdown."""
    cells = [("method", "sparsity", "Wikipedia", "news", "seconds", "GiB")]
    for row in found:
        perplexities = f"{row['wikipedia']:.1f}", f"{row['news']:.1f}"
        cells.append((row["method"], row["asked"], *perplexities, f"{row['seconds']:.0f}", f"{row['gib']:.1f}"))
    return "\n".join(_text.markdown(cells))


def main(argv: list[str]) -> None:
    """Measures the rows that are missing, one process each, prints all, and measures some stored ones again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks oneshot", description=__doc__)
    parser.add_argument("--cache", type=Path, default=packages.CACHE, help="folder for the model and the texts")
    parser.add_argument("--methods", choices=METHODS, nargs="*", default=tuple(METHODS))
    parser.add_argument("--patterns", choices=PATTERNS, nargs="*", default=tuple(PATTERNS))
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--check", type=int, default=1, help="how many stored rows to measure again and compare")
    parser.add_argument("--tables", action="store_true", help="only print the table of the stored rows")
    options = parser.parse_args(argv)
    if options.row:
        rows.append(_CACHE, [measure(*options.row, options.cache)])
        return
    wanted = [("dense", ""), *(way for way in itertools.product(options.methods, options.patterns) if _possible(*way))]
    stored = _known()
    for way in wanted:
        if not options.tables and way not in stored:
            command = [sys.executable, "-m", "benchmarks", "oneshot", "--cache", str(options.cache), "--row", *way]
            subprocess.run(command, check=True)
    known = _known()
    found = [known[way] for way in wanted if way in known]
    measured = sum(way in known and way not in stored for way in wanted)
    print(f"{history.device()}\n\n{table(found)}")
    print(f"\nStored in {_CACHE.name}: {len(found)} of these rows, {measured} of them measured in this run.")
    if options.tables:
        return
    names = ("wikipedia", "news", "seconds", "gib")
    if measured:
        history.append("oneshot", {f"{row['method']}, {row['asked']}, {n}": row[n] for row in found for n in names})
    agreed = list[bool]()
    for row in rows.drawn([stored[way] for way in wanted if way in stored], options.check):
        again = measure(row["method"], row["asked"], options.cache)
        what = f"{row['method']} {row['asked']}, perplexity"
        agreed.append(rows.compare(what, row["wikipedia"], again["wikipedia"], _TOLERANCE * row["wikipedia"]))
    rows.conclude(agreed)


def _known() -> dict[tuple[str, str], rows.Row]:
    """The stored rows; of several for one way, the last."""
    return {(row["method"], row["asked"]): row for row in rows.read(_CACHE, _PROTOCOL)}


def _possible(method: str, asked: str) -> bool:
    """Magnitudes have no outliers to spread a sparsity by."""
    return method != "magnitude" or "budget" not in PATTERNS[asked]
