"""Kernels stored for fast products with what they keep, and `deploy`, which chooses among them by measuring."""

from jaxprune.formats.dense import Dense as Dense
from jaxprune.formats.deploy import Choice as Choice
from jaxprune.formats.deploy import Choices as Choices
from jaxprune.formats.deploy import deploy as deploy
from jaxprune.formats.deploy import deployed_fun as deployed_fun
from jaxprune.formats.rows import Rows as Rows
from jaxprune.formats.strips import Strips as Strips
from jaxprune.jaxpr.stored import Held as Held
