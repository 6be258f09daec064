"""Pruning as optax transforms: masks live in the optimizer state, so prune and retrain are one jitted step."""

from jaxprune.transforms.acdc import acdc as acdc
from jaxprune.transforms.dpf import FeedbackState as FeedbackState
from jaxprune.transforms.dpf import dpf as dpf
from jaxprune.transforms.gradual import gradual as gradual
from jaxprune.transforms.inputs import WithGradients as WithGradients
from jaxprune.transforms.inputs import WithKey as WithKey
from jaxprune.transforms.masked import KeepMaskedState as KeepMaskedState
from jaxprune.transforms.masked import MaskedState as MaskedState
from jaxprune.transforms.masked import keep_masked as keep_masked
from jaxprune.transforms.masked import masked as masked
from jaxprune.transforms.movement import MovementState as MovementState
from jaxprune.transforms.movement import movement as movement
from jaxprune.transforms.proximal import ProximalState as ProximalState
from jaxprune.transforms.proximal import group_lasso as group_lasso
from jaxprune.transforms.proximal import soft_threshold as soft_threshold
from jaxprune.transforms.refreshed import RefreshedState as RefreshedState
from jaxprune.transforms.rigl import rigl as rigl
from jaxprune.transforms.sparse_evolution import sparse_evolution as sparse_evolution
from jaxprune.transforms.state import masks_of as masks_of
from jaxprune.transforms.straight_through import straight_through as straight_through
