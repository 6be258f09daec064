"""What do other libraries take for the same work?

JaxPruner: masks of single weights, and steps that train under them. Torch-Pruning: half of a ResNet-50's channels, each
library against the dense model of its own framework. A peer that is not installed, or that does not run on this JAX, is
left out, and its line says why.
"""

import argparse
import importlib

from benchmarks import history, step

_PEERS = {
    "jaxpruner": "It needs JAX 0.5.3 or older, flax and chex; its repository is google-research/jaxpruner on GitHub.",
    "torch_pruning": "To install it: pip install torch-pruning",
}


def main(argv: list[str]) -> None:
    """Compares with every peer that runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peers", description=__doc__)
    parser.add_argument("--only", choices=_PEERS, nargs="*", default=list(_PEERS), help="peers to compare with")
    parser.add_argument("--sizes", type=int, nargs="*", default=[4_000_000, 25_000_000], help="weights to choose from")
    parser.add_argument("--width", type=int, default=64, help="of the ResNet-50's first layer; 64 is the usual one")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--clock", choices=step.CLOCKS, default=step.usual_clock(), help="that times training steps")
    options = parser.parse_args(argv)
    print(history.device())
    figures: dict[str, float] = {}
    versions: dict[str, str] = {}
    for name in options.only:
        try:
            peer = importlib.import_module(f"benchmarks.peer_{name}")
            version = peer.version()
        except Exception as error:  # A peer may break in any way on a JAX that is newer than it.
            reason = next(iter(str(error).splitlines()), "")
            print(f"\n{name} is left out: {type(error).__name__}: {reason}. {_PEERS[name]}")
            continue
        print(f"\n{name} {version}", flush=True)
        figures |= {f"{name}: {key}": value for key, value in peer.measure(options).items()}
        versions[name] = version
    if figures:
        history.append("peers", figures, versions)
