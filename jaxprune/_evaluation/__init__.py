"""Evidence: how much was removed, what it costs to run, and how good the model is before and after."""

from jaxprune._evaluation._convergence import Convergence as Convergence
from jaxprune._evaluation._convergence import steps_to as steps_to
from jaxprune._evaluation._layers import Layer as Layer
from jaxprune._evaluation._macs import Macs as Macs
from jaxprune._evaluation._macs import macs as macs
from jaxprune._evaluation._measured import Evaluation as Evaluation
from jaxprune._evaluation._metrics import LeafSummary as LeafSummary
from jaxprune._evaluation._metrics import compression_ratio as compression_ratio
from jaxprune._evaluation._metrics import count_params as count_params
from jaxprune._evaluation._metrics import density as density
from jaxprune._evaluation._metrics import nbytes as nbytes
from jaxprune._evaluation._metrics import relative_size_change as relative_size_change
from jaxprune._evaluation._metrics import sparsity as sparsity
from jaxprune._evaluation._metrics import summary as summary
from jaxprune._evaluation._overview import overview as overview
from jaxprune._evaluation._report import Report as Report
from jaxprune._evaluation._report import report as report
