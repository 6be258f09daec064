"""The UNet of Stable Diffusion, in Linen."""

import jax
import pytest
from zoo.case import floats, integers

from packages.case import INPUT, MARKS, OUTPUT, TAPS, Model, check

pytestmark = MARKS


def _unet():
    from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel

    model = FlaxUNet2DConditionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(32,),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=8,
    )

    def fun(params, image, step, text):
        return model.apply({"params": params}, image, step, text).sample

    return (
        fun,
        jax.eval_shape(model.init_weights, jax.random.key(0)),
        (floats(2, 4, 4, 4), integers(2), floats(2, 3, 8)),
    )


MODELS = {
    "unet": Model(
        "UNet of a latent diffusion model, attending to text",
        "diffusers",
        _unet,
        0.7,
        {
            r"(conv\w*|proj_in|proj_out)/kernel\[[01]\]": TAPS,
            r"conv_in/kernel\[2\]|attn2/to_[kv]/kernel\[0\]": INPUT,
            r"conv_out/(kernel\[3\]|bias)": OUTPUT,
        },
        {r"(conv\w*|proj_in|proj_out)/kernel": 2, r"(linear_\d|emb_proj|to_\w+|proj|net_2)/kernel": 0},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
