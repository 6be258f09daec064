"""One call from parameters to masks: a score, a budget and a pattern together.

Each strategy is a pure function. It takes the parameters (and gradients, statistics or a key) first and the sparsity,
the fraction to remove, last by position; it returns masks with the structure of the parameters, `None` where a leaf
stays dense. `functools.partial(magnitude, budget=budgets.erk)` sets options where only `(params, sparsity)` is called,
as `gradual` does. A sparsity may be traced.
"""

from jaxprune._strategies._frequencies import dft as dft
from jaxprune._strategies._from_scores import from_scores as from_scores
from jaxprune._strategies._gradients import grasp as grasp
from jaxprune._strategies._gradients import snip as snip
from jaxprune._strategies._gradients import synflow as synflow
from jaxprune._strategies._gradients import taylor as taylor
from jaxprune._strategies._measured import ria as ria
from jaxprune._strategies._measured import variance as variance
from jaxprune._strategies._measured import wanda as wanda
from jaxprune._strategies._units import slim as slim
from jaxprune._strategies._weights import lamp as lamp
from jaxprune._strategies._weights import magnitude as magnitude
from jaxprune._strategies._weights import random as random
