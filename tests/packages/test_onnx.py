"""A closed small program becomes ONNX, and another runtime computes the same from it."""

import jax
import numpy as np
import pytest
from jax import export
from zoo import equinox_models, nnx_models, plain
from zoo.case import compare, randomised, unit_masks

import jaxprune

pytestmark = [pytest.mark.packages, pytest.mark.dtype_promotion, pytest.mark.rank_promotion]

_MODELS = {"plain": plain, "nnx": nnx_models, "equinox": equinox_models}


@pytest.mark.parametrize(
    ("framework", "name"),
    [("nnx", "conv_eval"), ("equinox", "transformer"), ("plain", "mlp"), ("plain", "gqa_outer"), ("plain", "scanned")],
)
@pytest.mark.filterwarnings("ignore")  # of the exporter and what it imports
def test_onnx_computes_the_same_at_any_batch(framework, name):
    jax2onnx, onnxruntime = map(pytest.importorskip, ("jax2onnx", "onnxruntime"))
    case = _MODELS[framework].CASES[name]
    fun, params, (x,) = case.build()
    coupling = jaxprune.couple(fun, params, x, **case.options)
    params = randomised(params)
    small, small_params, plan = jaxprune.shrink(fun, params, unit_masks(coupling, params), coupling)
    assert any(leaf.keep for leaf in plan.leaves.values())
    (batch,) = export.symbolic_shape("b")
    program = jaxprune.closed(small, small_params, jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype))
    model = jax2onnx.to_onnx(lambda x: program(small_params, x), inputs=[("B", *x.shape[1:])])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for size in (1, 7):
        given = np.random.default_rng(0).normal(size=(size, *x.shape[1:])).astype(np.float32)
        (got,) = session.run(None, {session.get_inputs()[0].name: given})
        compare(got, np.asarray(program(small_params, given)), 1e-5)
