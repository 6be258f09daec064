"""Large models, as a user would write them in Flax."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class ResNet50(nn.Module):
    """ResNet-50 (v1.5), 25.6 M parameters at `width=64`.

    Attributes:
      width: Channels of the stem; every other width follows.
      classes: Outputs.
    """

    width: int = 64
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=True)
        x = nn.relu(norm()(conv(self.width, (7, 7), (2, 2), padding=3)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate((3, 4, 6, 3)):
            width = self.width * 2**stage
            for block in range(blocks):
                strides = (2, 2) if stage and not block else (1, 1)
                y = nn.relu(norm()(conv(width, (1, 1))(x)))
                y = nn.relu(norm()(conv(width, (3, 3), strides, padding=1)(y)))
                y = norm()(conv(4 * width, (1, 1))(y))
                if not block:
                    x = norm()(conv(4 * width, (1, 1), strides)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))


class ViT(nn.Module):
    """ViT-B/16 at its defaults, 86.6 M parameters.

    Attributes:
      width: Of the residual stream.
      heads: Of each attention.
      head_width: Of each head.
      hidden: Of each MLP.
    """

    width: int = 768
    heads: int = 12
    head_width: int = 64
    hidden: int = 3072
    layers: int = 12
    patch: int = 16
    classes: int = 1000

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.patch,) * 2, (self.patch,) * 2, padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.width)), x], 1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, x.shape[1], self.width))
        for _ in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(self.heads, qkv_features=self.heads * self.head_width)
            x = x + attention(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x))))
        return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x)[:, 0])


class MLP(nn.Module):
    """Hidden layers of equal width.

    Attributes:
      width: Of each hidden layer.
      layers: How many there are.
    """

    width: int
    layers: int = 4

    @nn.compact
    def __call__(self, x):
        for _ in range(self.layers):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(10, name="head")(x)


def random(shapes: Any) -> Any:
    """Parameters of these shapes, small enough for the activations of a deep model to stay in range."""
    generator = np.random.default_rng(0)

    def leaf(path: Any, shape: Any) -> Any:
        values = 0.05 * generator.standard_normal(shape.shape, np.float32)
        # Variances and scales near one keep activations in range.
        if jax.tree_util.keystr(path, simple=True).endswith(("var", "scale")):
            values = 1 + np.abs(values)
        return jax.device_put(values)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def decoder_shapes(layers: int, width: int, heads: int, groups: int, head_width: int, hidden: int, vocabulary: int):
    """Abstract bfloat16 parameters of a Llama-like decoder, stacked over layers."""

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    stack = {
        "norm_1": leaf(layers, width),
        "q": leaf(layers, width, heads * head_width),
        "k": leaf(layers, width, groups * head_width),
        "v": leaf(layers, width, groups * head_width),
        "o": leaf(layers, heads * head_width, width),
        "norm_2": leaf(layers, width),
        "gate": leaf(layers, width, hidden),
        "up": leaf(layers, width, hidden),
        "down": leaf(layers, hidden, width),
    }
    return {"embedding": leaf(vocabulary, width), "norm": leaf(width), "head": leaf(width, vocabulary), "layers": stack}


def decoder(params: Any, tokens: Any, *, head_width: int, scanned: bool, base: float = 500_000.0) -> Any:
    """A Llama-like decoder: rotary positions, grouped queries, gated MLP; without a head, the embedding is tied."""
    x = params["embedding"][tokens]
    block = partial(_block, head_width=head_width, base=base)
    if scanned:
        x, _ = lax.scan(lambda x, leaves: (block(leaves, x), None), x, params["layers"])
    else:
        for leaves in params["layers"]:
            x = block(leaves, x)
    return _rms(x, params["norm"]) @ (params["head"] if "head" in params else params["embedding"].T)


def _block(leaves: Any, x: Any, head_width: int, base: float) -> Any:
    batch, time, _ = x.shape
    h = _rms(x, leaves["norm_1"])
    q, k, v = ((h @ leaves[name]).reshape(batch, time, -1, head_width) for name in "qkv")
    q, k = _rotate(q, base), _rotate(k, base)
    repeats = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(y, repeats, axis=2) for y in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(head_width).astype(x.dtype)
    scores = jnp.where(jnp.tril(jnp.ones((time, time), bool)), scores, jnp.finfo(x.dtype).min)
    y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v).reshape(batch, time, -1)
    x = x + y @ leaves["o"]
    h = _rms(x, leaves["norm_2"])
    return x + (jax.nn.silu(h @ leaves["gate"]) * (h @ leaves["up"])) @ leaves["down"]


def _rms(x: Any, scale: Any) -> Any:
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5) * scale


def _rotate(x: Any, base: float) -> Any:
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * base ** (-jnp.arange(half) / half)
    cos, sin = (f(angles).astype(x.dtype)[None, :, None] for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
