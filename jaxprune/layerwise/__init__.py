"""One-shot pruning of a single layer from its kernel and its inputs' Gram matrix: prunes, and repairs what is left.

The functions do one layer. The values `SparseGPT`, `ADMM` and `Wanda` hold a method's options, for `oneshot.prune` to
apply it to a whole model; `Method` is what they have in common.
"""

from jaxprune.layerwise._admm import ADMM as ADMM
from jaxprune.layerwise._admm import admm as admm
from jaxprune.layerwise._correction import correct as correct
from jaxprune.layerwise._damping import Damped as Damped
from jaxprune.layerwise._damping import damp as damp
from jaxprune.layerwise._method import Method as Method
from jaxprune.layerwise._obs import obs as obs
from jaxprune.layerwise._refit import refit as refit
from jaxprune.layerwise._sparsegpt import SparseGPT as SparseGPT
from jaxprune.layerwise._sparsegpt import sparsegpt as sparsegpt
from jaxprune.layerwise._swap import swap as swap
from jaxprune.layerwise._wanda import Wanda as Wanda
from jaxprune.layerwise._wanda import wanda as wanda
