"""Kernels stored for fast products with what they keep, and `deploy`, which chooses among them by measuring."""

from jaxprune._jaxpr.roles.stored import StoredKernel as StoredKernel
from jaxprune.formats._dense import Dense as Dense
from jaxprune.formats._deploy import Choice as Choice
from jaxprune.formats._deploy import Choices as Choices
from jaxprune.formats._deploy import deployed_fun as deployed_fun
from jaxprune.formats._rows import Rows as Rows
from jaxprune.formats._strips import Strips as Strips
