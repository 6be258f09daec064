"""What the report says beyond clean samples: corruptions, against what a person would compute, and convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
from jaxprune import corruptions

EYE = np.eye(4, dtype=np.float32)
LABELS = np.arange(4)


def fun(params, x):
    return x @ params["kernel"]


def report(**options):
    masks = {"kernel": jnp.arange(4)[:, None] < jnp.array([[4, 4, 4, 3]])}
    before = {"kernel": EYE}
    return jaxprune.report((fun, before), (fun, jaxprune.apply(before, masks)), EYE, LABELS, masks=masks, **options)


def test_accuracy_under_corruptions_by_hand():
    found = report(corruptions={"reversed": lambda x: x[:, ::-1], "as it is": lambda x: x})
    assert dict(found.before.corrupted) == {"reversed": 0.0, "as it is": 1.0}
    assert dict(found.after.corrupted) == {"reversed": 0.25, "as it is": 0.75}  # without 3, all zeros count as 0
    assert "| accuracy, as it is | 100.00 % | 75.00 % | -25.00 points |" in found.to_markdown()
    assert "accuracy, reversed" in str(found)
    with pytest.raises(ValueError, match=r"`corruptions\['cut'\]` must keep the shape of the inputs, \(4, 4\); got"):
        report(corruptions={"cut": lambda x: x[:2]})


def test_steps_to_a_loss_by_hand():
    losses = [8.0, 6.0, 1.0, 7.0, 2.0, 2.0, 0.0]
    assert jaxprune.steps_to(losses, 2.0) == 3  # a lucky batch
    assert jaxprune.steps_to(losses, 2.0, window=2) == 6
    assert jaxprune.steps_to(losses, -1.0) is None
    with pytest.raises(ValueError, match="`window` must be from 1 to the number of losses; got 3 for 2"):
        jaxprune.steps_to([1.0, 2.0], 0.5, window=3)


def test_the_report_compares_the_steps_of_both_trainings(tmp_path):
    dense, pruned = np.linspace(10, 0, 102), np.maximum(np.linspace(10, -10, 102), 0.5)
    found = report(convergence=jaxprune.Convergence(dense, pruned), corruptions={"none": lambda x: x})
    assert found.convergence.steps() == [(5.0, 52, 27), (pytest.approx(1.0), 92, 47), (0.0, 102, None)]
    text = found.to_markdown()
    assert "| steps to loss 5 | 52 | 27 | 1.93x less |" in text
    assert "| steps to loss 0 | 102 | never |  |" in text
    found.plot(tmp_path / "report.svg")
    drawn = (tmp_path / "report.svg").read_text()
    report().plot(tmp_path / "plain.svg")
    assert len(drawn) > len((tmp_path / "plain.svg").read_text())


def test_noise_has_its_level_and_is_the_same_again():
    inputs = 3 + 2 * jax.random.normal(jax.random.key(0), (1000, 8))
    corrupt = corruptions.noise(jax.random.key(1), 0.5)
    added = corrupt(inputs) - inputs
    np.testing.assert_allclose([added.mean(), added.std()], [0.0, 1.0], atol=0.03)
    np.testing.assert_array_equal(corrupt(inputs), corrupt(inputs))


def test_blur_spreads_a_point_as_a_gaussian_and_keeps_a_flat_image():
    image = jnp.zeros((1, 15, 15, 1)).at[0, 7, 7, 0].set(1.0)
    found = np.asarray(corruptions.blur(1.0)(image))[0, :, :, 0]
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-5)
    np.testing.assert_allclose(found[7, 8] / found[7, 7], np.exp(-0.5), rtol=1e-5)
    np.testing.assert_allclose(found[8, 9] / found[7, 7], np.exp(-2.5), rtol=1e-5)
    np.testing.assert_allclose(corruptions.blur(2.0)(jnp.full((2, 6, 5, 3), 7.0)), 7.0, rtol=1e-5)


def test_contrast_draws_each_sample_towards_its_own_mean():
    found = corruptions.contrast(0.5)(jnp.array([[0.0, 4.0], [10.0, 10.0]]))
    assert found.tolist() == [[1.0, 3.0], [10.0, 10.0]]


def test_occlusion_covers_one_square_in_each_image():
    images = jnp.broadcast_to(jnp.array([-1.0, 1.0])[None, None, None], (50, 12, 10, 2))
    covered = np.asarray(corruptions.occlusion(jax.random.key(0), 0.25)(images) == 0)
    assert (covered.sum(axis=(1, 2, 3)) == 6 * 5 * 2).all()
    assert (covered.any(axis=(2, 3)).sum(axis=1) == 6).all()
    assert len({place.tobytes() for place in covered}) > 20
    assert covered.any(axis=(0, 2)).all()  # no row nor column is left out
    assert covered.any(axis=(0, 1)).all()


def test_the_standard_set_keeps_shapes_and_dtypes():
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    for name, corrupt in corruptions.standard(jax.random.key(1)).items():
        worse = corrupt(images)
        assert (worse.shape, worse.dtype) == (images.shape, images.dtype), name
        assert not np.array_equal(worse, images), name
