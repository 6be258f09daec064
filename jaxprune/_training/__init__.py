"""Rounds of pruning and retraining around a training step of the user's own."""

from jaxprune._training._rewind import rewind as rewind
from jaxprune._training._rounds import Rounds as Rounds
from jaxprune._training._rounds import Trainer as Trainer
from jaxprune._training._rounds import prune_retrain as prune_retrain
