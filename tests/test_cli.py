"""The command line."""

import numpy as np
import pytest

import jaxprune
from jaxprune import _cli, io, patterns

_COMMANDS = ("inspect", "prune", "compare", "pack", "unpack", "run", "report", "demo")


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    params = {
        "embed": {"weight": rng.standard_normal((24, 16), dtype=np.float32)},
        "mlp": {"weight": rng.standard_normal((32, 16), dtype=np.float32)},
        "norm": {"weight": np.ones(16, np.float32)},
    }
    io.save(tmp_path / "model.safetensors", params)
    return params


def run(capsys, *arguments):
    code = _cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_checkpoint_goes_in_and_a_pruned_one_comes_out(model, tmp_path, capsys):
    source, pruned, packed = (tmp_path / f"{name}.safetensors" for name in ("model", "pruned", "packed"))
    code, out, _ = run(capsys, "prune", source, "-o", pruned, "--pattern", "2:4", "--where", "mlp")
    assert code == 0
    assert out.splitlines()[1].split() == ["mlp/weight", "32×16", "512", "256", "50.00", "%"]
    expected = jaxprune.magnitude(model, pattern=patterns.NM(2, 4, axis=-1), where=lambda path, _: "mlp" in path)
    assert np.array_equal(io.load(pruned)["mlp"]["weight"] != 0, expected["mlp"]["weight"])
    code, out, _ = run(capsys, "inspect", pruned, "--html", tmp_path / "page.html")
    assert code == 0
    page = (tmp_path / "page.html").read_text()
    assert '<td data-value="0.5">50.00 %</td>' in page
    assert "mlp/weight" in page
    assert out.splitlines()[2].split()[:6] == ["mlp/weight", "32×16", "float32", "50.00", "%", "2:4"]
    code, out, _ = run(capsys, "compare", source, pruned)
    assert code == 1
    assert "2 of 3 arrays are the same." in out
    code, out, _ = run(capsys, "pack", pruned, "-o", packed)
    assert code == 0
    assert out.strip() == f"{pruned.stat().st_size:,} bytes became {packed.stat().st_size:,}."
    assert run(capsys, "unpack", packed, "-o", tmp_path / "again.npz")[0] == 0
    assert run(capsys, "compare", pruned, tmp_path / "again.npz")[0] == 0


def test_rules_come_from_a_file_and_are_explained_first(model, tmp_path, capsys):
    (tmp_path / "rules.toml").write_text('[[rule]]\npath = "mlp"\nsparsity = 0.75\n')
    arguments = [
        "prune",
        tmp_path / "model.safetensors",
        "-o",
        tmp_path / "out.npz",
        "--rules",
        tmp_path / "rules.toml",
    ]
    code, out, _ = run(capsys, *arguments, "--dry-run")
    assert code == 0
    assert "No rule matches 'embed/weight': dense." in out
    assert not (tmp_path / "out.npz").exists()
    assert run(capsys, *arguments)[0] == 0
    pruned = io.load(tmp_path / "out.npz")
    assert np.count_nonzero(pruned["mlp"]["weight"]) == 128
    assert np.array_equal(pruned["embed"]["weight"], model["embed"]["weight"])
    code, _, err = run(capsys, *arguments, "--sparsity", "0.5")
    assert code == 2
    assert "--rules takes the place of --sparsity" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nothing.npz"], "jaxprune: There is no 'nothing.npz'."),
        (["prune", "{m}", "-o", "{m}"], "is there already, and nothing is written over"),
        (["prune", "{m}", "-o", "{d}/o.npz", "--sparsity", "50"], "`sparsity` must be a fraction"),
        (["prune", "{m}", "-o", "{d}/o.npz", "--pattern", "x"], "the pattern must be one of unstructured"),
        (["prune", "{m}", "-o", "{d}/o.npz", "--where", "nowhere"], "decides about no leaf"),
        (["prune", "{m}", "-o", "{d}/o.npz", "--method", "l3"], "Invalid value for '--method'"),
        (["prune", "{m}"], "Missing option '-o'"),
        (["prune", "{m}", "-o", "{d}/o.npz", "--packed"], "What is packed is a `.safetensors` file"),
        (["shrink"], "No such command 'shrink'"),
        (["demo", "--sparsity", "90"], "90"),
    ],
)
@pytest.mark.usefixtures("model")
def test_errors_are_said_without_a_traceback(arguments, message, tmp_path, capsys):
    filled = [a.format(m=tmp_path / "model.safetensors", d=tmp_path) for a in arguments]
    code, out, err = run(capsys, *filled)
    assert code == 2
    assert message in err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_shows_an_example(command, capsys):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"Example:\n    jaxprune {command}" in out


def test_help_lists_the_commands_and_the_version_is_the_package_s(capsys):
    _, out, _ = run(capsys, "--help")
    assert [line.split()[0] for line in out[out.index("Commands:") :].splitlines()[1:]] == sorted(_COMMANDS)
    assert jaxprune.__version__ in run(capsys, "--version")[1]


def test_lists_of_the_demo_are_written_as_one_likes(monkeypatch, capsys):
    from jaxprune._demo import main

    found = []
    monkeypatch.setattr(main, "run", found.append)
    for arguments in (["0.5", "0.9"], ["0.5", "--sparsity", "0.9"]):
        assert run(capsys, "demo", "--strategies", "slim", "global", "--seed", "3", "--sparsity", *arguments)[0] == 0
    assert found[0] == found[1]
    assert (found[0].strategies, found[0].sparsities, found[0].seed) == (("slim", "global"), (0.5, 0.9), 3)


def test_reports_in_a_folder_are_compared(tmp_path, capsys):
    code, _, err = run(capsys, "report", tmp_path)
    assert code == 2
    assert "has no reports" in err
    params = {"kernel": np.ones((2, 2), np.float32)}
    model = (lambda p, x: x @ p["kernel"], params)
    jaxprune.report(model, model, np.ones((1, 2), np.float32), metrics={"one": lambda f, p: 1}).to_html(
        tmp_path / "a.html"
    )
    assert run(capsys, "report", tmp_path)[:2] == (0, f"Wrote {tmp_path / 'index.html'}.\n")
