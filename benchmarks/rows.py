"""Rows of long benchmarks, kept as JSON lines, so that a run goes on where the last one stopped."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path, protocol: int) -> list[Row]:
    """The rows of this protocol."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["protocol"] == protocol]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Writes the rows of one job in one piece, so that a stopped run leaves all of them or none."""
    with path.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


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
