"""One-shot pruning of a whole model: its kernels one after another, each for the inputs that it has by then."""

from jaxprune.oneshot._masked import repair as repair
from jaxprune.oneshot._masked import swap as swap
from jaxprune.oneshot._prune import prune as prune
