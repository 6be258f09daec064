"""Language models of Penzai, with named axes."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from zoo.case import integers

from packages.case import MARKS, OUTPUT, TABLE, Model, check

pytestmark = MARKS


def _built(make):
    from penzai import pz

    graph, variables = pz.unbind_params(make(jax.random.key(0)), freeze=True)
    params = {v.label: v.value for v in variables}

    def fun(params, tokens):
        model = pz.bind_variables(graph, [dataclasses.replace(v, value=params[v.label]) for v in variables])
        positions = pz.nx.wrap(jnp.arange(tokens.shape[1])).tag("seq")
        return model(pz.nx.wrap(tokens).tag("batch", "seq"), token_positions=positions).unwrap(
            "batch", "seq", "vocabulary"
        )

    return fun, params, (integers(2, 6),)


def _llama():
    from penzai.models.transformer.variants import llamalike_common as llama

    config = llama.LlamalikeTransformerConfig(
        num_kv_heads=2, query_head_multiplier=2, embedding_dim=16, projection_dim=4, mlp_hidden_dim=24,
        num_decoder_blocks=2, vocab_size=20, mlp_variant="swiglu", tie_embedder_and_logits=False,
    )  # fmt: skip
    return _built(lambda key: llama.build_llamalike_transformer(config, key))


def _neox():
    from penzai.models.transformer.variants import gpt_neox

    config = gpt_neox.GPTNeoXTransformerConfig(
        num_attention_heads=2, embedding_dim=16, projection_dim=8, mlp_hidden_dim=24, num_decoder_blocks=2,
        vocab_size=20, activation_fn="gelu_exact", rope_subset_size=4, rope_wavelength=10_000.0,
        layernorm_epsilon=1e-5, parameter_dtype=jnp.float32, activation_dtype=jnp.float32, use_layer_stack=True,
    )  # fmt: skip
    return _built(lambda key: gpt_neox.build_gpt_neox_transformer(config, key))


_HEAD = {**TABLE, r"lm_head.weights/data_array\[1\]": OUTPUT}

MODELS = {
    "llama": Model(
        "Llama, named axes",
        "penzai",
        _llama,
        0.7,
        _HEAD,
        {r"(query|key|value|linear|lm_head).weights": 0, r"attention/output.weights": 2},
        ("embeddings",),
    ),
    "neox": Model(
        "GPT-NeoX, named axes, layers in a scan",
        "penzai",
        _neox,
        0.7,
        {**_HEAD, r"blocks/.*\[0\]": "'scan' steps along it"},
        {r"(query|key|value|mlp/(in|out))/Linear": 1, r"attention/output/Linear": 2, r"lm_head": 0},
        (r"embeddings|(scale|shift|bias)\b",),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
