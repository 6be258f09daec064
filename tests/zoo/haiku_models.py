"""Haiku models: parameters and state travel as one tree."""

import haiku as hk
import jax
import jax.numpy as jnp

from zoo.case import Case, floats


def build(model, x, train=False):
    def made():
        transformed = hk.transform_with_state(model)
        # Only training makes all of the state.
        params, state = jax.eval_shape(lambda key, x: transformed.init(key, x, True), jax.random.key(0), x)

        def fun(tree, x):
            y, new_state = transformed.apply(tree["params"], tree["state"], None, x, train)
            return (y, {"state": new_state}) if train else y

        return fun, {"params": params, "state": state}, (x,)

    return made


def resnet(x, train):
    x = hk.Conv2D(8, 3, name="stem")(x)
    for i, (width, stride) in enumerate(((8, 1), (12, 2))):
        y = hk.Conv2D(width, 3, stride, with_bias=False, name=f"a_{i}")(x)
        y = jax.nn.relu(hk.BatchNorm(True, True, 0.9, name=f"norm_a_{i}")(y, train))
        y = hk.Conv2D(width, 3, with_bias=False, name=f"b_{i}")(y)
        y = hk.BatchNorm(True, True, 0.9, name=f"norm_b_{i}")(y, train)
        if stride == 2:
            x = hk.Conv2D(width, 1, stride, name="shortcut")(x)
        x = jax.nn.relu(x + y)
    return hk.Linear(3, name="head")(x.mean((1, 2)))


def transformer(x, train):
    x = hk.Linear(8, name="embed")(x)
    for i in range(2):
        y = hk.RMSNorm(-1, name=f"norm_{i}")(x)
        x = x + hk.MultiHeadAttention(2, 4, w_init=hk.initializers.RandomNormal(), model_size=8, name=f"mha_{i}")(
            y, y, y
        )
        y = hk.RMSNorm(-1, name=f"norm_mlp_{i}")(x)
        x = x + hk.Linear(8, name=f"down_{i}")(jax.nn.gelu(hk.Linear(16, name=f"up_{i}")(y)))
    return hk.Linear(3, name="head")(x)


def recurrent(x, train):
    core = hk.LSTM(6)
    outputs, _ = hk.dynamic_unroll(core, x.swapaxes(0, 1), core.initial_state(x.shape[0]))
    return hk.Linear(2, name="head")(outputs[-1].astype(jnp.float32))


_HEAD = {r"head/(w\[1\]|b\[0\])": "output"}
_IMAGE = {r"stem/w\[2\]": "argument", r"/(stem|a_\d|b_\d|shortcut)/w\[[01]\]": "taps"}
_ONES = {r"norm_\w_\d/(scale|offset)\[[012]\]": "axis of one", r"~/(mean|var)_ema/(hidden|average)\[[012]\]": ""}

CASES = {
    "resnet_eval": Case(build(resnet, floats(2, 6, 6, 3)), 0.5, {**_HEAD, **_IMAGE, **_ONES}),
    "resnet_train": Case(build(resnet, floats(2, 6, 6, 3), train=True), 0.5, {**_HEAD, **_IMAGE, **_ONES}),
    "transformer": Case(build(transformer, floats(2, 5, 3)), 0.6, {**_HEAD, r"embed/w\[0\]": "argument"}),
    "recurrent": Case(build(recurrent, floats(2, 5, 3)), 0.4, {**_HEAD, r"linear/w\[0\]": ""}),
}
