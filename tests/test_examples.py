"""`jaxprune run`, on the example programs and on small ones."""

import pathlib

import jax
import numpy as np
import pytest

import jaxprune
from jaxprune import _cli, io, structured

pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]
_EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"

_PROGRAM = """
import jax, jax.numpy as jnp, jaxprune, optax

params = {"first": {"kernel": jax.random.normal(jax.random.key(0), (8, 16))}, "last": {"kernel": jnp.ones((16, 4))}}
batches = lambda: (jax.random.normal(jax.random.key(i), (12, 8)) for i in range(3))
target = next(batches()) @ jnp.ones((8, 4))


def fun(params, x):
    return jax.nn.relu(x @ params["first"]["kernel"]) @ params["last"]["kernel"]


def loss(params):
    return jnp.mean((fun(params, next(batches())) - target) ** 2)


def evaluate(fun, params):
    return jnp.mean(jnp.abs(fun(params, next(batches())) - target))


optimizer = jaxprune.masked(optax.sgd(1e-4), None)


def step(params, state, batch):
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


trainer = jaxprune.Trainer(
    init=lambda params, masks: jaxprune.masked(optax.sgd(1e-4), masks).init(params),
    step=jax.jit(step),
    batches=lambda round, epoch: range(2),
    evaluate=lambda params: -loss(params),
)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "program.py").write_text(_PROGRAM)
    return tmp_path / "program.py"


def run(*arguments):
    return _cli.main(["run", *map(str, arguments)])


@pytest.mark.parametrize(
    "method",
    "admm dft grasp lamp magnitude random ria slim snip sparsegpt synflow taylor variance wanda".split(),
)
def test_every_method_serves_a_program(method, program, tmp_path, capsys):
    assert run(program, "--method", method, "--sparsity", "0.5", "-o", tmp_path / "out") == 0
    assert "evaluate" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "report.json", "report.md", "model" if method == "slim" else "params.safetensors"}
    if method == "slim":
        fun = lambda params, x: jax.nn.relu(x @ params["first"]["kernel"]) @ params["last"]["kernel"]  # noqa: E731
        small, params, _ = structured.load(tmp_path / "out" / "model", fun)
        assert small(params, np.ones((1, 8), np.float32)).shape == (1, 4)
        assert jaxprune.count_params(params) == 96
    elif method not in ("dft", "variance"):
        saved = io.load(tmp_path / "out" / "params.safetensors", separator="/")
        assert float(jaxprune.sparsity(saved)) == pytest.approx(0.5, abs=0.01)


def test_each_model_is_evaluated_once(program, tmp_path, capsys):
    text = "\n\ndef evaluate(fun, params):\n    print('evaluated')\n    return {'one': 1.0, 'two': 2.0}\n"
    program.write_text(_PROGRAM + text)
    assert run(program, "-o", tmp_path / "out") == 0
    assert capsys.readouterr().out.count("evaluated") == 2


def test_a_forecast_goes_into_the_report(program, tmp_path):
    assert run(program, "--pattern", "2:4", "--forecast", "-o", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>Will it be faster?</h2>" in page
    assert "Faster on this device?" in page
    assert "It is not faster as it is" not in page


def test_rounds_use_the_program_s_trainer(program, tmp_path):
    assert run(program, "--rounds", "2", "--sparsity", "0.75", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "rounds.html").exists()
    assert "75.00 %" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("fun = 1\nparams = 2\n", [], "must define `fun`, `params` and `batches`; it has no `batches`"),
        ("x = 1\ny = [][3]\n", [], "line 2: IndexError: list index out of range"),
        ("x = (\n", [], "SyntaxError"),
        (_PROGRAM + "del loss\n", ["--method", "snip"], "needs a `loss(params)`"),
        (_PROGRAM, ["--method", "taylor", "--rounds", "2"], "Rounds need a `trainer`"),
        (_PROGRAM + "batches = []\n", [], "`batches` must be arrays"),
        (_PROGRAM + "def evaluate(fun, params): return float('nan')\n", [], "`metrics['evaluate']` gives nan"),
        (_PROGRAM, ["--sparsity", "50"], "`sparsity` must be a fraction"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_program_is_said(text, arguments, message, tmp_path, capsys):
    (tmp_path / "program.py").write_text(text)
    assert run(tmp_path / "program.py", "-o", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore:These stay dense")
@pytest.mark.parametrize(
    ("example", "method", "metric", "worst"),
    [
        ("digits_linen", "slim", "accuracy", 0.95),
        ("text_nnx", "sparsegpt", "perplexity", 10.0),
        ("digits_equinox", "admm", "accuracy", 0.85),
    ],
)
def test_the_examples_keep_their_quality(example, method, metric, worst, tmp_path, capsys):
    path = _EXAMPLES / f"{example}.py"
    assert run(path, "--method", method, "--sparsity", "0.5", "-o", tmp_path / "out") == 0
    row = next(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(metric))
    after = float(row[3]) / 100 if row[2] == "%" else float(row[2])
    assert after >= worst if metric == "accuracy" else after <= worst
    assert (tmp_path / "out" / "report.html").stat().st_size < 2_000_000
