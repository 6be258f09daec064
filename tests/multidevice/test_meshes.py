"""Starts processes with several devices, since a process cannot change how many it has."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PLATFORM = {"JAX_PLATFORMS": "cpu"}

pytestmark = pytest.mark.whole


def pytest_in_a_process(path, *arguments):
    environment = {**os.environ, **PLATFORM, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *arguments, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=HERE.parents[1])


@pytest.mark.parametrize("marker", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_eight_devices(marker):
    done = pytest_in_a_process(HERE / "eight_devices.py", "-m", marker)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.multihost
def test_two_processes_agree_bit_for_bit_with_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, **PLATFORM, "XLA_FLAGS": "", "PYTHONPATH": str(HERE.parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "two_processes.py"), address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    digests = [stdout.split()[-1] for stdout, _ in outputs]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 64
