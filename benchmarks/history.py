"""Each run appends its figures to `benchmarks/history.jsonl`."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

_HISTORY = Path(__file__).parent / "history.jsonl"


def device() -> str:
    """The device that figures are measured on."""
    first = jax.devices()[0]
    return f"{first.platform} ({first.device_kind}), {jax.device_count()} device(s), JAX {jax.__version__}"


def append(question: str, figures: dict[str, float], versions: dict[str, str] | None = None) -> None:
    """Adds a row: time, commit, device and figures; also the versions of the libraries that are compared."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    ).stdout.strip()
    row = {
        "question": question,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "device": device(),
        **({} if versions is None else {"versions": versions}),
        "figures": {name: round(value, 4) for name, value in figures.items()},
    }
    with _HISTORY.open("a") as file:
        file.write(json.dumps(row) + "\n")


def rows(question: str) -> list[dict[str, Any]]:
    """All rows of a benchmark, oldest first."""
    lines = _HISTORY.read_text().splitlines() if _HISTORY.exists() else []
    return [row for row in map(json.loads, lines) if row["question"] == question]


def compared(found: list[dict[str, Any]]) -> str:
    """The figures of the last row, next to those of the row before it from the same device."""
    earlier = [row for row in found[:-1] if row["device"] == found[-1]["device"]]
    if not earlier:
        return "There is no earlier row from this device to compare with."
    before, after = earlier[-1], found[-1]
    lines = [f"against {before['commit']} of {before['time']}:", f"{'figure':48}{'before':>10}{'now':>10}{'change':>9}"]
    for name, value in after["figures"].items():
        old = before["figures"].get(name)
        change = "" if not old else f"{100 * (value / old - 1):+8.1f} %"
        lines.append(f"{name:48}{'' if old is None else f'{old:.3f}':>10}{value:10.3f}{change:>9}")
    return "\n".join(lines)


def plot(question: str, found: list[dict[str, Any]]) -> Path:
    """Draws each figure over the rows from the last row's device, into a file where the command was given."""
    from matplotlib.figure import Figure

    same = [row for row in found if row["device"] == found[-1]["device"]]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name in same[-1]["figures"]:
        axes.plot([row["figures"].get(name) for row in same], marker="o", label=name)
    axes.set_xticks(range(len(same)), [row["commit"] for row in same], rotation=45)
    axes.set_title(f"{question}, {same[-1]['device']}")
    axes.set_yscale("log")
    figure.legend(loc="outside right", fontsize="small")
    path = Path(f"{question}.png")
    figure.savefig(path)
    return path
