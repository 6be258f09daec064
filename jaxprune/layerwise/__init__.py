"""One-shot pruning of a single layer from its kernel and its inputs' Gram matrix: prunes, and repairs what is left."""

from jaxprune.layerwise.admm import admm as admm
from jaxprune.layerwise.correction import correct as correct
from jaxprune.layerwise.damping import Damped as Damped
from jaxprune.layerwise.damping import damp as damp
from jaxprune.layerwise.obs import obs as obs
from jaxprune.layerwise.refit import refit as refit
from jaxprune.layerwise.sparsegpt import sparsegpt as sparsegpt
from jaxprune.layerwise.swap import swap as swap
from jaxprune.layerwise.wanda import wanda as wanda
