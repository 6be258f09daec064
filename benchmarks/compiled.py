"""Compiles pruning for chips that are not here, and prints what it adds to the plain program, as a Markdown table."""

import argparse
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune
from benchmarks import history, models, targets
from benchmarks.formats import blocks
from jaxprune import budgets, formats, layerwise, patterns

_ON_A_CHIP = ("step", "selection", "sharded", "shrink", "formats")
_COLUMNS = (
    "program", "compiled in, s", "traced in, s", "temporary / parameters", "passes", "GFLOP", "MB a chip",
    "between chips",
)  # fmt: skip
_TOPOLOGIES = {"tpu": ("v5e", "v5e:2x2", "v5e:16x16"), "gpu": ("1", "2x2")}
_CHIP = {"tpu": "{}", "gpu": "{} H100"}
_LARGE = "v5e:16x16"


class Case(NamedTuple):
    """A program of abstract arguments, the parameters first."""

    name: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]


def main(kind: targets.Kind, description: str | None, argv: list[str]) -> None:
    """Runs the benchmarks of time where the chip is; compiles for it elsewhere."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {kind}", description=description)
    parser.add_argument("--only", nargs="+", default=[""], help="words; compile only the programs that contain one")
    parser.add_argument("--topology", nargs="+", default=_TOPOLOGIES[kind], help=f"such as {_TOPOLOGIES[kind]}")
    if kind == "tpu":
        parser.add_argument("--large", action="store_true", help=f"prune a decoder of 70 B parameters on {_LARGE}")
    options = parser.parse_args(argv)
    if targets.is_here(kind):
        for question in _ON_A_CHIP:
            importlib.import_module(f"benchmarks.{question}").main([])
        return
    reason = targets.missing(kind)
    if reason is not None:
        print(f"Compiling for a {kind.upper()} {reason}.")
        return
    print(f"{targets.versions(kind)}; compiled on {history.device()}, run nowhere", flush=True)
    figures: dict[str, float] = {}
    if kind == "tpu" and options.large:
        figures |= _table(f"A decoder of 70 B parameters on {_LARGE}", large())
    else:
        for topology in options.topology:
            found = (case for case in cases(kind, topology) if any(word in case.name for word in options.only))
            figures |= _table(_CHIP[kind].format(topology), found)
    if figures:
        history.append(kind, figures, {"compiler": targets.versions(kind)})


def cases(kind: targets.Kind, topology: str) -> Iterator[Case]:
    """The programs for a topology; the plain ones come first."""
    *_, shape = topology.split(":")
    if "x" not in shape:
        place = functools.partial(targets.placed, sharding=targets.alone(kind, topology))
        yield from _selections(place, [(768, 1536)] * 4)
        yield from _selections(place, [(1024, 4096)])
        yield from _steps(place, [(768, 1536)] * 4)
        yield from _solvers(place)
        yield from _shrunk(place)
        yield from _formats(place)
        return
    rows, columns = map(int, shape.split("x"))
    chips = topology if kind == "tpu" else str(rows * columns)
    mesh = targets.grid(kind, chips, (rows, columns), "data", "model")
    place = functools.partial(targets.split, mesh=mesh)
    kernels = [(512 * rows, 1024 * columns)] * 2
    yield from _selections(place, kernels)
    yield from _steps(place, kernels)


def _selections(place: Callable[[Any], Any], shapes: list[tuple[int, int]]) -> Iterator[Case]:
    params = place([jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    size = f"{len(shapes)} of {shapes[0][0]} x {shapes[0][1]}"
    prune = functools.partial(functools.partial, jaxprune.magnitude)
    for name, fun in {
        "one pass, to add up magnitudes": _read,
        "magnitude, uniform": prune(sparsity=0.9),
        "magnitude, global": prune(sparsity=0.9, budget=budgets.global_),
        "magnitude, NM(2, 4)": prune(pattern=patterns.NM(2, 4)),
        "dft": functools.partial(jaxprune.dft, sparsity=0.9),
    }.items():
        yield Case(f"{name}: {size}", fun, (params,))


def _steps(place: Callable[[Any], Any], shapes: list[tuple[int, int]]) -> Iterator[Case]:
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    size = f"{len(shapes)} of {shapes[0][0]} x {shapes[0][1]}"
    adam = optax.adam(1e-3)
    gradual = functools.partial(jaxprune.gradual, adam, sparsity=0.9, begin=0, end=1000, every=10)
    masks = jax.eval_shape(functools.partial(jaxprune.magnitude, sparsity=0.9), params)
    for name, optimizer in {
        "Adam": lambda _: adam,
        "gradual, magnitude": lambda _: gradual(jaxprune.magnitude),
        "gradual, dft": lambda _: gradual(jaxprune.dft),
        "rigl": lambda masks: jaxprune.rigl(adam, masks, end=1000, every=10),
    }.items():
        yield _step(f"step, {name}: {size}", optimizer, params, masks, place)


def _step(name: str, optimizer: Any, params: Any, masks: Any, place: Callable[[Any], Any]) -> Case:
    """The update alone, of given gradients."""
    state = jax.eval_shape(lambda params, masks: optimizer(masks).init(params), params, masks)

    def step(params: Any, grads: Any, state: Any, masks: Any) -> Any:
        updates, state = optimizer(masks).update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return Case(name, step, (place(params), place(params), place(state), place(masks)))


def _solvers(place: Callable[[Any], Any]) -> Iterator[Case]:
    kernel = place(jax.ShapeDtypeStruct((1024, 1024), jnp.float32))
    for name, prune in {"sparsegpt": layerwise.sparsegpt, "admm": layerwise.admm}.items():
        yield Case(f"{name}: 1024 x 1024", functools.partial(prune, sparsity=0.5), (kernel, kernel))


def _shrunk(place: Callable[[Any], Any]) -> Iterator[Case]:
    model = models.MLP(2048)
    x = jax.ShapeDtypeStruct((256, 2048), jnp.float32)
    params = models.random(jax.eval_shape(model.init, jax.random.key(0), x))
    yield Case("an MLP of width 2048", model.apply, (place(params), place(x)))
    coupling = jaxprune.couple(model.apply, params, x)
    small, small_params, _ = jaxprune.shrink(
        model.apply, params, jaxprune.slim(params, 0.5, coupling=coupling), coupling
    )
    yield Case("the same, shrunk by half", small, (place(small_params), place(x)))


def _formats(place: Callable[[Any], Any]) -> Iterator[Case]:
    mask = blocks(2048, 128, 0.75)
    kernel, x = mask.astype(np.float32), place(jax.ShapeDtypeStruct((256, 2048), jnp.float32))
    yield Case("a product with 2048 x 2048", lambda kernel, x: x @ kernel, (place(kernel), x))
    strips = formats.Strips.of(kernel, mask, block=(128, 128))
    for method in ("strip by strip", "batched"):
        yield Case(f"with a quarter of it, {method}", lambda form, x: form.matmul(x), (place(strips.by(method)), x))


def _read(params: Any) -> jax.Array:
    return sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(params))


def large() -> Iterator[Case]:
    """Global magnitudes of a decoder in bfloat16, and the step that prunes it gradually."""
    mesh = targets.grid("tpu", _LARGE, (16, 16), "data", "model")
    place = functools.partial(targets.split, mesh=mesh)
    params = models.decoder_shapes(80, 8192, heads=64, groups=8, head_width=128, hidden=28672, vocabulary=128256)
    prune = functools.partial(jaxprune.magnitude, budget=budgets.global_)
    yield Case("one pass, to add up magnitudes", _read, (place(params),))
    yield Case("magnitude, global", functools.partial(prune, sparsity=0.5), (place(params),))
    adam = optax.adam(1e-3)
    yield _step("step, Adam", lambda _: adam, params, None, place)
    gradual = functools.partial(jaxprune.gradual, adam, prune, 0.5, begin=0, end=1000, every=100)
    yield _step("step, gradual", lambda _: gradual(), params, None, place)
    yield _step("step, gradual, packed masks", lambda _: gradual(packed=True), params, None, place)


def _table(title: str, found: Iterator[Case]) -> dict[str, float]:
    """Prints a row for each program as it is compiled."""
    print(f"\n{title}\n\n| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
    figures = {}
    start = time.perf_counter()
    for case in found:
        donate = (0, 2) if case.name.startswith("step") else ()
        try:
            _, program = targets.compiled(case.fun, *case.args, donate=donate)
        except Exception as error:
            print(f"| {case.name} | does not compile: {type(error).__name__}: {str(error).splitlines()[0][:120]} |")
            continue
        print(f"| {case.name} | {_row(program)} |", flush=True)
        figures[f"{title}, {case.name}, seconds"] = program.compiling
        figures[f"{title}, {case.name}, temporary"] = program.temporary / program.parameters
    print(f"\n{len(figures) // 2} programs in {time.perf_counter() - start:.0f} s")
    return figures


def _row(program: targets.Program) -> str:
    accessed, flops = program.accessed, program.flops
    return " | ".join([
        f"{program.compiling:.1f}",
        f"{program.lowering:.1f}",
        f"{program.temporary / program.parameters:.3f}",
        "" if accessed is None else f"{accessed / program.parameters:.1f}",
        "" if flops is None else f"{flops / 1e9:.3g}",
        f"{program.held / 1e6:,.0f}",
        _between(program),
    ])  # fmt: skip


def _between(program: targets.Program) -> str:
    """How many operations of each kind, and the bytes of the largest."""
    kinds = dict.fromkeys(collective.kind for collective in program.collectives)
    each = [[c.bytes for c in program.collectives if c.kind == kind] for kind in kinds]
    found = (f"{len(sizes)} {kind}, {max(sizes):,} B" for kind, sizes in zip(kinds, each, strict=True))
    return "; ".join(found)
