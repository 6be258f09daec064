"""Two English texts that the package gensim contains for its tests: Wikipedia, and news."""

import bz2
import html
import re
from pathlib import Path
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from benchmarks import packages, smollm

_PACKAGE = ("gensim", "4.4.0")
_SHORTEST = 4000
_TEST = 4


def wikipedia(cache: Path = packages.CACHE) -> tuple[list[str], list[str]]:
    """Articles of over 4,000 characters without their markup: those to calibrate from, and every fourth, to test on."""
    path = packages.member(*_PACKAGE, "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2", cache)
    with bz2.open(path) as file:
        elements = [element for _, element in ElementTree.iterparse(file) if element.tag.endswith("}text")]
    texts = [plain(element.text or "") for element in elements]
    articles = [text for text in texts if len(text) > _SHORTEST]
    return [article for i, article in enumerate(articles) if i % _TEST], articles[::_TEST]


def news(cache: Path = packages.CACHE) -> list[str]:
    """300 articles of the Australian Broadcasting Corporation, of the years 2000 and 2001.

    References:
      Lee, Pincombe and Welsh, 2005, "An Empirical Evaluation of Models of Text Document Similarity".
    """
    return packages.member(*_PACKAGE, "lee_background.cor", cache).read_text().splitlines()


def sequences(
    documents: list[str], tokenizer: smollm.Tokenizer, count: int = 8, length: int = 512
) -> Int[Array, "count length"]:
    """Evenly spaced pieces of the documents, which are joined by the token that ends one."""
    tokens = np.array([token for text in documents for token in (*tokenizer(text), smollm.END)])
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    return jnp.asarray(tokens[starts[:, None] + np.arange(length)], jnp.int32)


_HIDDEN = r"<!--.*?-->|<ref[^>]*/>|<ref.*?</ref>|<(math|gallery|code|pre|timeline)\b.*?</\1>"


def plain(markup: str) -> str:
    """A text without its wiki markup and empty lines; of a link, the text that it shows is kept."""
    text = re.sub(_HIDDEN, "", markup, flags=re.DOTALL | re.IGNORECASE)
    text = _without_nested(text, r"\{\{", r"\}\}")
    text = _without_nested(text, r"\{\|", r"\|\}")
    text = re.sub(r"\[\[(?:File|Image|Category)(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", "", text, flags=re.IGNORECASE)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[\w+://\S+ ?([^\]]*)\]", r"\1", text)
    text = html.unescape(re.sub(r"<[^>]+>|'{2,}", "", text))
    text = re.sub(r"^=+ *(.*?) *=+ *$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^[*#:;]+ *", "", text, flags=re.MULTILINE)
    return re.sub(r"\n+", "\n", text).strip()


def _without_nested(text: str, opening: str, closing: str) -> str:
    inner = re.compile(f"{opening}(?:(?!{opening}|{closing}).)*{closing}", re.DOTALL)
    while True:
        text, found = inner.subn("", text)
        if not found:
            return text
