"""Models that others wrote: `pytest -m packages`, after `pip install -e ".[test,packages]"`."""
