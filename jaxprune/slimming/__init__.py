"""Pruning whole units of a coupling: their scores, budgets in multiply-accumulates or seconds, and their masks."""

from jaxprune.slimming.fitted import Fitted as Fitted
from jaxprune.slimming.fitted import latency as latency
from jaxprune.slimming.fitted import macs as macs
from jaxprune.slimming.scores import Aggregate as Aggregate
from jaxprune.slimming.scores import UnitScores as UnitScores
from jaxprune.slimming.scores import geometric_median as geometric_median
from jaxprune.slimming.scores import of_norms as of_norms
from jaxprune.slimming.scores import of_outputs as of_outputs
from jaxprune.slimming.scores import of_slices as of_slices
from jaxprune.slimming.select import masks_of_units as masks_of_units
from jaxprune.slimming.select import slim as slim
