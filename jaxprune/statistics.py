"""What `calibrate` measures for each parameter. The arrays of `Norm` and `Variance` broadcast against the parameter."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxprune.typing import Axes


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean_square", "count"], meta_fields=["axes"])
@dataclasses.dataclass(frozen=True)
class Norm:
    """The size of each input of a kernel.

    Attributes:
      mean_square: float32, the mean of the input's square; of size 1 along the kernel's output axes. For a grouped
        convolution, whose groups have different inputs, it has an entry for every output.
      count: int32, of the same shape: the number of samples.
      axes: Which axes of the kernel are its inputs.
    """

    mean_square: Any
    count: Any
    axes: Axes

    @property
    def norm(self) -> Float[Array, "..."]:
        """The L2 norm of each input over all samples."""
        return jnp.sqrt(self.mean_square * self.count.astype(self.mean_square.dtype))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "variance", "count"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and variance.

    Attributes:
      mean: float32.
      variance: float32, the mean squared deviation.
      count: int32, the number of samples.
    """

    mean: Any
    variance: Any
    count: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["inputs", "outputs"], meta_fields=["axes"])
@dataclasses.dataclass(frozen=True)
class Variance:
    """Mean and variance of the inputs and of the outputs of a kernel.

    Attributes:
      inputs: Of each input; as for `Norm`, of size 1 along the kernel's output axes.
      outputs: Of each output, before a bias is added; of size 1 along its input axes.
      axes: Which axes of the kernel are its inputs and outputs.
    """

    inputs: Moments
    outputs: Moments
    axes: Axes


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mean", "count"], meta_fields=["axes"])
@dataclasses.dataclass(frozen=True)
class Gram:
    r"""The Gram matrix of the inputs of a kernel.

    Attributes:
      mean: float32 `(stacked..., in, in)`, $X^\top X$ divided by the number of samples; the inputs are in the order of
        `axes.inputs`, flattened. For a grouped convolution `(stacked..., groups, in, in)`.
      count: int32 `(stacked...,)` or `(stacked..., groups)`, the number of samples.
      axes: Which axes of the kernel are its inputs.
    """

    mean: Any
    count: Any
    axes: Axes

    @property
    def gram(self) -> Float[Array, "*stacked in in"]:
        r"""$X^\top X$, summed over all samples."""
        return self.mean * self.count.astype(self.mean.dtype)[..., None, None]
