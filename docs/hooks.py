"""Called by MkDocs while it builds the site; `mkdocs.yml` names this file."""

import re

_PRIVATE = re.compile(r'<span title="jaxprune\.(?:\w+\.)*_[^"]*">(.*?)</span>')


def on_post_page(output, **_):
    """Takes out tooltips that name a private module; mkdocstrings puts them on types that are not documented."""
    return _PRIVATE.sub(r"\1", output)
