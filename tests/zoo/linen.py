"""Flax Linen models."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.case import Case, floats


def build(module, *args, train=False):
    """`fun(variables, *args)`; in training mode it also returns the updated running statistics."""

    def made():
        variables = jax.eval_shape(module.init, jax.random.key(0), *args)
        if train:
            return partial(module.apply, train=True, mutable=["batch_stats"]), variables, args
        return module.apply, variables, args

    return made


class ResNet(nn.Module):
    """Basic blocks with a strided stage, its 1x1 shortcut, and a stem with max pooling."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        x = nn.relu(norm()(nn.Conv(8, (3, 3), use_bias=False)(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        for width, strides in ((8, 1), (12, 2)):
            y = nn.relu(norm()(nn.Conv(width, (3, 3), (strides, strides), use_bias=False)(x)))
            y = norm()(nn.Conv(width, (3, 3), use_bias=False)(y))
            if strides == 2:
                x = norm()(nn.Conv(width, (1, 1), (2, 2), use_bias=False, name="shortcut")(x))
            x = nn.relu(x + y)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class DenseNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x)
        for _ in range(3):
            y = nn.BatchNorm(use_running_average=True)(x)
            x = jnp.concatenate([x, nn.Conv(4, (3, 3))(nn.relu(y))], -1)
        x = nn.avg_pool(nn.Conv(8, (1, 1))(x), (2, 2), (2, 2))
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


class MobileNet(nn.Module):
    """Inverted residuals with a depthwise convolution; one of them with two outputs per channel."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3))(x)
        for multiplier in (1, 2):
            y = nn.relu6(nn.Conv(12, (1, 1), name=f"expand_{multiplier}")(x))
            y = nn.Conv(12 * multiplier, (3, 3), feature_group_count=12, name=f"depthwise_{multiplier}")(y)
            x = x + nn.Conv(6, (1, 1))(nn.relu6(y))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class ShuffleNet(nn.Module):
    """Channel split, a branch of 1x1, depthwise, 1x1, and a channel shuffle."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(12, (3, 3))(x)
        for i in range(2):
            left, right = jnp.split(x, 2, -1)
            right = nn.relu(nn.Conv(6, (1, 1))(right))
            right = nn.Conv(6, (3, 3), feature_group_count=6, name=f"depthwise_{i}")(right)
            right = nn.relu(nn.Conv(6, (1, 1))(right))
            x = jnp.concatenate([left, right], -1)
            x = x.reshape(*x.shape[:3], 2, 6).swapaxes(-1, -2).reshape(x.shape)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class ConvNeXt(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(8, (2, 2), (2, 2))(x))
        for i in range(2):
            y = nn.Conv(8, (3, 3), feature_group_count=8, name=f"depthwise_{i}")(x)
            y = nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(y))))
            x = x + y * self.param(f"gamma_{i}", nn.initializers.ones, (1, 1, 1, 8))
        return nn.Dense(3, name="head")(nn.LayerNorm()(x.mean((1, 2))))


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        skips = []
        for width in (6, 8):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(10, (3, 3))(x))
        for width, skip in zip((8, 6), reversed(skips), strict=True):
            x = jax.image.resize(x, (*skip.shape[:3], x.shape[-1]), "nearest")
            x = nn.relu(nn.Conv(width, (3, 3))(jnp.concatenate([x, skip], -1)))
        return nn.Conv(2, (1, 1), name="head")(x)


class SqueezeExcite(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        gate = nn.sigmoid(nn.Dense(8)(nn.relu(nn.Dense(4)(x.mean((1, 2))))))
        x = x * gate[:, None, None]
        return nn.Conv(2, (1, 1), name="head")(x)


class Grouped(nn.Module):
    """Group norm, a grouped and a transposed convolution."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(12, (3, 3))(x)
        x = nn.relu(nn.GroupNorm(num_groups=4)(x))
        x = nn.relu(nn.Conv(8, (1, 1))(x))
        x = nn.relu(nn.Conv(12, (3, 3), feature_group_count=2, name="grouped")(x))
        x = nn.relu(nn.ConvTranspose(6, (2, 2), (2, 2))(x))
        return nn.Conv(2, (1, 1), name="head")(x)


class ViT(nn.Module):
    """Patches, a class token, positions, pre-norm blocks of Flax's own attention."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (2, 2), (2, 2))(x)
        x = x.reshape(x.shape[0], -1, 8)
        token = self.param("token", nn.initializers.zeros, (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), x], 1)
        x = x + self.param("positions", nn.initializers.zeros, (1, x.shape[1], 8))
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(3, name="head")(nn.LayerNorm()(x)[:, 0])


class Swin(nn.Module):
    """Attention in (shifted) windows with a table of relative positions, then patch merging."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (1, 1))(x)
        for shift in (0, 1):
            y = jnp.roll(nn.LayerNorm()(x), (-shift, -shift), (1, 2))
            y = self.windows(y, shift)
            x = x + jnp.roll(y, (shift, shift), (1, 2))
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        x = nn.Dense(12, use_bias=False)(nn.LayerNorm()(jnp.concatenate(corners, -1)))
        return nn.Dense(3, name="head")(x.mean((1, 2)))

    def windows(self, x, number):
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3).reshape(-1, 4, channels)
        qkv = nn.Dense(24, name=f"qkv_{number}")(x).reshape(-1, 4, 3, 2, 4)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        table = self.param(f"table_{number}", nn.initializers.zeros, (9, 2))
        place = jnp.stack(jnp.meshgrid(jnp.arange(2), jnp.arange(2), indexing="ij"), -1).reshape(4, 2)
        apart = place[:, None] - place[None] + 1
        bias = table[apart[..., 0] * 3 + apart[..., 1]]
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) + bias.transpose(2, 0, 1)[None]
        x = jnp.einsum("nhqk,nkhd->nqhd", nn.softmax(scores), v).reshape(-1, 4, 8)
        x = nn.Dense(channels, name=f"out_{number}")(x)
        x = x.reshape(batch, height // 2, width // 2, 2, 2, channels).swapaxes(2, 3)
        return x.reshape(batch, height, width, channels)


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (2, 2), (2, 2))(x)
        x = x.reshape(x.shape[0], -1, 8)
        for _ in range(2):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            x = x + nn.Dense(4, name=f"back_{_}")(nn.gelu(nn.Dense(10, name=f"tokens_{_}")(y))).swapaxes(1, 2)
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
        return nn.Dense(3, name="head")(x.mean(1))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.OptimizedLSTMCell(6))(x)
        return nn.Dense(2, name="head")(nn.RNN(nn.GRUCell(5))(x)[:, -1])


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.RMSNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.RMSNorm()(x)))), None


class Scanned(nn.Module):
    """Twelve rematerialised blocks under `nn.scan`."""

    remat: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        block = nn.remat(Block) if self.remat else Block
        x, _ = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=12)()(x, None)
        return nn.Dense(2, name="head")(x)


_HEAD = {r"head/(kernel\[[13]\]|bias\[0\])": "output"}
_IMAGE = {r"Conv_0/kernel\[2\]": "argument", r"kernel\[[01]\]": "taps"}
_DEPTHWISE = {r"depthwise_\d/kernel\[2\]": "depthwise"}
_PATCHES = {r"Conv_0/kernel\[2\]": "argument", r"Conv_0/kernel\[[01]\]": "taps"}
_SMALL = floats(2, 8, 8, 3)
_TINY = floats(2, 4, 4, 3)

CASES = {
    "resnet_eval": Case(build(ResNet(), _SMALL), 0.6, {**_IMAGE, **_HEAD}),
    "resnet_train": Case(build(ResNet(), _SMALL, train=True), 0.6, {**_IMAGE, **_HEAD}),
    "densenet": Case(build(DenseNet(), _TINY), 0.6, {**_IMAGE, **_HEAD}),
    "mobilenet": Case(build(MobileNet(), _TINY), 0.5, {**_IMAGE, **_HEAD, **_DEPTHWISE}),
    "shufflenet": Case(build(ShuffleNet(), _TINY), 0.45, {**_IMAGE, **_HEAD, **_DEPTHWISE}, options={"split": "inner"}),
    "convnext": Case(
        build(ConvNeXt(), _TINY),
        0.5,
        {
            **_HEAD,
            **_DEPTHWISE,
            r"(Conv_0|depthwise_\d)/kernel\[[01]\]": "taps",
            r"Conv_0/kernel\[2\]": "argument",
            r"gamma_\d\[[012]\]": "axis of one",
        },
    ),
    "unet": Case(build(UNet(), _SMALL), 0.6, {**_IMAGE, **_HEAD}),
    "squeeze_excite": Case(
        build(SqueezeExcite(), _TINY),
        0.4,
        {**_HEAD, r"Conv_0/kernel\[2\]": "argument", r"(Conv_0|head)/kernel\[[01]\]": "taps"},
    ),
    "grouped": Case(build(Grouped(), _TINY), 0.6, {**_IMAGE, **_HEAD}),
    "vit": Case(
        build(ViT(), _TINY),
        0.6,
        {
            **_HEAD,
            **_PATCHES,
            r"token\[[01]\]": "axis of one",
            r"positions\[[01]\]": "axis of one|argument|slides",
        },
    ),
    "swin": Case(build(Swin(), _TINY), 0.5, {**_HEAD, **_PATCHES, r"table_\d\[0\]": "gather"}),
    "mixer": Case(
        # Token mixing adds its biases to removed channels too, and the next norm takes those in.
        build(Mixer(), _TINY),
        0.5,
        {
            **_HEAD,
            **_PATCHES,
            r"back_\d/(kernel\[1\]|bias\[0\])": "argument|slides",
            r"tokens_\d/kernel\[0\]": "argument|slides",
        },
    ),
    "recurrent": Case(
        build(Recurrent(), floats(2, 5, 3)), 0.5, {**_HEAD, r"OptimizedLSTMCell_0/i\w/kernel\[0\]": "argument"}
    ),
    "scan_12_layers": Case(
        build(Scanned(), floats(2, 4, 3)),
        0.6,
        {**_HEAD, r"Dense_0/kernel\[0\]": "argument", r"ScanCheckpointBlock_0/.*\[0\]": "steps along"},
    ),
}
