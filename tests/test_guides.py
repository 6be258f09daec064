"""Guides whose code is meant for several processes, run in as many."""

import pathlib
import re
import subprocess
import sys

import pytest

_DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.mark.slow
@pytest.mark.parametrize("page", ["train-shrink-save", "flax-linen", "flax-nnx", "equinox"])
def test_a_saved_small_model_is_loaded_in_a_new_process(page, tmp_path):
    """The blocks of sections 1 to 4 run in one process, those of section 5 in the next; both begin with the model."""
    text = (_DOCS / f"{page}.md").read_text()
    start, *sections = re.split(r"^## .*$", text, flags=re.MULTILINE)
    assert re.findall(r"^## (\d)", text, re.MULTILINE) == ["1", "2", "3", "4", "5"]
    for parts in ([start, *sections[:4]], [start, sections[4]]):
        code = "\n".join(re.findall(r"```python\n(.*?)```", "".join(parts), re.DOTALL))
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert [*tmp_path.glob("*/plan.json")]
