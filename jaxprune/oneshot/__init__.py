"""One-shot pruning of a whole model: its kernels one after another, each with what its inputs have become."""

from jaxprune.oneshot._masked import repair as repair
from jaxprune.oneshot._masked import swap as swap
from jaxprune.oneshot._prune import wanda as wanda
