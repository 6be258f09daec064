"""Torch-Pruning for `benchmarks.peers`: half of a ResNet-50's channels, with the same weights in both frameworks.

Neither framework is compared with the other: each pruned model is timed against its own dense one, torch's eagerly, as
it comes, and on the CPU; ours under `jit`.
"""

import argparse
import copy
import functools
import time
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_pruning
from torch import nn

import jaxprune
from benchmarks import models, timing

_PIXELS = 224


class _Block(nn.Module):
    """One block of `models.ResNet50`; its layers are registered in the order in which they are called there."""

    def __init__(self, inputs: int, width: int, stride: int, projects: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *_convolution(inputs, width, 1), nn.ReLU(),
            *_convolution(width, width, 3, stride), nn.ReLU(),
            *_convolution(width, 4 * width, 1),
        )  # fmt: skip
        self.shortcut = nn.Sequential(*_convolution(inputs, 4 * width, 1, stride)) if projects else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.inner(x))


class _ResNet50(nn.Module):
    """`models.ResNet50` in torch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks, inputs = [], width
        for stage, count in enumerate((3, 4, 6, 3)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                blocks.append(_Block(inputs, width * 2**stage, stride, not block))
                inputs = 4 * width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)


def version() -> str:
    """Its version and that of torch."""
    return f"{metadata.version('torch-pruning')} on torch {torch.__version__}"


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Prunes with both, and compares sizes, outputs and latencies."""
    x = np.random.default_rng(0).standard_normal((1, _PIXELS, _PIXELS, 3), np.float32)
    dense = models.ResNet50(width=options.width)
    variables = models.random(jax.eval_shape(dense.init, jax.random.key(0), x))
    ours, ours_calls = _ours(dense.apply, variables, jnp.asarray(x))
    theirs, theirs_calls = _theirs(_torch_model(options.width, variables), torch.tensor(x.transpose(0, 3, 1, 2)))
    difference = _difference(ours_calls["dense"](), theirs_calls["dense"]().numpy())
    if difference > 1e-3:
        raise AssertionError(f"The two dense models differ by {difference:.1g}: they are not the same.")
    calls = {f"jaxprune, {name}": call for name, call in ours_calls.items()}
    calls |= {f"Torch-Pruning, {name}": call for name, call in theirs_calls.items()}
    times = timing.interleaved(calls, options.repeats)
    print(f"\n{f'ResNet-50 of width {options.width}, half of the channels':48}{'jaxprune':>12}{'Torch-Pruning':>16}")
    ours["latency, dense / pruned"], theirs["latency, dense / pruned"] = (
        timing.ratio(times, f"{name}, dense", f"{name}, pruned") for name in ("jaxprune", "Torch-Pruning")
    )
    for key in ours:
        print(f"{key:48}{ours[key]:12.4g}{theirs[key]:16.4g}")
    print(f"outputs of the two dense models differ by {difference:.1g}")
    return {f"{n}, {k}": v for n, found in (("jaxprune", ours), ("Torch-Pruning", theirs)) for k, v in found.items()}


def _ours(fun: Any, params: Any, x: jax.Array) -> tuple[dict[str, float], dict[str, Any]]:
    """Couples, slims and shrinks."""
    start = time.perf_counter()
    coupling = jaxprune.couple(fun, params, x)
    masks = jaxprune.slim(params, 0.5, coupling=coupling)
    small, small_params, _ = jaxprune.shrink(fun, params, masks, coupling)
    jax.block_until_ready(small_params)
    seconds = time.perf_counter() - start
    dense_call, small_call = jax.jit(fun), jax.jit(small)
    masked = dense_call(jaxprune.apply(params, masks), x)
    figures = {
        "seconds to prune, once": seconds,
        "parameters left": _count(small_params) / _count(params),
        "multiply-accumulates left": jaxprune.macs(small, small_params, x).dense / jaxprune.macs(fun, params, x).dense,
        "largest difference to masked, relative": _difference(small_call(small_params, x), masked),
    }
    calls = {"dense": lambda: dense_call(params, x), "pruned": lambda: small_call(small_params, x)}
    return figures, calls


def _count(variables: Any) -> int:
    """Without running statistics, which torch does not count either."""
    return jaxprune.count_params(variables["params"])


def _theirs(dense: nn.Module, x: torch.Tensor) -> tuple[dict[str, float], dict[str, Any]]:
    """Prunes one copy and masks the same channels of another."""
    pruned, timed, masked = (copy.deepcopy(dense) for _ in range(3))
    start = time.perf_counter()
    _pruner(timed, x).step()
    seconds = time.perf_counter() - start
    same = dict(zip(pruned.modules(), masked.modules(), strict=True))
    for group in _pruner(pruned, x).step(interactive=True):
        for dependency, channels in group:
            if isinstance(dependency.layer, nn.BatchNorm2d):  # the channel is zero from here on
                with torch.no_grad():
                    same[dependency.layer].weight[channels] = 0
                    same[dependency.layer].bias[channels] = 0
        group.prune()
    (macs, count), (left, count_left) = (torch_pruning.utils.count_ops_and_params(m, x) for m in (dense, pruned))
    run = torch.inference_mode()(lambda model: model(x))
    figures = {
        "seconds to prune, once": seconds,
        "parameters left": count_left / count,
        "multiply-accumulates left": left / macs,
        "largest difference to masked, relative": _difference(run(pruned).numpy(), run(masked).numpy()),
    }
    return figures, {"dense": functools.partial(run, dense), "pruned": functools.partial(run, pruned)}


def _pruner(model: nn.Module, x: torch.Tensor) -> Any:
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    options = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [model.head]}
    return torch_pruning.pruner.BasePruner(model, x, **options)


def _torch_model(width: int, variables: Any) -> nn.Module:
    """The model with the weights of the Flax one."""
    model = _ResNet50(width).eval()
    params, statistics = (jax.tree.map(np.array, variables[name]) for name in ("params", "batch_stats"))
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        for i, module in enumerate(layer for layer in model.modules() if isinstance(layer, kind)):
            if kind is nn.Conv2d:
                _fill(module.weight, params[f"Conv_{i}"]["kernel"].transpose(3, 2, 0, 1))
                continue
            layer, measured = params[f"BatchNorm_{i}"], statistics[f"BatchNorm_{i}"]
            _fill(module.weight, layer["scale"])
            _fill(module.bias, layer["bias"])
            _fill(module.running_mean, measured["mean"])
            _fill(module.running_var, measured["var"])
    _fill(model.head.weight, params["head"]["kernel"].T)
    _fill(model.head.bias, params["head"]["bias"])
    return model


def _fill(tensor: torch.Tensor, values: np.ndarray) -> None:
    with torch.no_grad():
        tensor.copy_(torch.tensor(np.ascontiguousarray(values)))


def _difference(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
