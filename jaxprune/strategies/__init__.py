"""One call from parameters to masks: a score, a budget and a pattern together.

Each strategy is a pure function. It takes the parameters (and gradients, statistics or a key) first and the sparsity,
the fraction to remove, last by position; it returns masks with the structure of the parameters, `None` where a leaf
stays dense. `functools.partial(magnitude, budget=budgets.erk)` sets options where only `(params, sparsity)` is called,
as `gradual` does. A sparsity may be traced.
"""

from jaxprune.strategies.frequencies import dft as dft
from jaxprune.strategies.from_scores import from_scores as from_scores
from jaxprune.strategies.gradients import grasp as grasp
from jaxprune.strategies.gradients import snip as snip
from jaxprune.strategies.gradients import synflow as synflow
from jaxprune.strategies.gradients import taylor as taylor
from jaxprune.strategies.measured import ria as ria
from jaxprune.strategies.measured import variance as variance
from jaxprune.strategies.measured import wanda as wanda
from jaxprune.strategies.units import slim as slim
from jaxprune.strategies.weights import lamp as lamp
from jaxprune.strategies.weights import magnitude as magnitude
from jaxprune.strategies.weights import random as random
