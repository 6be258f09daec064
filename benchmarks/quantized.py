"""What do pruning and quantisation cost together? 2:4 and half of the neurons, beside Qwix at eight and four bits.

`digits`: a perceptron on scikit-learn's images of digits, over several seeds: the accuracy, and the size in bytes of
what has to be stored. `smollm`: SmolLM2-135M with the protocol of `oneshot`: the perplexity of the pruned and the
quantised model, every linear layer of its blocks, without retraining.
"""

import argparse
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import linen as nn

import jaxprune
from benchmarks import history, oneshot, packages, smollm, texts
from jaxprune import _text, patterns
from jaxprune._arrays import tree
from jaxprune._demo import data

_STEPS, _BATCH = 400, 128
_TILED: dict[str, tuple[int, int | None]] = {"int4, a scale for 32 inputs": (4, 32)}
TWO_OF_FOUR = functools.partial(jaxprune.magnitude, pattern=patterns.NM(2, 4))


class Perceptron(nn.Module):
    """Two hidden layers."""

    hidden: tuple[int, ...] = (128, 64)

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def aware(model: nn.Module, bits: int) -> nn.Module:
    """The model under quantisation-aware training: weights of so many bits, activations of eight."""
    rule = qwix.QtRule(weight_qtype=f"int{bits}", act_qtype="int8")
    return qwix.quantize_model(model, qwix.QtProvider([rule]))


def quantised(model: nn.Module, params: Any, bits: int, x: Any) -> tuple[nn.Module, Any]:
    """The model after training, with weights of so many bits and activations of eight."""
    rule = qwix.QuantizationRule(weight_qtype=f"int{bits}", act_qtype="int8")
    served = qwix.quantize_model(model, qwix.PtqProvider([rule]))
    shapes = jax.eval_shape(served.init, jax.random.key(0), x)
    return served, qwix.quantize_params(params, shapes)


def nbytes(params: Any, masks: Any, bits: int) -> int:
    """What has to be stored: kept weights, a bit a weight for each mask, a scale for each output, and the biases."""
    total = 0
    for _, leaf, mask in tree.flatten(params, jax.tree.map(lambda _: None, params) if masks is None else masks)[0]:
        if leaf.ndim < 2:
            total += 4 * leaf.size
            continue
        kept = leaf.size if mask is None else int(mask.sum())
        of_mask = 0 if mask is None else math.ceil(leaf.size / 8)
        total += math.ceil(kept * bits / 8) + of_mask + (4 * leaf.shape[-1] if bits < 32 else 0)
    return total


def digits(seed: int) -> dict[tuple[str, str], tuple[float, int]]:
    """Accuracy in per cent on the test images, and bytes, by pruning and by bits of the weights."""
    found = data.digits(seed)
    images, labels = jnp.asarray(found.train_images.reshape(-1, 64)), jnp.asarray(found.train_labels)
    test, expected = jnp.asarray(found.test_images.reshape(-1, 64)), found.test_labels

    def train(model: nn.Module, params: Any, optimizer: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            params, state = carry
            chosen = jax.random.randint(key, (_BATCH,), 0, len(images))

            def loss(params: Any) -> Any:
                logits = model.apply(params, images[chosen])
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(seed), _STEPS)
        return jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0])(params)

    def accuracy(model: nn.Module, params: Any) -> float:
        return 100 * float(np.mean(np.asarray(jnp.argmax(model.apply(params, test), axis=-1)) == expected))

    model = Perceptron()
    trained = train(model, model.init(jax.random.key(seed), test[:2]), optax.adam(2e-3))
    sparse = TWO_OF_FOUR(trained)
    coupling = jaxprune.couple(model.apply, trained, test[:2])
    units = jaxprune.slim(trained, 0.5, coupling=coupling)
    _, small, plan = jaxprune.shrink(model.apply, trained, units, coupling)
    widths = tuple(plan.sizes().shapes[f"params/Dense_{i}/kernel"][1][1] for i in range(2))
    start = {
        "dense": (model, trained, None),
        "2:4": (model, jaxprune.apply(trained, sparse), sparse),
        "half of the neurons": (Perceptron(widths), small, None),
    }
    result = {}
    for name, (fun, params, masks) in start.items():
        optimizer = optax.adam(1e-3) if masks is None else jaxprune.masked(optax.adam(1e-3), masks)
        retrained, learned = (train(way, params, optimizer) for way in (fun, aware(fun, 4)))
        if masks is not None:
            jaxprune.check_masked(learned, masks)
        result[name, "float32"] = accuracy(fun, retrained), nbytes(params, masks, 32)
        for bits in (8, 4):
            result[name, f"int{bits}"] = (
                accuracy(*quantised(fun, retrained, bits, test[:2])),
                nbytes(params, masks, bits),
            )
        result[name, "int4, trained for it"] = accuracy(*quantised(fun, learned, 4, test[:2])), nbytes(params, masks, 4)
    return result


def rounded(params: Any, bits: int, tile: int | None = None) -> Any:
    """The kernels of the blocks to integers and back, with a scale for each output, or for so many inputs of each."""

    def leaf(path: str, weights: Any) -> Any:
        if not oneshot.BLOCKS(path, weights):
            return weights
        tiles = None if tile is None else {0: tile}
        return qwix.dequantize(qwix.quantize(weights, f"int{bits}", channelwise_axes=[1], tiled_axes=tiles))

    return tree.map_with_path(leaf, params)


def perplexities(cache: Path) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Perplexity on Wikipedia and on news, and bits a weight of the blocks, by pruning and by bits of the weights."""
    params, tokenizer = smollm.load(cache)
    train, test = texts.wikipedia(cache)
    sequences = texts.sequences(train, tokenizer)
    batches = list(sequences.reshape(-1, oneshot.SEQUENCES_PER_BATCH, sequences.shape[-1]))
    held_out = [texts.sequences(text, tokenizer) for text in (test, texts.news(cache))]
    pruned = oneshot.METHODS["sparsegpt"](params, batches, **oneshot.PATTERNS["2:4"])
    result = {}
    for name, start, share, of_mask in (("dense", params, 1.0, 0.0), ("2:4", pruned, 0.5, 1.0)):
        for kind, (bits, tile) in {"float32": (32, None), "int8": (8, None), "int4": (4, None), **_TILED}.items():
            found = start if bits == 32 else rounded(start, bits, tile)
            wikipedia, news = (oneshot.perplexity(found, tokens) for tokens in held_out)
            result[name, kind] = wikipedia, news, share * bits + of_mask + (0 if tile is None else 16 / tile)
            print(name, kind, *result[name, kind], flush=True)
    return result


def main(argv: list[str]) -> None:
    """Prints a table for each part, and adds the figures to the history."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks quantized", description=__doc__)
    parser.add_argument("part", nargs="?", choices=["digits", "smollm"], help="both where none is given")
    parser.add_argument("--seeds", type=int, default=5, help="of `digits`")
    parser.add_argument("--cache", type=Path, default=packages.CACHE, help="folder for the model and the texts")
    options = parser.parse_args(argv)
    figures = dict[str, float]()
    print(history.device())
    if options.part != "smollm":
        runs = [digits(seed) for seed in range(options.seeds)]
        cells = [("pruning", "weights", "accuracy", "bytes")]
        for (name, kind), (_, size) in runs[0].items():
            values = [run[name, kind][0] for run in runs]
            cells.append((name, kind, f"{np.mean(values):.1f} ± {np.std(values):.1f}", f"{size:,}"))
            figures |= {f"{name}, {kind}, accuracy": float(np.mean(values)), f"{name}, {kind}, bytes": size}
        print("\n" + "\n".join(_text.markdown(cells)))
    if options.part != "digits":
        found = perplexities(options.cache)
        cells = [("pruning", "weights", "Wikipedia", "news", "bits a weight")]
        for (name, kind), (wikipedia, news, bits) in found.items():
            cells.append((name, kind, f"{wikipedia:.1f}", f"{news:.1f}", f"{bits:.1f}"))
            figures |= {f"SmolLM2, {name}, {kind}, {on}": v for on, v in (("wikipedia", wikipedia), ("news", news))}
        print("\n" + "\n".join(_text.markdown(cells)))
    history.append("quantized", figures)
