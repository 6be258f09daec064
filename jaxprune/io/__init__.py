"""Checkpoints: read, written, pruned from file to file with memory for one array, packed, looked at and compared.

Of safetensors, in one file or in several with an index; of NumPy, `.npz`; of Flax, `.msgpack`; and of orbax. What is
written is there whole or not at all, and nothing is written over.
"""

from jaxprune.io._inspect import Compared as Compared
from jaxprune.io._inspect import Comparison as Comparison
from jaxprune.io._inspect import Inspected as Inspected
from jaxprune.io._inspect import Inspection as Inspection
from jaxprune.io._inspect import compare as compare
from jaxprune.io._inspect import inspect as inspect
from jaxprune.io._prune import prune as prune
from jaxprune.io._trees import load as load
from jaxprune.io._trees import pack as pack
from jaxprune.io._trees import save as save
from jaxprune.io._trees import shapes as shapes
from jaxprune.io._trees import unpack as unpack
