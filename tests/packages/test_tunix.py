"""NNX language models of Tunix."""

import importlib

import jax.numpy as jnp
import pytest
from zoo.case import integers

from packages import build
from packages.case import MARKS, OUTPUT, TABLE, Model, check

pytestmark = MARKS


def _built(family: str, name: str, attention: str = "", **options):
    """A decoder by the name of its module and class; `attention` is the option that lists the types of layers."""
    module = importlib.import_module(f"tunix.models.{family}.model")
    given = {"num_layers": 2, "embed_dim": 16, "hidden_dim": 24, "num_heads": 4, "head_dim": 4, "num_kv_heads": 2}
    if attention:
        given[attention] = module.AttentionType.LOCAL_SLIDING, module.AttentionType.GLOBAL
    config = module.ModelConfig(**given, **options)

    def call(model, tokens):
        count = tokens.shape[1]
        positions = jnp.broadcast_to(jnp.arange(count), tokens.shape)
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((count, count), bool)), (*tokens.shape, count))
        return model(tokens, positions, None, mask)[0]

    return build.nnx(lambda rngs: getattr(module, name)(config, rngs=rngs), integers(2, 6), call=call)


_QWEN = {"vocab_size": 20, "rope_theta": 10_000, "norm_eps": 1e-6}
_GEMMA = {"num_embed": 20, "sliding_window_size": 4, "final_logit_softcap": 30.0}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_HEAD = {**TABLE, r"lm_head/w\[1\]": OUTPUT}
_PAIR = {r"kv_einsum/w\[0\]": "axis of one"}  # keys and values are one leaf
_GEMMA_SUMMED = {r"kv_einsum": 2, r"input_embedding|q_einsum|attn_vec": 1, r"_proj/kernel": 0}

MODELS = {
    "llama3": Model(
        "Llama 3, grouped queries",
        "google-tunix",
        lambda: _built("llama3", "Llama3", **_QWEN),
        0.7,
        _HEAD,
        {r"o_proj/w": 1, r"[qkv]_proj/w|_proj/kernel|lm_head": 0},
        ("input_embedding",),
    ),
    "qwen2": Model(
        "Qwen 2, biases of queries and keys",
        "google-tunix",
        lambda: _built("qwen2", "Qwen2", **_QWEN),
        0.7,
        {**_HEAD, r"[qkv]_proj/w\[2\]|o_proj/w\[1\]": "beside the axis that is pruned"},  # one head's, by its bias
        {r"o_proj/w": 1, r"[qkv]_proj/w|_proj/kernel|lm_head": 0},
        ("input_embedding",),
    ),
    "qwen3": Model(
        "Qwen 3, mixture of experts",
        "google-tunix",
        lambda: _built("qwen3", "Qwen3", **_QWEN, **_EXPERTS),
        0.7,
        {**_HEAD, r"mlp/\w+_proj\[0\]": "axis of one", r"router/kernel\[1\]": "'top_k' needs all of it"},
        {r"o_proj/w|mlp/\w+_proj$": 1, r"[qkv]_proj/w|router/kernel|lm_head": 0},
        ("input_embedding",),
    ),
    "gemma2": Model(
        "Gemma 2, windows and soft caps",
        "google-tunix",
        lambda: _built(
            "gemma",
            "Gemma",
            "attention_types",
            **_GEMMA,
            use_post_attn_norm=True,
            use_post_ffw_norm=True,
            attn_logits_soft_cap=50.0,
        ),
        0.7,
        {**TABLE, **_PAIR},
        _GEMMA_SUMMED,
    ),
    "gemma4": Model(
        "Gemma 4, mixture of experts by ragged products",
        "google-tunix",
        lambda: _built(
            "gemma4",
            "Gemma4",
            "attention_pattern",
            **_GEMMA,
            **_EXPERTS,
            global_key_size=8,
            enable_moe=True,
            expert_dim=8,
            moe_dense_hidden_dim=12,
        ),
        0.7,
        {
            **TABLE,
            **_PAIR,
            r"moe/(gating_einsum|linear)\[0\]": "divides it into groups",
            r"gating_einsum\[1\]": "beside the axis that is pruned",
            r"per_expert_scale": "'gather' indexes it",
            r"router_logits\[1\]": "'approx_top_k' needs all of it",
            r"skip_scale": "axis of one",
        },
        {**_GEMMA_SUMMED, r"moe/gating_einsum": 3, r"moe/linear": 1, r"router_logits": 0},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
