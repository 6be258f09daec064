"""One-shot pruning of a whole model: its kernels one after another, each with what its inputs have become."""

from jaxprune.oneshot.masked import repair as repair
from jaxprune.oneshot.masked import swap as swap
from jaxprune.oneshot.prune import admm as admm
from jaxprune.oneshot.prune import sparsegpt as sparsegpt
from jaxprune.oneshot.prune import wanda as wanda
