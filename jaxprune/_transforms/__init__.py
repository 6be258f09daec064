"""Pruning as optax transforms: masks live in the optimizer state, so prune and retrain are one jitted step."""

from jaxprune._transforms._acdc import acdc as acdc
from jaxprune._transforms._agreement import apply_updates as apply_updates
from jaxprune._transforms._agreement import check_masked as check_masked
from jaxprune._transforms._dpf import FeedbackState as FeedbackState
from jaxprune._transforms._dpf import dpf as dpf
from jaxprune._transforms._gradual import gradual as gradual
from jaxprune._transforms._inputs import WithGradients as WithGradients
from jaxprune._transforms._inputs import WithKey as WithKey
from jaxprune._transforms._masked import KeepMaskedState as KeepMaskedState
from jaxprune._transforms._masked import MaskedState as MaskedState
from jaxprune._transforms._masked import keep_masked as keep_masked
from jaxprune._transforms._masked import masked as masked
from jaxprune._transforms._movement import MovementState as MovementState
from jaxprune._transforms._movement import movement as movement
from jaxprune._transforms._proximal import ProximalState as ProximalState
from jaxprune._transforms._proximal import group_lasso as group_lasso
from jaxprune._transforms._proximal import soft_threshold as soft_threshold
from jaxprune._transforms._refreshed import RefreshedState as RefreshedState
from jaxprune._transforms._rigl import rigl as rigl
from jaxprune._transforms._sparse_evolution import sparse_evolution as sparse_evolution
from jaxprune._transforms._state import masks_of as masks_of
from jaxprune._transforms._straight_through import straight_through as straight_through
