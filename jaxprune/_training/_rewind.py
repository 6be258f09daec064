"""Lottery tickets: back to the weights of an earlier step, under the masks of a later one."""

from __future__ import annotations

from typing import Any

import jax

from jaxprune._arrays import tree
from jaxprune._masks import masking
from jaxprune.typing import Masks, Params


def rewind(params: Params, snapshot: Params, masks: Masks) -> Params:
    """Sets the weights that the masks keep to their values in a snapshot; the pruned ones are 0.

    Retrain from there, and prune again: iterative magnitude pruning. A snapshot at initialisation gives the original
    lottery tickets, one from early in training those of larger models. To rewind the learning rate alone, keep the
    parameters and start the optimizer anew.

    Args:
      params: The trained parameters.
      snapshot: Of the structure of `params`; a leaf that is `None` there, such as a running statistic, is not rewound.
      masks: Of the structure of `params`, chosen from the trained parameters.

    Returns:
      The parameters to train next, masked.

    Raises:
      ValueError: The structures or shapes differ, or a mask does not fit; the message names the path.

    Examples:
      >>> start, trained = {"kernel": jnp.array([[0.1, 0.2]])}, {"kernel": jnp.array([[5.0, 1.0]])}
      >>> print(rewind(trained, start, jaxprune.magnitude(trained, 0.5))["kernel"])
      [[0.1 0. ]]

    References:
      Frankle and Carbin, 2019, "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks"; Renda et
      al., 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning".
    """
    return masking.apply(tree.map_with_path(_rewound, params, snapshot, names=("snapshot",)), masks)


def _rewound(path: str, leaf: Any, earlier: Any) -> Any:
    if earlier is None or not tree.is_array(leaf):
        return leaf
    if jax.numpy.shape(earlier) != leaf.shape:
        raise ValueError(
            f"'{path}' has shape {leaf.shape}; the snapshot has {jax.numpy.shape(earlier)}. "
            f"Take the snapshot from the same model."
        )
    return earlier
