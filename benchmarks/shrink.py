"""Does shrinking pay, and what does it cost?

For ResNet-50 and ViT-B/16 at half of every width: the time to couple, slim and shrink; the compiled FLOPs against those
of a model built at that width; the latency before and after. For the hidden layers of an MLP: how much of the reduction
in FLOPs becomes a reduction in time. For an abstract decoder of 70 B parameters: time and memory to couple it.
"""

import argparse
import functools
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune
from benchmarks import history, models, timing
from benchmarks.models import MLP, ResNet50, ViT, decoder, decoder_shapes

_WIDTH, _BATCH = 4096, 256


def main(options: list[str]) -> None:
    """Runs the parts that are asked for, by default all."""
    parts = {"decoder": coupling_of_a_decoder, "resnet": resnet, "vit": vit, "mlp": mlp}
    parser = argparse.ArgumentParser(prog="python -m benchmarks shrink", description=__doc__)
    parser.add_argument("--only", choices=parts, nargs="*", help="parts to run")
    parser.add_argument("--repeats", type=int, default=11, help="timings of each function")
    chosen = parser.parse_args(options)
    figures: dict[str, float] = {}
    # The decoder comes first: peak memory is that of the process.
    for name in chosen.only or parts:
        got = parts[name](chosen.repeats)
        for key, value in got.items():
            print(f"{name:8} {key:48} {value:10.4g}", flush=True)
        figures |= {f"{name}: {key}": value for key, value in got.items()}
    history.append("shrink", figures)


def coupling_of_a_decoder(_: int) -> dict[str, float]:
    """Couples 80 layers of width 8192, scanned and unrolled."""
    figures = {}
    shapes = decoder_shapes(80, 8192, heads=64, groups=8, head_width=128, hidden=28672, vocabulary=128256)
    layer = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), shapes["layers"])
    for name, params in (("scanned", shapes), ("unrolled", {**shapes, "layers": [layer] * 80})):
        fun = functools.partial(decoder, head_width=128, scanned=name == "scanned")
        before = _peak()
        start = time.perf_counter()
        jaxprune.couple(fun, params, jax.ShapeDtypeStruct((1, 128), jnp.int32))
        figures[f"{name}, seconds"] = time.perf_counter() - start
        figures[f"{name}, GiB over what was there"] = _peak() - before
    return figures


def resnet(repeats: int) -> dict[str, float]:
    """ResNet-50 at 224 pixels."""
    return _model(ResNet50(), ResNet50(width=32), repeats)


def vit(repeats: int) -> dict[str, float]:
    """ViT-B/16 at 224 pixels: half of the stream, the heads, their widths and the MLPs."""
    return _model(ViT(), ViT(width=384, heads=6, head_width=32, hidden=1536), repeats)


def _model(large: Any, native: Any, repeats: int) -> dict[str, float]:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 224, 224, 3)), jnp.float32)
    shapes = jax.eval_shape(large.init, jax.random.key(0), x)
    params = models.random(shapes)
    start = time.perf_counter()
    coupling = jaxprune.couple(large.apply, params, x)
    coupled = time.perf_counter()
    masks = jaxprune.slim(params, 0.5, coupling=coupling)
    slimmed = time.perf_counter()
    small, small_params, _ = jaxprune.shrink(large.apply, params, masks, coupling)
    jax.block_until_ready(small_params)
    shrunk = time.perf_counter()
    native_shapes = jax.eval_shape(native.init, jax.random.key(0), x)
    if jax.tree.map(jnp.shape, small_params) != jax.tree.map(jnp.shape, native_shapes):
        raise AssertionError("The shrunk parameters do not have the shapes of the model built small.")
    dense_call = jax.jit(large.apply).lower(params, x).compile()
    small_call = jax.jit(small).lower(small_params, x).compile()
    native_call = jax.jit(native.apply).lower(native_shapes, x).compile()
    masked = dense_call(jaxprune.apply(params, masks), x)
    error = jnp.abs(small_call(small_params, x) - masked).max() / jnp.abs(masked).max()
    times = timing.interleaved(
        {"dense": lambda: dense_call(params, x), "small": lambda: small_call(small_params, x)}, repeats
    )
    return {
        "couple, seconds": coupled - start,
        "slim, seconds": slimmed - coupled,
        "shrink, seconds": shrunk - slimmed,
        "all three, seconds": shrunk - start,
        "parameters, shrunk / dense": _size(small_params) / _size(params),
        "compiled FLOPs, shrunk / built small": _flops(small_call) / _flops(native_call),
        "compiled FLOPs, dense / shrunk": _flops(dense_call) / _flops(small_call),
        "largest difference to masked, relative": float(error),
        "latency, dense / shrunk": timing.ratio(times, "dense", "small"),
    }


def mlp(repeats: int) -> dict[str, float]:
    """The hidden layers of an MLP, whose speed-up is at best the ratio of the FLOPs."""
    large = MLP(_WIDTH)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((_BATCH, _WIDTH)), jnp.float32)
    params = models.random(jax.eval_shape(large.init, jax.random.key(0), x))
    coupling = jaxprune.couple(large.apply, params, x)
    masks = jaxprune.slim(params, 0.5, coupling=coupling)
    small, small_params, _ = jaxprune.shrink(large.apply, params, masks, coupling)
    calls = {
        "dense": jax.jit(large.apply).lower(params, x).compile(),
        "small": jax.jit(small).lower(small_params, x).compile(),
    }
    times = timing.interleaved(
        {"dense": lambda: calls["dense"](params, x), "small": lambda: calls["small"](small_params, x)}, repeats
    )
    ideal = _flops(calls["dense"]) / _flops(calls["small"])
    speedup = timing.ratio(times, "dense", "small")
    return {"FLOPs, dense / shrunk": ideal, "latency, dense / shrunk": speedup, "share of the ideal": speedup / ideal}


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _flops(compiled: Any) -> float:
    return compiled.cost_analysis()["flops"]


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
