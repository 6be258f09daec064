"""Pruning whole units of a coupling: their scores, budgets in multiply-accumulates or seconds, and their masks."""

from jaxprune.structured._fitted import Fitted as Fitted
from jaxprune.structured._fitted import latency as latency
from jaxprune.structured._fitted import macs as macs
from jaxprune.structured._folder import load as load
from jaxprune.structured._folder import save as save
from jaxprune.structured._modules import resized as resized
from jaxprune.structured._scores import Aggregate as Aggregate
from jaxprune.structured._scores import UnitScores as UnitScores
from jaxprune.structured._scores import geometric_median as geometric_median
from jaxprune.structured._scores import of_norms as of_norms
from jaxprune.structured._scores import of_outputs as of_outputs
from jaxprune.structured._scores import of_slices as of_slices
from jaxprune.structured._select import masks_of_units as masks_of_units
from jaxprune.structured._sizes import Sizes as Sizes
