"""Linen models of Transformers, the last release line that has them."""

import jax
import pytest
from zoo.case import floats, integers

from packages.case import INPUT, MARKS, ONE, OUTPUT, TABLE, TAPS, Built, Model, check

pytestmark = MARKS


def _built(name: str, options: dict, *args, config: str | None = None, **given) -> Built:
    """A model by the name of its class, its configuration by the name of its family."""
    import transformers

    family = config or name.removeprefix("Flax").partition("For")[0].removesuffix("LMHeadModel")
    module = getattr(transformers, name)(getattr(transformers, f"{family}Config")(**options), _do_init=False, **given)
    shape = {"Whisper": (1, 4, 12), "ViT": (1, 8, 8, 3), "ResNet": (1, 8, 8, 3)}.get(family, args[0].shape)
    params = jax.eval_shape(lambda key: module.init_weights(key, shape), jax.random.key(0))

    def fun(params, x, *decoded):
        return module(x, **({"decoder_input_ids": decoded[0]} if decoded else {}), params=params).logits

    return fun, params, args


_TOKENS = integers(2, 6)
_GPT = {"vocab_size": 20, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
_BERT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA = {**_BERT, "vocab_size": 20, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}

MODELS = {
    "gpt2": Model(
        "GPT-2",
        "transformers",
        lambda: _built("FlaxGPT2LMHeadModel", _GPT, _TOKENS),
        0.6,
        TABLE,
        {"kernel|wte": 1},  # its kernels are (out, in)
        (r"wpe",),
    ),
    "gptj": Model(
        "GPT-J, rotary pairs of neighbours",
        "transformers",
        lambda: _built("FlaxGPTJForCausalLM", {**_GPT, "rotary_dim": 4}, _TOKENS),
        0.6,
        {**TABLE, r"lm_head/(kernel\[1\]|bias)": OUTPUT},
        {"kernel": 0},
        (r"wte",),
    ),
    "llama": Model(
        "Llama, grouped queries",
        "transformers",
        lambda: _built("FlaxLlamaForCausalLM", _LLAMA, _TOKENS),
        0.6,
        {**TABLE, r"lm_head/kernel\[1\]": OUTPUT},
        {"kernel": 0},
        (r"embed_tokens",),
    ),
    "gemma": Model(
        "Gemma, tied embedding",
        "transformers",
        lambda: _built(
            "FlaxGemmaForCausalLM", {**_LLAMA, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}, _TOKENS
        ),
        0.6,
        TABLE,
        {"kernel": 0, "embed_tokens": 1},
    ),
    "bert": Model(
        "BERT, a classifier",
        "transformers",
        lambda: _built(
            "FlaxBertForSequenceClassification", {**_BERT, "vocab_size": 20, "max_position_embeddings": 8}, _TOKENS
        ),
        0.6,
        {**TABLE, r"classifier/(kernel\[1\]|bias)": OUTPUT},
        {"kernel": 0},
        (r"embeddings/.*embedding",),
    ),
    "vit": Model(
        "ViT",
        "transformers",
        lambda: _built(
            "FlaxViTForImageClassification", {**_BERT, "image_size": 8, "patch_size": 4}, floats(2, 3, 8, 8)
        ),
        0.6,
        {
            r"classifier/(kernel\[1\]|bias)": OUTPUT,
            r"projection/kernel\[[01]\]": TAPS,
            r"projection/kernel\[2\]": INPUT,
            r"(cls_token|position_embeddings)\[[01]\]": "axis of one|axis 1 of|slides",
        },
        {r"(dense|query|key|value|classifier)/kernel": 0, r"projection/kernel": 2},
        (r"cls_token|position_embeddings",),
    ),
    "whisper": Model(
        "Whisper, speech to text",
        "transformers",
        lambda: _built(
            "FlaxWhisperForConditionalGeneration",
            {
                "vocab_size": 20,
                "num_mel_bins": 4,
                "d_model": 16,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 24,
                "decoder_ffn_dim": 24,
                "max_source_positions": 6,
                "max_target_positions": 8,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "decoder_start_token_id": 1,
                "suppress_tokens": None,
                "begin_suppress_tokens": None,
            },
            floats(2, 4, 12),
            _TOKENS,
        ),
        0.6,
        {
            **TABLE,
            r"encoder/embed_positions/embedding\[0\]": "slides",
            r"conv[12]/kernel\[0\]": TAPS,
            r"conv1/kernel\[1\]": INPUT,
        },
        {r"(proj|fc[12])/kernel": 0, r"conv[12]/kernel": 1, r"embed_tokens": 1},
        (r"embed_positions",),
    ),
    "wav2vec2": Model(
        "Wav2Vec 2.0, weight normalisation",
        "transformers",
        lambda: _built(
            "FlaxWav2Vec2ForCTC",
            {
                **_BERT,
                "vocab_size": 10,
                "num_hidden_layers": 1,
                "conv_dim": (8, 8),
                "conv_stride": (4, 2),
                "conv_kernel": (4, 2),
                "num_conv_pos_embeddings": 4,
                "num_conv_pos_embedding_groups": 2,
                "do_stable_layer_norm": True,
                "feat_extract_norm": "layer",
                "pad_token_id": 0,
            },
            floats(2, 64),
        ),
        0.6,
        {
            r"lm_head/(kernel\[1\]|bias)": OUTPUT,
            r"weight_g\[[01]\]": ONE,
            r"(weight_[gv]\[2\]|conv/kernel\[0\])": TAPS,
            r"masked_spec_embed": "never reads",
        },
        {r"(proj|dense|projection|lm_head)/kernel": 0, r"conv_layers/\d/conv/kernel": 1, r"weight_v": 1},
        (r"weight_g",),
    ),
    "resnet": Model(
        "ResNet",
        "transformers",
        lambda: _built(
            "FlaxResNetForImageClassification",
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3},
            floats(2, 3, 8, 8),
            input_shape=(1, 8, 8, 3),
        ),
        0.5,
        {
            r"classifier/1/(kernel\[1\]|bias)": OUTPUT,
            r"convolution/kernel\[[01]\]": TAPS,
            r"embedder/convolution/kernel\[2\]": INPUT,
        },
        {r"classifier": 0, r"convolution/kernel": 2},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_model(name, record_property):
    check(MODELS[name], record_property)
