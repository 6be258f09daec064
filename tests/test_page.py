"""Reports as pages of HTML."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune._evaluation import _page
from jaxprune._evaluation._layers import drawn

pytestmark = [pytest.mark.dtype_promotion, pytest.mark.rank_promotion]
_HOSTILE = '<script>alert("x")</script>&'
_EMPTY = {"meta", "img", "line", "circle", "polyline"}


class _Nesting(html.parser.HTMLParser):
    """Collects tags and texts, and fails where one is closed that was not opened last."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.scripts = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        assert not any(key in ("src", "href") and value.startswith(("http", "//")) for key, value in attrs if value)
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if tag not in _EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(path):
    text = path.read_text()
    found = _Nesting()
    found.feed(text)
    assert found.open == []
    assert "http" not in re.sub(r"http://www.w3.org\S*", "", text)
    return found


def regression(params, x):
    return x @ params[_HOSTILE]["kernel"] + params[_HOSTILE]["bias"]


def evidence(**options):
    key = jax.random.key(0)
    params = {_HOSTILE: {"kernel": jax.random.normal(key, (32, 16)), "bias": jnp.zeros(16)}}
    x = jax.random.normal(jax.random.key(1), (20, 32))
    y = regression(params, x)
    masks = jaxprune.magnitude(params, 0.75)
    metrics = {"loss": lambda fun, p: 1 + jnp.mean((fun(p, x) - y) ** 2), "length": lambda fun, p: 3.0}
    pruned = jaxprune.apply(params, masks)
    return jaxprune.report((regression, params), (regression, pruned), x, metrics=metrics, masks=masks, **options)


def test_any_task_has_a_report_by_its_own_metrics():
    found = evidence(requested=0.75)
    assert found.before.metrics == {"loss": 1.0, "length": 3.0}
    assert found.after.metrics["loss"] > 2
    row = found.rows()[0]
    assert row[:2] == ("loss", "1")
    assert row[3] == f"{found.after.metrics['loss'] - 1:+.4g}, {100 * (found.after.metrics['loss'] - 1):+.1f} %"
    assert found.before.macs_by_leaf == {f"{_HOSTILE}/kernel": 512.0}
    assert found.after.macs_by_leaf == {f"{_HOSTILE}/kernel": 128.0}
    assert found.verdict()[0] == "75.00 % of the weights of the pruned leaves are gone. 75.00 % was asked for."
    assert "It is not faster as it is" in found.verdict()[-1]


def test_a_metric_that_is_not_a_number_is_named():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r"`metrics\['loss'\]` gives nan before pruning"):
        jaxprune.report((regression, {}), (regression, {}), x, metrics={"loss": lambda fun, p: jnp.nan})
    with pytest.raises(ValueError, match=r"takes `labels` for a classifier, .* got both"):
        jaxprune.report((regression, {}), (regression, {}), x, jnp.zeros(2), metrics={"loss": lambda fun, p: 1.0})


def test_the_page_is_whole_says_the_numbers_and_runs_nothing_of_the_user_s(tmp_path):
    found = evidence(convergence=jaxprune.Convergence(np.linspace(3, 0, 900), np.linspace(3, 1, 900)))
    found.to_html(tmp_path / "run.html", _HOSTILE)
    page = parsed(tmp_path / "run.html")
    assert page.scripts == 1
    assert page.texts.count(_HOSTILE) == 2
    text = " ".join(page.texts)
    for cell in ("75.00 %", f"{found.after.metrics['loss']:.4g}", "512", "128", f"{_HOSTILE}/kernel"):
        assert cell in text
    assert (tmp_path / "run.html").stat().st_size < 100_000
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["after"]["loss"] == found.after.metrics["loss"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html", "run.json"]


def test_layers_show_what_is_kept_and_how_weights_lie():
    kernel = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
    masks = {"kernel": np.array([[True, True, False, False]])}
    leaves = jaxprune.summary({"kernel": kernel}, masks)
    (layer,) = drawn({"kernel": kernel}, {"kernel": kernel}, masks, leaves)
    assert layer.kept.tolist() == [[1, 1, 0, 0]] * 2
    assert layer.before.sum() == pytest.approx(1)
    assert layer.after.sum() == pytest.approx(0.5)
    big = np.zeros((3, 400, 500), np.float32)
    big[:, :, 250:] = 1
    (layer,) = drawn({"k": big}, {"k": big}, {"k": big > 0}, jaxprune.summary({"k": big}, {"k": big > 0}))
    assert layer.kept.shape == (96, 96)
    assert layer.kept.mean() == pytest.approx(0.5, abs=0.01)
    assert layer.kept[:, :48].max() == 0


def test_runs_in_a_folder_are_compared(tmp_path):
    (tmp_path / "deep").mkdir()
    evidence().to_html(tmp_path / "deep" / "first.html", "first")
    evidence().to_html(tmp_path / "second.html", "second")
    (tmp_path / "other.json").write_text("{}")
    assert jaxprune.overview(tmp_path) == tmp_path / "index.html"
    page = parsed(tmp_path / "index.html")
    assert {"first", "second", "2 runs, from 75.00% to 75.00% sparsity."} <= set(page.texts)
    assert 'href="deep/first.html"' in (tmp_path / "index.html").read_text()
    (tmp_path / "second.json").write_text((tmp_path / "second.json").read_text().replace("0.75", "0.5"))
    with pytest.raises(ValueError, match=r"second.json' is damaged"):
        jaxprune.overview(tmp_path)


@pytest.mark.parametrize("points", [[(0.5, 1.0)], [(0.0, 0.0), (0.0, 0.0)], [(0.1, -1e9), (0.9, 1e9)], []])
def test_charts_of_few_or_far_points_are_drawn(points):
    drawn_chart = _page.chart({"line": points}, "x", "y")
    assert "nan" not in drawn_chart
    assert drawn_chart.count("<circle") == len(points)


def _browser():
    return next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)


@pytest.mark.whole
@pytest.mark.skipif(_browser() is None, reason="needs a browser")
def test_a_browser_sorts_the_table_and_takes_a_picture(tmp_path):
    """By the browser's command line: a script that clicks is put at the end of the page, which is then read back."""
    key = jax.random.key(0)
    params = {f"layer_{i}": {"kernel": jax.random.normal(key, (8 * (1 + i % 3), 16))} for i in range(5)}
    masks = jaxprune.magnitude(params, 0.5)
    fun = lambda p, x: x @ p["layer_0"]["kernel"]  # noqa: E731
    found = jaxprune.report(
        (fun, params), (fun, params), jnp.ones((2, 8)), metrics={"one": lambda f, p: 1}, masks=masks
    )
    found.to_html(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    click = """<script>
      const button = [...document.querySelectorAll("th button")].find(b => b.textContent === "weights");
      button.click(); button.click();
      const rows = button.closest("table").tBodies[0].rows;
      document.title = [...rows].map(row => row.cells[2].textContent).join(" ");
    </script></body>"""
    (tmp_path / "clicked.html").write_text(text.replace("</body>", click))
    flags = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
    ]  # fmt: skip
    address = (tmp_path / "clicked.html").as_uri()
    command = [_browser(), *flags, "--dump-dom", address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.search(r"<title>([^<]*)</title>", shown)[1] == "384 256 256 128 128"
    for size in ("1280,2000", "360,2400"):
        picture = tmp_path / f"{size.partition(',')[0]}.png"
        command = [_browser(), *flags, f"--window-size={size}", f"--screenshot={picture}", address]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000
    kept = pathlib.Path.cwd() / ".pytest_cache" / "pages"
    kept.mkdir(parents=True, exist_ok=True)
    for picture in tmp_path.glob("*.png"):
        shutil.copy(picture, kept)
