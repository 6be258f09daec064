"""One-shot pruning of a single layer from its kernel and its inputs' Gram matrix: prunes, and repairs what is left."""

from jaxprune.layerwise._admm import admm as admm
from jaxprune.layerwise._correction import correct as correct
from jaxprune.layerwise._damping import Damped as Damped
from jaxprune.layerwise._damping import damp as damp
from jaxprune.layerwise._obs import obs as obs
from jaxprune.layerwise._refit import refit as refit
from jaxprune.layerwise._sparsegpt import sparsegpt as sparsegpt
from jaxprune.layerwise._swap import swap as swap
from jaxprune.layerwise._wanda import wanda as wanda
