"""What the benchmarks store: nothing is lost before its replacement is there, and what is stored is called stored."""

import json

import pytest

from benchmarks import accuracy, rows
from benchmarks.collectives import collectives


def test_fresh_rows_replace_those_of_the_same_run_alone(tmp_path):
    path, fresh = tmp_path / "rows.jsonl", tmp_path / "rows.fresh.jsonl"
    rows.append(path, [{"seed": seed, "protocol": 1, "accuracy": 90} for seed in (0, 1)])
    rows.append(fresh, [{"seed": 1, "protocol": 1, "accuracy": 91}, {"seed": 2, "protocol": 1, "accuracy": 92}])
    rows.replace(path, fresh, ("seed", "protocol"))
    assert [(row["seed"], row["accuracy"]) for row in rows.read(path, 1)] == [(0, 90), (1, 91), (2, 92)]
    assert [found.name for found in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_stored_row_that_is_not_found_again_is_an_error(capsys):
    assert rows.compare("a run", 91.1, 91.2, 1.0)
    assert not rows.compare("a run", 91.1, 85.0, 1.0)
    assert "stored 91.10, measured 85.00; they DIFFER by more than 1" in capsys.readouterr().out
    rows.conclude([True])
    with pytest.raises(SystemExit, match="Stored rows are not what is measured"):
        rows.conclude([True, False])


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The benchmark of accuracies, with trainings that take no time: what it stored, trained and put in the history."""
    cache, trained, history = tmp_path / "accuracy.jsonl", [], []

    def train(run, data):
        trained.append(run)
        row = {**run._asdict(), "accuracy": 90.0 + run.seed, "achieved": run.sparsity, "seconds": 1.0}
        return {**row, "protocol": accuracy._PROTOCOL[run.epochs]}

    def in_processes(question, argv, workers):
        accuracy.main([*argv, "--workers", "1", "--worker", "0"])

    monkeypatch.setattr(accuracy, "_CACHE", cache)
    monkeypatch.setattr(accuracy, "train", train)
    monkeypatch.setattr(accuracy, "fashion_mnist", lambda folder: None)
    monkeypatch.setattr(accuracy.rows, "in_processes", in_processes)
    monkeypatch.setattr(accuracy.history, "append", lambda question, figures: history.append(figures))
    return cache, trained, history


def stored(cache):
    return [json.loads(line) for line in cache.read_text().splitlines()]


def test_by_default_a_stored_row_is_measured_again(bench, capsys):
    cache, trained, history = bench
    accuracy.main(["--seeds", "0"])
    every = len(trained)
    assert every == len(accuracy.planned([0])) == len(stored(cache))
    assert len(history) == 1
    accuracy.main(["--seeds", "0"])
    assert len(trained) == every + 1
    assert len(history) == 1  # what is stored was not measured now
    out = capsys.readouterr().out
    assert f"Stored in accuracy.jsonl: {every} rows, 0 of them measured in this run." in out
    assert "measured again: Run(" in out
    assert "stored 90.00, measured 90.00; they agree" in out
    accuracy.main(["--seeds", "0", "--tables"])
    assert len(trained) == every + 1


def test_another_result_ends_in_an_error(bench):
    cache, *_ = bench
    accuracy.main(["--seeds", "0", "--epochs", "10"])
    rows_now = [{**row, "accuracy": 70.0} for row in stored(cache)]
    cache.write_text("".join(json.dumps(row) + "\n" for row in rows_now))
    with pytest.raises(SystemExit, match="not what is measured here"):
        accuracy.main(["--seeds", "0", "--epochs", "10"])


def test_fresh_keeps_the_stored_rows_until_there_are_others(bench, monkeypatch):
    cache, trained, _ = bench
    accuracy.main(["--seeds", "0", "1", "--epochs", "10"])
    before = cache.read_text()

    def no_data(folder):
        raise ValueError("no data")

    with monkeypatch.context() as without:
        without.setattr(accuracy, "fashion_mnist", no_data)
        with pytest.raises(ValueError, match="no data"):
            accuracy.main(["--seeds", "0", "--epochs", "10", "--fresh"])
    assert cache.read_text() == before
    trained.clear()
    accuracy.main(["--seeds", "0", "--epochs", "10", "--fresh"])
    assert len(trained) == len(stored(cache)) // 2
    assert len(stored(cache)) == len(before.splitlines())
    assert {row["seed"] for row in stored(cache)} == {0, 1}


PROGRAM = """
  %all-reduce.1 = (s32[2]{0:T(128)S(1)}, f32[]{:S(6)}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %all-gather-start.2 = ((pred[16,16]{0,1}, bf16[4]{0}), (pred[16,32]{0,1}, bf16[8]{0})) all-gather-start(%a, %b)
  %all-gather-done.2 = (pred[16,32]{0,1}, bf16[8]{0}) all-gather-done(%all-gather-start.2)
  %permute = (s32[16]{0}, s32[16]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%c), channel_id=2
  ROOT %all-to-all = c64[3,5]{1,0} all-to-all(%d), metadata={op_name="all-reduce(x)"}
"""


def test_what_devices_exchange_is_read_from_a_program():
    assert collectives(PROGRAM) == [
        ("all-reduce", 3, 12), ("all-gather", 520, 528), ("collective-permute", 16, 64), ("all-to-all", 15, 120),
    ]  # fmt: skip
