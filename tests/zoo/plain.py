"""Models written by hand, without a framework."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.case import Case, floats, integers, kernels


def rms_norm(x, scale):
    return x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-6) * scale


def rotated(x, base=100.0):
    """Rotary position embedding over (batch, time, heads, width)."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1], dtype=x.dtype)[:, None] * base ** (-jnp.arange(half, dtype=x.dtype) / half)[None, :]
    cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v):
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / float(np.sqrt(q.shape[-1]))
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)


def mlp():
    def fun(p, x):
        x = jax.nn.sigmoid(x @ p["first"] + p["bias"][None])
        return jax.nn.relu(x @ p["second"]) @ p["last"]

    return fun, kernels(first=(3, 8), bias=(8,), second=(8, 6), last=(6, 2)), (floats(2, 3),)


def glu():
    def fun(p, x):
        return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]

    return fun, kernels(gate=(4, 8), up=(4, 8), down=(8, 4)), (floats(2, 4),)


def fused_glu():
    def fun(p, x):
        gate, up = jnp.split(x @ p["both"], 2, -1)
        return (jax.nn.gelu(gate) * up) @ p["down"]

    return fun, kernels(both=(4, 16), down=(8, 4)), (floats(2, 4),)


def lstm():
    def fun(p, x):
        def step(carry, x_t):
            h, c = carry
            i, f, g, o = jnp.split(x_t @ p["inputs"] + h @ p["hidden"] + p["bias"][None], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], 6))
        _, hidden = lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))
        return hidden.swapaxes(0, 1) @ p["out"]

    return fun, kernels(inputs=(3, 24), hidden=(6, 24), bias=(24,), out=(6, 2)), (floats(2, 5, 3),)


def selective_scan():
    """Mamba-like: a gated, input-dependent linear recurrence behind a depthwise convolution in time."""

    def fun(p, x):
        u, gate = jnp.split(x @ p["in"], 2, -1)
        u = lax.conv_general_dilated(
            u, p["conv"], (1,), [(2, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=u.shape[-1]
        )
        u = jax.nn.silu(u)
        rank, state = p["dt"].shape[0], p["log_a"].shape[1]
        dt, b, c = jnp.split(u @ p["select"], [rank, rank + state], -1)
        dt = jax.nn.softplus(dt @ p["dt"])
        a = -jnp.exp(p["log_a"])

        def step(h, inputs):
            u_t, dt_t, b_t, c_t = inputs
            h = jnp.exp(dt_t[:, :, None] * a[None]) * h + (dt_t * u_t)[:, :, None] * b_t[:, None, :]
            return h, jnp.einsum("bdn,bn->bd", h, c_t)

        start = jnp.zeros((x.shape[0], *p["log_a"].shape))
        _, y = lax.scan(step, start, tuple(v.swapaxes(0, 1) for v in (u, dt, b, c)))
        y = y.swapaxes(0, 1) + u * p["skip"][None, None]
        return (y * jax.nn.silu(gate)) @ p["out"]

    params = kernels(**{"in": (4, 16)}, conv=(3, 1, 8), select=(8, 10), dt=(2, 8), log_a=(8, 4), skip=(8,), out=(8, 4))
    return fun, params, (floats(2, 5, 4),)


def grouped_query(heads=4, groups=2, width=4):
    def build():
        def fun(p, x):
            batch, time, _ = x.shape
            x = x @ p["embed"]
            q = (x @ p["q"]).reshape(batch, time, heads, width)
            k = (x @ p["k"]).reshape(batch, time, groups, width)
            v = (x @ p["v"]).reshape(batch, time, groups, width)
            q, k = rotated(q), rotated(k)
            k, v = (jnp.repeat(y, heads // groups, axis=2) for y in (k, v))
            x = x + attend(q, k, v).reshape(batch, time, heads * width) @ p["o"]
            return rms_norm(x, p["scale"][None, None]) @ p["head"]

        n, m = heads * width, groups * width
        params = kernels(embed=(3, 8), q=(8, n), k=(8, m), v=(8, m), o=(n, 8), scale=(8,), head=(8, 2))
        return fun, params, (floats(2, 5, 3),)

    return build


def multi_query():
    def fun(p, x):
        batch, time, _ = x.shape
        q = (x @ p["q"]).reshape(batch, time, 4, 4)
        k, v = x @ p["k"], x @ p["v"]
        scores = jax.nn.softmax(jnp.einsum("bthd,bsd->bhts", q, k))
        return jnp.einsum("bhts,bsd->bthd", scores, v).reshape(batch, time, 16) @ p["o"]

    return fun, kernels(q=(3, 16), k=(3, 4), v=(3, 4), o=(16, 2)), (floats(2, 5, 3),)


def fused_qkv():
    def fun(p, x):
        batch, time, _ = x.shape
        qkv = (x @ p["qkv"] + p["bias"][None, None]).reshape(batch, time, 3, 4, 4)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        return attend(q, k, v).reshape(batch, time, 16) @ p["o"]

    return fun, kernels(qkv=(3, 48), bias=(48,), o=(16, 2)), (floats(2, 5, 3),)


def tied_language_model():
    def fun(p, tokens):
        x = p["embedding"][tokens] + p["positions"][None, : tokens.shape[1]]
        x = x + jax.nn.gelu(x @ p["up"]) @ p["down"]
        return rms_norm(x, p["scale"][None, None]) @ p["embedding"].T

    params = kernels(embedding=(11, 8), positions=(6, 8), up=(8, 16), down=(16, 8), scale=(8,))
    return fun, params, (integers(2, 6),)


def mixture_of_experts():
    """Whole experts can go: the router still names them, and nothing is added for it."""

    def fun(p, x):
        x = x @ p["embed"]
        weights, chosen = lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
        gates = jnp.sum(jax.nn.one_hot(chosen, 4, dtype=x.dtype) * weights[..., None], axis=-2)
        hidden = jax.nn.relu(jnp.einsum("bd,edf->ebf", x, p["up"]))
        mixed = jnp.einsum("ebf,efd,be->bd", hidden, p["down"], gates)
        return (x + mixed) @ p["head"]

    params = kernels(embed=(3, 8), router=(8, 4), up=(4, 8, 6), down=(4, 6, 8), head=(8, 2))
    return fun, params, (floats(2, 3),)


def graph():
    def fun(p, x, senders, receivers):
        x = x @ p["embed"]
        messages = jax.nn.relu(jnp.concatenate([x[senders], x[receivers]], -1) @ p["message"])
        summed = jax.ops.segment_sum(messages, receivers, x.shape[0])
        x = x + summed @ p["update"]
        return x @ p["out"]

    params = kernels(embed=(3, 8), message=(16, 6), update=(6, 8), out=(8, 2))
    return fun, params, (floats(5, 3), integers(7), integers(7))


def branches_and_loops():
    def fun(p, x):
        x = jax.nn.relu(x @ p["first"])
        x = lax.cond(x.sum() > 0, lambda x: x @ p["yes"], lambda x: jnp.tanh(x @ p["no"]), x)
        x = lax.fori_loop(0, 3, lambda _, x: x + jax.nn.relu(x @ p["loop"]), x)
        _, x = lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1])), (0, x))
        return x @ p["last"]

    params = kernels(first=(3, 8), yes=(8, 6), no=(8, 6), loop=(6, 6), last=(6, 2))
    return fun, params, (floats(2, 3),)


def scanned(remat=False, dropout=False):
    """A stack of pre-norm blocks as one scan over stacked leaves."""

    def build():
        def fun(p, x, *key):
            def block(x, layer):
                leaves, number = layer
                h = rms_norm(x, leaves["scale"][None])
                h = jax.nn.gelu(h @ leaves["up"] + leaves["bias"][None])
                if dropout:
                    keep = jax.random.bernoulli(jax.random.fold_in(key[0], number), 0.7, h.shape)
                    h = jnp.where(keep, h, 0.0)
                return x + h @ leaves["down"], None

            block = jax.checkpoint(block) if remat else block
            x, _ = lax.scan(block, x @ p["embed"], (p["layers"], jnp.arange(3)))
            return x @ p["head"]

        layers = kernels(scale=(3, 8), up=(3, 8, 12), bias=(3, 12), down=(3, 12, 8))
        params = {**kernels(embed=(3, 8), head=(8, 2)), "layers": layers}
        return fun, params, (floats(2, 3), *([jax.random.key(0)] if dropout else []))

    return build


def pixel_shuffle():
    def conv(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def fun(p, x):
        x = jax.nn.relu(conv(x, p["first/w"]))
        x = conv(x, p["second/w"])
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height, width, 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, 2 * height, 2 * width, channels // 4)
        return conv(x, p["last/w"])

    shapes = {"first/w": (3, 3, 3, 6), "second/w": (3, 3, 6, 16), "last/w": (3, 3, 4, 2)}
    return fun, kernels(**shapes), (floats(2, 5, 5, 3),)


def resize_and_pad():
    def conv(x, kernel, strides=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (strides, strides), "SAME", dimension_numbers=numbers)

    def fun(p, x):
        x = jax.nn.relu(conv(x, p["first/w"]))
        y = conv(x, p["down/w"], 2)
        # The parameter-free shortcut of the first ResNets: strided, with channels of zeros.
        x = jax.nn.relu(y + jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2))))
        x = jax.image.resize(x, (x.shape[0], 5, 5, x.shape[3]), "bilinear")
        x = jax.image.resize(x, (x.shape[0], 7, 7, x.shape[3]), "nearest")
        return conv(jnp.pad(x, ((0, 0), (1, 1), (0, 2), (0, 0)), mode="reflect"), p["last/w"])

    shapes = {"first/w": (3, 3, 3, 6), "down/w": (3, 3, 6, 10), "last/w": (1, 1, 10, 2)}
    return fun, kernels(**shapes), (floats(2, 6, 6, 3),)


def one_output_channel():
    """One output channel is not depthwise, nor is one input channel."""

    def fun(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, p["first/w"], (1, 1), "SAME", dimension_numbers=numbers)
        return lax.conv_general_dilated(jax.nn.relu(x), p["last/w"], (1, 1), "SAME", dimension_numbers=numbers)

    return fun, kernels(**{"first/w": (3, 3, 1, 8), "last/w": (3, 3, 8, 1)}), (floats(2, 4, 4, 1),)


def experts_concatenated():
    """Concatenation along an axis that is not the channels."""

    def fun(p, x):
        tokens = jnp.concatenate([x @ p["left"], jnp.tanh(x @ p["right"])], axis=1)
        return jax.nn.relu(tokens) @ p["out"]

    return fun, kernels(left=(3, 8), right=(3, 8), out=(8, 2)), (floats(2, 4, 3),)


_TAPS = {r"/w\[[01]\]": "taps"}
_ENDS = {r"first/w\[2\]": "argument", r"last/w\[3\]": "output"}

CASES = {
    "mlp": Case(mlp, 0.5, {r"first\[0\]": "argument", r"last\[1\]": "output"}),
    "glu": Case(glu, 0.5, {r"(gate|up)\[0\]": "argument", r"down\[1\]": "output"}),
    "fused_glu": Case(fused_glu, 0.5, {r"both\[0\]": "argument", r"down\[1\]": "output"}),
    "lstm": Case(lstm, 0.5, {r"inputs\[0\]": "argument", r"out\[1\]": "output"}),
    "selective_scan": Case(
        selective_scan,
        0.5,
        {r"^in\[0\]": "argument", r"out\[1\]": "output", r"conv\[0\]": "taps", r"conv\[1\]": "depthwise"},
    ),
    "gqa_outer": Case(grouped_query(), 0.5, {r"embed\[0\]": "argument", r"head\[1\]": "output"}),
    "gqa_inner": Case(
        grouped_query(), 0.5, {r"embed\[0\]": "argument", r"head\[1\]": "output"}, options={"split": "inner"}
    ),
    "multi_query": Case(
        multi_query, 0.35, {r"[qkv]\[0\]": "argument", r"o\[1\]": "output", r"[kv]\[1\]": "whole beside"}
    ),
    "fused_qkv": Case(fused_qkv, 0.5, {r"qkv\[0\]": "argument", r"o\[1\]": "output"}),
    "fused_qkv_inner": Case(fused_qkv, 0.5, {r"qkv\[0\]": "argument", r"o\[1\]": "output"}, options={"split": "inner"}),
    "tied_language_model": Case(tied_language_model, 0.5, {r"embedding\[0\]": "gather", r"positions\[0\]": "argument"}),
    "mixture_of_experts": Case(
        mixture_of_experts,
        0.5,
        {r"embed\[0\]": "argument", r"head\[1\]": "output", r"router\[1\]": "top_k"},
    ),
    "graph": Case(graph, 0.5, {r"embed\[0\]": "argument", r"out\[1\]": "output"}, batched=()),
    "branches_and_loops": Case(branches_and_loops, 0.5, {r"first\[0\]": "argument", r"last\[1\]": "output"}),
    "scanned": Case(
        scanned(), 0.5, {r"embed\[0\]": "argument", r"head\[1\]": "output", r"layers/\w+\[0\]": "steps along"}
    ),
    "scanned_remat": Case(
        scanned(remat=True),
        0.5,
        {r"embed\[0\]": "argument", r"head\[1\]": "output", r"layers/\w+\[0\]": "steps along"},
    ),
    "scanned_dropout": Case(
        scanned(dropout=True),
        0.5,
        {r"embed\[0\]": "argument", r"head\[1\]": "output", r"layers/\w+\[0\]": "steps along"},
    ),
    "pixel_shuffle": Case(pixel_shuffle, 0.4, {**_TAPS, **_ENDS}),
    "resize_and_pad": Case(resize_and_pad, 0.5, {**_TAPS, **_ENDS}),
    "one_output_channel": Case(one_output_channel, 0.5, {**_TAPS, **_ENDS}),
    "concatenated_off_channels": Case(
        experts_concatenated, 0.5, {r"(left|right)\[0\]": "argument", r"out\[1\]": "out"}
    ),
}
