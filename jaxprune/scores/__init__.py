"""What a weight is worth keeping for: one number per weight, higher = more worth keeping.

Each score is a pure function from parameters, and whatever else it needs, to a tree of scores: `None` where a leaf was
not picked. Pass the result to `jaxprune.from_scores`, or call the strategy of the same name.
"""

from jaxprune.scores.grasp import grasp as grasp
from jaxprune.scores.lamp import lamp as lamp
from jaxprune.scores.magnitude import magnitude as magnitude
from jaxprune.scores.random import random as random
from jaxprune.scores.ria import ria as ria
from jaxprune.scores.synflow import synflow as synflow
from jaxprune.scores.taylor import snip as snip
from jaxprune.scores.taylor import taylor as taylor
from jaxprune.scores.variance import variance as variance
from jaxprune.scores.wanda import wanda as wanda
