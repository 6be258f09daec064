"""Pruning as optax transforms: masks live in the optimizer state, so prune and retrain are one jitted step."""

from jaxprune.transforms.gradual import GradualState as GradualState
from jaxprune.transforms.gradual import gradual as gradual
from jaxprune.transforms.inputs import WithGradients as WithGradients
from jaxprune.transforms.inputs import WithKey as WithKey
from jaxprune.transforms.masked import KeepMaskedState as KeepMaskedState
from jaxprune.transforms.masked import MaskedState as MaskedState
from jaxprune.transforms.masked import keep_masked as keep_masked
from jaxprune.transforms.masked import masked as masked
from jaxprune.transforms.state import masks_of as masks_of
from jaxprune.transforms.straight_through import straight_through as straight_through
