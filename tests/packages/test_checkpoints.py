"""A pruned folder of Hugging Face opens in Transformers, and gives what our own forward pass gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import budgets, filters, io, patterns
from jaxprune.rules import Rule, Rules

pytestmark = [pytest.mark.packages, pytest.mark.dtype_promotion, pytest.mark.rank_promotion]

_OURS = {
    "norm_1": "input_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "norm_2": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}  # fmt: skip


def _decoder_params(tree, layers):
    """The tree of `benchmarks.models.decoder`: kernels as (in, out)."""

    def leaf(path):
        value = tree
        for key in f"{path}.weight".split("."):
            value = value[key]
        return jnp.asarray(value.T if value.ndim == 2 and path != "model.embed_tokens" else value)

    return {
        "embedding": leaf("model.embed_tokens"),
        "norm": leaf("model.norm"),
        "head": leaf("lm_head"),
        "layers": [{ours: leaf(f"model.layers.{i}.{theirs}") for ours, theirs in _OURS.items()} for i in range(layers)],
    }


@pytest.mark.parametrize("size", ["1GB", "60KB"])
def test_a_pruned_llama_opens_in_transformers(size, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from benchmarks import models

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, rope_theta=10_000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense", max_shard_size=size)
    assert (len(list((tmp_path / "dense").glob("*.safetensors"))) > 1) == (size == "60KB")
    rules = Rules([Rule("mlp", pattern=patterns.NM(2, 4)), Rule("attn", sparsity=0.5, budget=budgets.global_)])
    where = filters.is_kernel & ~filters.named("embed|lm_head")
    io.prune(tmp_path / "dense", tmp_path / "pruned", rules, where=where)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "pruned")
    gate = model.model.layers[1].mlp.gate_proj.weight.detach().numpy()
    assert ((gate.reshape(-1, 4) != 0).sum(axis=1) == 2).all()  # torch sums over the last axis
    tokens = np.random.default_rng(0).integers(0, 64, (2, 17))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    params = _decoder_params(io.load(tmp_path / "pruned"), 3)
    ours = jax.jit(lambda p, t: models.decoder(p, t, head_width=8, scanned=False, base=10_000.0))(params, tokens)
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    io.pack(tmp_path / "pruned", tmp_path / "packed.safetensors")
    packed = io.load(tmp_path / "packed.safetensors")
    assert np.array_equal(packed["model"]["layers"]["1"]["mlp"]["gate_proj"]["weight"], gate)
