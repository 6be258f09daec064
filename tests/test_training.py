"""Rounds of pruning and retraining: what is tried next, what is kept, and runs that are killed."""

import functools
import itertools
import math
import os
import pathlib
import re
import shutil
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
    other = {**DENSE, "b": jnp.zeros(2)}
    with pytest.raises(ValueError, match="rounds of another run: in its params 'b' differs"):
        jaxprune.prune_retrain(other, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), **run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 2}, "its epochs was 1, here it is 2"),
        ({"patience": 1}, "its patience was None, here it is 1"),
        ({"minimum": -1e6}, "its minimum was -inf, here"),
        ({"target": targets.Within(3000.0, rounds=2)}, "its target was Within(tolerance=2000.0"),
        ({"target": targets.AtSparsity(0.5, 2)}, "its target was Within("),
        ({"snapshot": {"w": GOAL + 1, "b": None}}, "in its snapshot 'w' differs"),
        ({"snapshot": None}, "its snapshot was"),
        ({"strategy": jaxprune.lamp}, "its strategy was magnitude, here it is lamp"),
        ({"strategy": functools.partial(jaxprune.magnitude, where=lambda path, _: path == "w")}, "its strategy was"),
        ({"trainer": trainer(evaluate=lambda params: -jnp.sum(params["w"] ** 2))}, "its dense model has the metric"),
    ],
)  # fmt: skip
def test_a_resumed_run_must_be_made_of_the_same(change, message, finished_run):
    folder, run = finished_run
    with pytest.raises(ValueError, match=re.escape(message)):
        jaxprune.prune_retrain(DENSE, **{**run, **change}, folder=folder)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A folder with three rounds, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("finished")
    run = {
        "strategy": jaxprune.magnitude, "trainer": trainer(), "target": targets.Within(2000.0, rounds=2), "epochs": 1,
        "snapshot": {"w": GOAL, "b": None},
    }  # fmt: skip
    jaxprune.prune_retrain(DENSE, **run, folder=folder)
    return folder, run


def test_a_strategy_of_the_same_name_that_prunes_otherwise_is_told_by_its_masks(tmp_path):
    def strategy(params, sparsity):
        return jaxprune.magnitude(params if kept == "largest" else {**params, "w": 1 / params["w"]}, sparsity)

    run = {"epochs": 1, "folder": tmp_path}
    kept = "largest"
    jaxprune.prune_retrain(DENSE, strategy, trainer(), targets.AtSparsity(0.5, 1), **run)
    kept = "smallest"
    with pytest.raises(ValueError, match=r"its masks of round 1 differ at 'w'\. Give the same strategy"):
        jaxprune.prune_retrain(DENSE, strategy, trainer(), targets.AtSparsity(0.5, 1), **run)


def test_only_what_a_run_wrote_is_removed(tmp_path):
    """Notes beside the rounds stay, whatever they are called; so does what only looks half-written."""
    run = {"epochs": 1, "folder": tmp_path}
    jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), **run)
    elsewhere = tmp_path.with_name("elsewhere")
    shutil.copytree(tmp_path / "round_0001", elsewhere)
    ours = ["round_0002.orbax-checkpoint-tmp", "round_0001.orbax-checkpoint-tmp-7"]
    for name in (*ours, "round_0002_notes", "round_0001.backup"):
        shutil.copytree(tmp_path / "round_0001", tmp_path / name)
    (tmp_path / "round_0003.orbax-checkpoint-tmp-1").mkdir()
    (tmp_path / "round_0002.orbax-checkpoint-tmp-link").symlink_to(elsewhere)
    (tmp_path / "round_0002.txt").write_text("mine")
    before = set(tmp_path.iterdir())
    jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), **run)
    assert before - set(tmp_path.iterdir()) == {tmp_path / name for name in ours}
    assert (elsewhere / "jaxprune.json").exists()


@pytest.mark.parametrize("name", ["round_0001", "round_0002", "round_0001.orbax-checkpoint-tmp"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_in_the_way_is_named_before_anything_is_trained(name, is_folder, tmp_path):
    way = tmp_path / name
    if is_folder:
        way.mkdir()
    (way / "mine" if is_folder else way).write_text("mine")
    with pytest.raises(ValueError, match=name):
        jaxprune.prune_retrain(
            DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), epochs=1, folder=tmp_path
        )
    assert (way / "mine" if is_folder else way).read_text() == "mine"


@pytest.mark.wrong_types
def test_odd_leaves_are_resumed(tmp_path):
    """NaN in a statistic, a random key, leaves without elements, bfloat16, and what is not an array."""
    dense = {
        **DENSE, "statistic": jnp.array([jnp.nan, jnp.inf]), "key": jax.random.key(3), "empty": jnp.ones((0, 4)),
        "half": jnp.ones(3, jnp.bfloat16), "host": np.ones(3, np.float32), "name": "model",
    }  # fmt: skip

    def odd_step(params, state, batch):
        trained, state = step({name: params[name] for name in DENSE}, state, batch)
        return {**params, **trained, "key": jax.random.fold_in(params["key"], 1)}, state

    odd = trainer(
        init=lambda params, masks: trainer().init(*({k: t[k] for k in DENSE} for t in (params, masks))), step=odd_step
    )
    run = {"epochs": np.int64(1), "folder": tmp_path}
    strategy = functools.partial(jaxprune.magnitude, where=lambda path, leaf: path in ("w", "empty"))
    target = targets.AtSparsity(np.float32(0.75), 2)  # numbers of NumPy are as good
    first, again = (jaxprune.prune_retrain(dense, strategy, odd, target, **run) for _ in range(2))
    assert again.history == first.history
    assert again.params["name"] == "model"
    assert again.params["empty"].shape == (0, 4)
    for name in ("w", "b", "statistic", "half", "host"):
        np.testing.assert_array_equal(again.params[name], first.params[name])
    assert jnp.array_equal(jax.random.key_data(again.params["key"]), jax.random.key_data(first.params["key"]))


def test_a_second_run_in_a_folder_says_so_at_once(tmp_path):
    def again(params, state, batch):
        with pytest.raises(ValueError, match=f"Another run is using '{tmp_path}'"):
            jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), folder=tmp_path)
        return step(params, state, batch)

    run = {"epochs": 1, "folder": tmp_path}
    jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(step=again), targets.AtSparsity(0.5, 1), **run)
    jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), targets.AtSparsity(0.5, 1), **run)  # it is unlocked


@pytest.mark.parametrize(
    ("metrics", "what"),
    [
        ([np.nan], "nan for the dense model"), ([-np.inf], "-inf for the dense model"),
        ([1.0, 1.0, np.nan], "nan for round 1"), ([1.0, np.inf], "inf for round 1"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_compared_is_named(metrics, what):
    values = iter(metrics)
    with pytest.raises(ValueError, match=f"`Trainer.evaluate` returned {what}"):
        jaxprune.prune_retrain(
            DENSE, jaxprune.magnitude, trainer(evaluate=lambda _: next(values)), targets.AtSparsity(0.5, 1), epochs=2
        )


def test_a_diverged_round_counts_as_the_worst():
    values = itertools.chain([1.0], itertools.repeat(-np.inf))
    found = jaxprune.prune_retrain(
        DENSE, jaxprune.magnitude, trainer(evaluate=lambda _: next(values)), targets.Within(0.5, rounds=2), epochs=1
    )
    assert found.best == 0


def test_a_cost_that_is_nan_is_named():
    target = targets.AtMost(60, lambda params, masks: float("nan"))
    with pytest.raises(ValueError, match=r"`AtMost\.cost` is NaN at sparsity 0"):
        jaxprune.prune_retrain(DENSE, jaxprune.magnitude, trainer(), target)


def test_batches_that_are_used_up_are_named():
    once = iter([GOAL])
    with pytest.raises(ValueError, match=r"`Trainer\.batches\(1, 1\)` gave no batches"):
        jaxprune.prune_retrain(
            DENSE, jaxprune.magnitude, trainer(batches=lambda index, epoch: once), targets.AtSparsity(0.5, 1), epochs=2
        )


def test_a_step_may_donate_its_state_and_a_state_may_hold_what_it_was_given():
    donating = trainer(
        init=lambda params, masks: (trainer().init(params, masks), masks, params),
        step=jax.jit(
            lambda params, state, batch: ((out := step(params, state[0], batch))[0], (out[1], *state[1:])),
            donate_argnums=(0, 1),
        ),
    )
    for target in (targets.AtSparsity(0.75, 2), targets.Within(20.0, rounds=3)):
        plain, found = (
            jaxprune.prune_retrain(DENSE, jaxprune.magnitude, how, target, epochs=2) for how in (trainer(), donating)
        )
        assert found.history == plain.history
        assert np.array_equal(found.masks["w"], plain.masks["w"])
    assert not DENSE["w"].is_deleted()


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0.5}, "`target` must be a target; got 0.5. Give one such as `jaxprune.targets.AtSparsity(0.5)`"),
        ({"target": targets.AtSparsity}, "`target` must be a target"),
        ({"strategy": 0.9}, "`strategy` must be a function, called as `strategy(params, sparsity)`; got 0.9"),
        ({"trainer": step}, "`trainer` must be a `jaxprune.Trainer`"),
        ({"epochs": 2.5}, "`epochs` must be a whole number"),
        ({"patience": True}, "`patience` must be a whole number"),
        ({"minimum": "0.9"}, "`minimum` must be a single real number"),
        ({"trainer": trainer(step=lambda params, *_: params)}, "must return `(params, state)`, with"),
        ({"trainer": trainer(step=lambda *_: None)}, "must return `(params, state)`, with"),
        ({"trainer": trainer(evaluate=lambda _: (1.0, 2.0))}, "evaluate(params)` must be a single real number"),
        ({"trainer": trainer(evaluate=lambda _: jnp.ones(2))}, "got shape (2,), float32"),
    ],
)  # fmt: skip
def test_wrong_arguments_show_the_right_call(change, message):
    run = {"strategy": jaxprune.magnitude, "trainer": trainer(), "target": targets.AtSparsity(0.5, 1)}
    with pytest.raises(TypeError, match=re.escape(message)):
        jaxprune.prune_retrain(DENSE, **{**run, **change})


@pytest.mark.wrong_types
@pytest.mark.parametrize("name", ["init", "step", "batches", "evaluate"])
def test_a_trainer_takes_functions(name):
    with pytest.raises(TypeError, match=rf"`Trainer\.{name}` must be a function, called as `{name}\(.*got \[1\]"):
        trainer(**{name: [1]})


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    "make",
    [
        lambda: targets.Within(-1), lambda: targets.Within(math.nan), lambda: targets.Within(1, factor=math.nan),
        lambda: targets.Within(1, resolution=math.nan), lambda: targets.Within("1"), lambda: targets.AtMost(9, 5),
        lambda: targets.AtSparsity(math.nan), lambda: targets.AtSparsity("0.5"), lambda: targets.AtSparsity(0.5, 0),
        lambda: targets.AtSparsity(0.5, 1.5), lambda: targets.AtMost(math.nan, jaxprune.nbytes),
        lambda: targets.Within(1, rounds=2.5),
    ],
)  # fmt: skip
def test_targets_check_their_numbers(make):
    with pytest.raises((ValueError, TypeError), match=r"Within|AtSparsity|AtMost"):
        make()


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
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["report.html", "round_0000", "round_0001", "round_0002"]
