"""Models of images: Equimo in Equinox, flaxmodels in Linen, Haiku's own."""

import importlib

import jax
import pytest
from zoo.case import floats

from packages import build
from packages.case import INPUT, MARKS, ONE, OUTPUT, TAPS, Model, check

pytestmark = MARKS


def _equimo(module: str, name: str, size: int, **options):
    make = getattr(importlib.import_module(f"equimo.models.{module}"), name)
    return build.equinox(
        lambda key: make(in_channels=3, num_classes=3, key=key, **options),
        floats(2, 3, size, size),
        call=lambda model, x: model(x, key=jax.random.key(0)),
    )


def _haiku(name: str, *args, **options):
    import haiku as hk

    def fun(x, is_training=False):
        return getattr(hk.nets, name)(*args, **options)(x, is_training=is_training)

    return build.haiku(fun, floats(2, 16, 16, 3), is_training=True)


_PLAIN = {
    r"(conv\d?|proj|dwc|cpe\d|lepe)/weight\[[123]\]": f"{TAPS}|depthwise",
    r"(conv\d?|proj|dwc|cpe\d|lepe)/bias\[[12]\]": ONE,
}
_HEAD = {r"head/(weight|bias)\[0\]": OUTPUT}
_FIRST = {r"(patch_embed/proj|patch_embed/conv1/conv|blocks/0/downsample/conv)/weight\[1\]": INPUT}
_SUMMED = {r"": 1}
_BIASES = (r"bias$",)

MODELS = {
    "vit": Model(
        "ViT with registers",
        "equimo",
        lambda: _equimo(
            "vit", "VisionTransformer", 8, img_size=8, dim=16, patch_size=4, num_heads=[2], depths=[2], reg_tokens=1
        ),
        0.6,
        {**_PLAIN, **_HEAD, **_FIRST, r"global_pos_embed/weight\[0\]": "slides"},
        _SUMMED,
        (*_BIASES, r"pos_embed|_tokens?$"),
    ),
    "convnext": Model(
        "ConvNeXt",
        "equimo",
        lambda: _equimo("convnext", "ConvNeXt", 16, depths=[1, 1], dims=[8, 16]),
        0.6,
        {**_PLAIN, **_HEAD, **_FIRST},
        _SUMMED,
        _BIASES,
    ),
    "vssd": Model(
        "VSSD, state space and attention",
        "equimo",
        lambda: _equimo(
            "vssd",
            "Vssd",
            16,
            img_size=16,
            dim=16,
            d_state=8,
            patch_size=4,
            depths=[1, 1],
            num_heads=[2, 4],
            attentions_layers=("mamba2mixer", "attention"),
        ),
        0.6,
        {**_PLAIN, **_HEAD, **_FIRST},
        _SUMMED,
        _BIASES,
    ),
    "mlla": Model(
        "MLLA, linear attention",
        "equimo",
        lambda: _equimo("mlla", "Mlla", 16, img_size=16, dim=16, patch_size=4, depths=[1, 1], num_heads=[2, 4]),
        0.6,
        # What its attention computes does not reach its output, in this version.
        {**_PLAIN, **_HEAD, **_FIRST, r"attn/(qk/weight|rope/rotations)": "never reads it"},
        _SUMMED,
        (*_BIASES, "rotations", r"blocks/0/(in_proj|dwc|attn/qk|attn/lepe)/weight"),
    ),
    "resnet": Model(
        "ResNet v2",
        "dm-haiku",
        lambda: _haiku("ResNet", (1, 1, 1, 1), 3, resnet_v2=True, channels_per_group=(8, 8, 16, 16)),
        0.5,
        {
            r"w\[[01]\]": TAPS,
            r"initial_conv/w\[2\]": INPUT,
            r"logits/(w\[1\]|b)": OUTPUT,
            r"(scale|offset|average|hidden)\[[012]\]": f"{ONE}|slides",
        },
        {r"conv.*/w": 2, r"logits/w": 0},
        (r"scale|offset|average|hidden",),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
