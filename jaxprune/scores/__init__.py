"""What a weight is worth keeping for: one number per weight, higher = more worth keeping.

Each score is a pure function from parameters, and whatever else it needs, to a tree of scores: `None` where a leaf was
not picked. Pass the result to `jaxprune.from_scores`, or call the strategy of the same name.
"""

from jaxprune.scores._grasp import grasp as grasp
from jaxprune.scores._lamp import lamp as lamp
from jaxprune.scores._magnitude import magnitude as magnitude
from jaxprune.scores._random import random as random
from jaxprune.scores._ria import ria as ria
from jaxprune.scores._synflow import synflow as synflow
from jaxprune.scores._taylor import snip as snip
from jaxprune.scores._taylor import taylor as taylor
from jaxprune.scores._variance import variance as variance
from jaxprune.scores._wanda import wanda as wanda
