"""Rows of long benchmarks, stored as JSON lines, so that a run goes on where the last one stopped.

What is printed of them is called stored; some of them, drawn at random, are measured again each time and compared.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Row = dict[str, Any]


def read(path: Path, protocol: int) -> list[Row]:
    """The rows of this protocol."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["protocol"] == protocol]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Writes the rows of one job in one piece, so that a stopped run leaves all of them or none."""
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def replace(path: Path, fresh: Path, keys: Iterable[str]) -> None:
    """Puts the rows of another file in place of those with the same values under `keys`; the others stay.

    The old file is there until the new one is whole.
    """
    names = tuple(keys)
    new, old = ([json.loads(line) for line in p.read_text().splitlines()] if p.exists() else [] for p in (fresh, path))
    replaced = {tuple(row.get(name) for name in names) for row in new}
    kept = [row for row in old if tuple(row.get(name) for name in names) not in replaced]
    append(whole := path.with_suffix(".whole"), [*kept, *new])
    whole.replace(path)
    fresh.unlink()


def drawn(stored: Sequence[T], count: int) -> list[T]:
    """Some of the stored rows, to be measured again."""
    return random.sample(stored, min(count, len(stored)))


def compare(what: str, stored: float, measured: float, tolerance: float) -> bool:
    """Prints a stored figure next to the same one as measured now; whether they agree."""
    agrees = abs(measured - stored) <= tolerance
    verdict = "agree" if agrees else f"DIFFER by more than {tolerance:g}"
    print(f"measured again: {what}: stored {stored:.2f}, measured {measured:.2f}; they {verdict}", flush=True)
    return agrees


def conclude(agreed: Sequence[bool]) -> None:
    """Ends with an error if a stored row was not found again."""
    if not all(agreed):
        raise SystemExit("Stored rows are not what is measured here and now: they are of another device or version.")


def in_processes(question: str, argv: list[str], workers: int) -> None:
    """Runs a benchmark in several processes; `--worker` and `--workers` tell each which part of the work is its own."""
    command = [sys.executable, "-m", "benchmarks", question, *argv, "--workers", str(workers)]
    processes = [subprocess.Popen([*command, "--worker", str(i)]) for i in range(workers)]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit("A worker failed; what it had finished is kept.")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
