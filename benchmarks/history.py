"""Each run appends its figures to `benchmarks/history.jsonl`."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import jax

_HISTORY = Path(__file__).parent / "history.jsonl"


def device() -> str:
    """What the figures were measured on."""
    first = jax.devices()[0]
    return f"{first.platform} ({first.device_kind}), {jax.device_count()} device(s), JAX {jax.__version__}"


def append(question: str, figures: dict[str, float]) -> None:
    """Adds a row: when, which commit, which device, which figures."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    row = {
        "question": question,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": device(),
        "figures": {name: round(value, 4) for name, value in figures.items()},
    }
    with _HISTORY.open("a") as file:
        file.write(json.dumps(row) + "\n")
