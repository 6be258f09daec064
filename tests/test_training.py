"""Rounds of pruning and retraining: what is tried next, what is kept, and runs that are killed."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from jaxprune import targets

pytestmark = pytest.mark.dtype_promotion  # optax promotes integers by itself

ROOT = pathlib.Path(__file__).parents[1]
GOAL = jnp.arange(1.0, 21.0)[None]
DENSE = {"w": GOAL, "b": jnp.ones(2)}
OPTIMIZER = optax.sgd(0.1)


@jax.jit
def step(params, state, batch):
    grads = jax.grad(lambda p: jnp.sum((p["w"] - batch) ** 2))(params)
    updates, state = jaxprune.masked(OPTIMIZER, None).update(grads, state, params)
    return optax.apply_updates(params, updates), state


def trainer(**changes):
    functions = {
        "init": lambda params, masks: jaxprune.masked(OPTIMIZER, masks).init(params),
        "step": step,
        "batches": lambda index, epoch: [GOAL] * 2,
        "evaluate": lambda params: -jnp.sum((params["w"] - GOAL) ** 2),
    }
    return jaxprune.Trainer(**{**functions, **changes})


def search(target, passes):
    """The rounds that a target asks for, when a sparsity passes as the function says."""
    rounds = [targets.Round(0, 0.0, 0.0, 1.0, 0, 0)]
    while (proposal := target.propose(rounds, None)) is not None:
        metric = 1.0 if passes(proposal.sparsity) else 0.0
        rounds.append(targets.Round(*proposal, proposal.sparsity, metric, 0, 0))
    return rounds


def test_rounds_to_a_sparsity_remove_the_same_fraction_each():
    rounds = search(targets.AtSparsity(0.936, rounds=3), lambda _: True)
    np.testing.assert_allclose([row.asked for row in rounds], [0, 0.6, 0.84, 0.936])
    assert [row.parent for row in rounds] == [0, 0, 1, 2]


@pytest.mark.parametrize("limit", [0.3, 0.63, 0.955, 0.9871])
def test_the_smallest_model_is_found_to_the_resolution(limit):
    rounds = search(targets.Within(0.5, resolution=0.1, rounds=30), lambda sparsity: sparsity <= limit)
    found = rounds[targets.Within(0.5).best(rounds)]
    assert found.asked <= limit
    assert 1 - found.asked <= (1 - limit) / 0.9 + 1e-9
    for row in rounds[1:]:
        assert rounds[row.parent].metric == 1.0  # never goes on from a model that failed


@pytest.mark.parametrize(("correct", "passes"), [(4577, True), (4576, False)])
def test_a_model_exactly_the_tolerance_below_passes(correct, passes):
    """Percentages of 5,000: 91.84 - 0.3 is 91.54 here, and 4,577 correct ones are 91.53999999999999."""
    dense = targets.Round(0, 0.0, 0.0, 100 * 0.9184, 0, 0)
    assert targets.Within(0.3).passes(dense._replace(metric=100 * (correct / 5000)), [dense]) == passes


def test_a_budget_of_bytes_is_met_and_used():
    target = targets.AtMost(60, jaxprune.nbytes, rounds=2)
    found = jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), target, epochs=1)
    assert found.best == 2
    assert jaxprune.nbytes(found.params, found.masks) == 59  # 12 of 20 weights, two biases and 3 bytes of mask: 59
    with pytest.raises(ValueError, match=r"A cost of at most 5 cannot be met: with everything pruned it is 11"):
        jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), targets.AtMost(5, jaxprune.nbytes))


def test_the_best_epoch_is_kept_and_patience_ends_a_round():
    metrics = itertools.chain([9.0, 1.0, 3.0, 5.0, 4.0, 2.0, 8.0], itertools.repeat(8.0))
    found = jaxprune.prune_retrain(
        DENSE, jaxprune.magnitude, trainer(evaluate=lambda _: next(metrics)), targets.AtSparsity(0.5, 1),
        epochs=9, patience=2,
    )  # fmt: skip
    assert found.history[1][3:] == (5.0, 4, 2)


def test_the_minimum_ends_the_run_before_the_round_that_missed_it():
    found = jaxprune.prune_retrain(
        DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.9, 3), epochs=1, minimum=-200.0
    )
    assert found.history[-1].metric < -200 <= found.history[-2].metric
    assert found.best == len(found.history) - 2
    jax.tree.map(np.testing.assert_array_equal, found.params, jaxprune.apply(found.params, found.masks))


def test_rewinding_starts_each_round_from_the_snapshot():
    snapshot = {"w": jnp.full_like(GOAL, 0.5), "b": None}
    found = jaxprune.prune_retrain(
        DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), epochs=0, snapshot=snapshot
    )
    assert found.params["w"].tolist() == [[0.0] * 10 + [0.5] * 10]


def test_progress_is_reported_at_the_start_of_a_round_and_after_each_epoch():
    reports = []
    jaxprune.prune_retrain(
        DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 2), epochs=2,
        progress=lambda *report: reports.append(report),
    )  # fmt: skip
    assert [report[:2] for report in reports] == [(0, 2), (1, 2), (2, 2)] * 2
    assert [what.split(",")[0] for *_, what in reports] == ["round 1"] * 3 + ["round 2"] * 3


def test_rounds_on_disk_go_back_to_the_dense_model(tmp_path):
    """The first round falls short, so that the second starts from where the first did."""
    target = targets.Within(20.0, rounds=6)
    kept, plain = (
        jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), target, epochs=1, folder=folder)
        for folder in (tmp_path, None)
    )
    assert [row.parent for row in kept.history[:3]] == [0, 0, 0]
    assert kept.best > 0
    assert kept.history == plain.history
    assert np.array_equal(kept.params["w"], plain.params["w"])


def test_errors_say_what_to_do(tmp_path):
    forgetful = trainer(
        init=lambda params, _: OPTIMIZER.init(params), step=lambda params, state, batch: ({**params, "w": batch}, state)
    )
    with pytest.raises(ValueError, match="'w' has weights where its mask has none after retraining"):
        jaxprune.prune_retrain(DENSE, jaxprune.magnitude, forgetful, targets.AtSparsity(0.5, 1))
    run = {"epochs": 1, "folder": tmp_path}
    jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), **run)
    with pytest.raises(ValueError, match=r"rounds of another run: round 1 pruned round 0 to 0.5, this one would"):
        jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.6, 1), **run)
    other = {**DENSE, "b": jnp.zeros(2)}
    with pytest.raises(ValueError, match="rounds of another model: 'b' differs"):
        jaxprune.prune_retrain(other, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), **run)


def command(folder, result, pause):
    return [sys.executable, str(ROOT / "tests" / "killed_run.py"), str(folder), str(result), str(pause)]


@pytest.mark.whole
def test_a_killed_run_ends_as_it_would_have(tmp_path):
    """Killed in the middle of every round, then left alone; and one that ran through."""
    through, resumed = tmp_path / "through", tmp_path / "resumed"
    options = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    subprocess.run(command(tmp_path / "a", through, 0), check=True, capture_output=True, **options)
    for index, epoch in ((1, 0), (2, 1), (3, 1)):
        with subprocess.Popen(command(tmp_path / "b", resumed, 0.2), stdout=subprocess.PIPE, **options) as process:
            for line in process.stdout:
                assert not line.startswith(f"epoch {index - 2} ")  # it was complete at the kill before
                if line == f"epoch {index} {epoch}\n":
                    process.send_signal(signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
        assert not resumed.exists()
        assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [f"round_{i:04d}" for i in range(index)]
    again = subprocess.run(command(tmp_path / "b", resumed, 0), check=True, capture_output=True, **options)
    assert "epoch 3 0" in again.stdout
    assert "epoch 2 0" not in again.stdout
    assert resumed.read_bytes() == through.read_bytes()


def test_a_round_that_was_killed_while_it_was_written_is_done_again(tmp_path):
    run = {"epochs": 1, "folder": tmp_path}
    target = targets.AtSparsity(0.8, rounds=2)
    found = jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), target, **run)
    (tmp_path / "round_0002").rename(tmp_path / "round_0002.orbax-checkpoint-tmp-1")
    again = jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), target, **run)
    assert again.history == found.history
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.masks), (found.params, found.masks))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_0000", "round_0001", "round_0002"]
