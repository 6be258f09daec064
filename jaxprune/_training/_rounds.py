"""Rounds of pruning and retraining until a target, around the user's own training step."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _text
from jaxprune._arrays import tree
from jaxprune._evaluation import _metrics
from jaxprune._masks import masking, verbs
from jaxprune._progress import Progress, reporting
from jaxprune._training import _checkpoints
from jaxprune._training._rewind import rewind
from jaxprune.targets import Proposal, Round, Target
from jaxprune.typing import Masks, Params, Sparsity

_HEADING = ("round", "from", "sparsity", "metric", "epochs")


@dataclasses.dataclass(frozen=True)
class Trainer:
    """How a model is trained: your functions, in any framework.

    All must be deterministic, or a run that is resumed will not end as it would have without the interruption.

    Attributes:
      init: `init(params, masks)`, what the step carries besides the parameters, such as
        `jaxprune.masked(optimizer, masks).init(params)`.
      step: `step(params, state, batch)`, best jitted, returning new parameters, a new state and whatever else. The
        masks are in the state, so a step of `jaxprune.masked(optimizer, None).update` is compiled once for all of them.
      batches: `batches(round, epoch)`, the batches of one epoch, shuffled by these two numbers.
      evaluate: `evaluate(params)`, the metric on validation data, higher is better. Not on the test data: rounds are
        chosen by it.
    """

    init: Callable[[Params, Masks], Any]
    step: Callable[[Params, Any, Any], Any]
    batches: Callable[[int, int], Iterable[Any]]
    evaluate: Callable[[Params], Any]


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What `prune_retrain` found. Prints as a table, with a star behind the best round.

    Attributes:
      params: Of the best round, masked.
      masks: Its masks; `None` everywhere if that is the dense model.
      history: Every round, the dense model first.
      best: Which of them.
    """

    params: Params
    masks: Masks
    history: tuple[Round, ...]
    best: int

    def __str__(self) -> str:
        rows = [(str(i), *cells) for i, cells in enumerate(self._cells())]
        lines = _text.aligned([_HEADING, *rows], "rrrrl")
        lines[1 + self.best] += " *"
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The table; the best round is bold."""
        rows = [(f"**{i}**" if i == self.best else str(i), *cells) for i, cells in enumerate(self._cells())]
        return "\n".join(_text.markdown([_HEADING, *rows]))

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (str(row.parent), f"{100 * row.sparsity:.2f} %", f"{row.metric:.4f}", f"{row.kept} of {row.epochs}")
            for row in self.history
        ]


def prune_retrain(
    params: Params,
    strategy: Callable[[Params, Sparsity], Masks],
    trainer: Trainer,
    target: Target,
    *,
    epochs: int = 10,
    patience: int | None = None,
    snapshot: Params | None = None,
    minimum: float = -math.inf,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | bool = False,
) -> Rounds:
    """Prunes, retrains and evaluates in rounds, until the target is met.

    A round prunes the model of an earlier one, starts a new optimizer, and keeps the parameters of the epoch with the
    best metric, those before the first epoch included.

    Args:
      params: Of the trained dense model. Any pytree; statistics that a step updates belong in it.
      strategy: `strategy(params, sparsity)`, such as `jaxprune.magnitude` or a `functools.partial` of it, or
        `lambda params, sparsity: jaxprune.slim(params, sparsity, coupling=coupling)`.
      trainer: How to train and evaluate.
      target: `targets.AtSparsity`, `targets.AtMost` or `targets.Within`.
      epochs: The most epochs of retraining in a round.
      patience: Stop a round after so many epochs without a better metric; `None` never.
      snapshot: Rewind to these weights before each retraining: lottery tickets; see `rewind`.
      minimum: Stop after a round whose metric is below this; the best of the rounds before it is the result.
      folder: Each round is kept here by orbax. Call again with the same arguments to go on where a run was stopped or
        killed: it ends with the same masks and parameters, to the bit.
      progress: Called as `progress(epoch, epochs, what)` at the start of each round, where `epoch` is 0, and after each
        epoch, with the round and its best metric as `what`; or `True`, to show a bar by rich.

    Returns:
      The best round's model, and all rounds.

    Raises:
      ValueError: A retrained model is not masked; or the folder is of another run.
      ImportError: Without orbax or rich, if asked for; `pip install "jaxprune[training]"` brings both.

    Examples:
      >>> optimizer = jaxprune.masked(optax.sgd(0.1), None)
      >>> def step(params, state, batch):
      ...     grads = jax.grad(lambda p: jnp.sum((p["w"] - batch) ** 2))(params)
      ...     updates, state = optimizer.update(grads, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> goal = jnp.array([[3.0, 0.1, -2.0, 0.1]])
      >>> trainer = Trainer(
      ...     init=lambda params, masks: jaxprune.masked(optax.sgd(0.1), masks).init(params),
      ...     step=jax.jit(step),
      ...     batches=lambda round, epoch: [goal] * 10,
      ...     evaluate=lambda params: -jnp.sum((params["w"] - goal) ** 2),
      ... )
      >>> target = jaxprune.targets.Within(0.1, resolution=0.6)
      >>> found = prune_retrain({"w": goal}, jaxprune.magnitude, trainer, target, epochs=2)
      >>> print(found.masks["w"], found.best)
      [[ True False  True False]] 1

    References:
      Han et al., 2015, "Learning both Weights and Connections for Efficient Neural Networks"; Frankle and Carbin, 2019,
      "The Lottery Ticket Hypothesis", for `snapshot`.
    """
    if epochs < 0 or (patience is not None and patience < 1):
        raise ValueError(f"`prune_retrain` needs epochs >= 0 and patience >= 1; got {epochs} and {patience}.")
    with reporting(progress) as report:
        retrain = functools.partial(_retrain, trainer, epochs, patience, report)
        run = _Run(params, strategy, retrain, snapshot, None if folder is None else Path(folder))
        run.begin(lambda: _metric(trainer, params))
        passed = run.rounds
        while (proposal := target.propose(run.rounds, run.cost)) is not None:
            run.take(proposal)
            if run.rounds[-1].metric < minimum:
                passed = run.rounds[:-1]
                break
        best = target.best(passed)
        found, masks = run.model(best)
    return Rounds(found, masks, tuple(run.rounds), best)


class _Retrained(NamedTuple):
    params: Params
    metric: float
    epochs: int
    kept: int


def _retrain(
    trainer: Trainer, epochs: int, patience: int | None, report: Progress, index: int, start: Params, masks: Masks
) -> _Retrained:
    """Trains a pruned model, and keeps the parameters of the best epoch."""
    params, best = _copy(start), _Retrained(start, _metric(trainer, start), 0, 0)
    state = trainer.init(params, masks)
    report(0, epochs, f"round {index}, metric {best.metric:.4f}")
    for epoch in range(epochs):
        for batch in trainer.batches(index, epoch):
            params, state, *_ = trainer.step(params, state, batch)
        metric = _metric(trainer, params)
        if metric > best.metric:
            best = _Retrained(_copy(params), metric, epoch + 1, epoch + 1)
        best = best._replace(epochs=epoch + 1)
        report(epoch + 1, epochs, f"round {index}, metric {best.metric:.4f}")
        if patience is not None and best.epochs - best.kept >= patience:
            break
    tree.map_with_path(_check_masked, best.params, masks)
    return best


def _metric(trainer: Trainer, params: Params) -> float:
    metric = float(trainer.evaluate(params))
    return -math.inf if math.isnan(metric) else metric


def _copy(params: Params) -> Params:
    """A copy, since a jitted step may donate its arguments."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if tree.is_array(leaf) else leaf, params)


def _check_masked(path: str, leaf: Any, mask: Any) -> None:
    keeps = verbs.of_weights(path, leaf, mask)
    if keeps is None or not np.any(np.where(keeps, np.zeros((), leaf.dtype), leaf)):
        return
    raise ValueError(
        f"'{path}' has weights where its mask has none after retraining. Train with an optimizer whose state is "
        f"`jaxprune.masked(optimizer, masks).init(params)`."
    )


class _Run:
    """The rounds so far and their models: on disk where there is a folder, else in memory."""

    def __init__(
        self,
        dense: Params,
        strategy: Callable[[Params, Sparsity], Masks],
        retrain: Callable[[int, Params, Masks], _Retrained],
        snapshot: Params | None,
        folder: Path | None,
    ) -> None:
        self.dense, self.strategy, self.retrain, self.snapshot, self.folder = dense, strategy, retrain, snapshot, folder
        self.rounds = list[Round]()
        self.models: dict[int, tuple[Params, Masks]] = {}
        self.saved = [] if folder is None else [Round(**record) for record in _checkpoints.records(folder)]

    def begin(self, metric: Callable[[], float]) -> None:
        """Makes the dense model round 0."""
        _, nothing = self.model(0)
        if self.folder is not None and self.saved:
            earlier, _ = _checkpoints.load(self.folder, 0, self.dense, nothing)
            tree.map_with_path(self._check_same, self.dense, earlier)
            self.rounds.append(self.saved[0])
        else:
            self._add(Round(0, 0.0, 0.0, metric(), 0, 0), self.dense, nothing)

    def take(self, proposal: Proposal) -> None:
        """Does a round, or finds it on disk."""
        index = len(self.rounds)
        if index < len(self.saved):
            self._check_proposed(index, proposal)
            self.rounds.append(self.saved[index])
            return
        parent, _ = self.model(proposal.parent)
        masks = self.strategy(parent, proposal.sparsity)
        start = masking.apply(parent, masks) if self.snapshot is None else rewind(parent, self.snapshot, masks)
        found = self.retrain(index, start, masks)
        sparsity = float(_metrics.sparsity(found.params, masks))
        row = Round(proposal.parent, proposal.sparsity, sparsity, found.metric, found.epochs, found.kept)
        self._add(row, found.params, masks)

    def model(self, index: int) -> tuple[Params, Masks]:
        """Parameters and masks of a round."""
        if index == 0:
            return self.dense, jax.tree.map(lambda _: None, self.dense)
        if index not in self.models and self.folder is not None:
            masks = self.strategy(self.dense, self.rounds[index].asked)  # for its structure alone
            self.models[index] = _checkpoints.load(self.folder, index, self.dense, masks)
        return self.models[index]

    def cost(self, parent: int, of: Callable[[Params, Masks], float], sparsity: float) -> float:
        """The cost of a round's model pruned to a sparsity."""
        params, _ = self.model(parent)
        return of(params, self.strategy(params, sparsity))

    def _add(self, row: Round, params: Params, masks: Masks) -> None:
        index = len(self.rounds)
        if self.folder is not None:
            _checkpoints.save(self.folder, index, params, masks, row._asdict())
            self.models.clear()
        self.rounds.append(row)
        self.models[index] = params, masks

    def _check_same(self, path: str, leaf: Any, earlier: Any) -> None:
        if tree.is_array(leaf) and not np.array_equal(np.asarray(leaf), np.asarray(earlier)):
            raise ValueError(
                f"'{self.folder}' holds the rounds of another model: '{path}' differs. Give the parameters that the "
                f"run began with, or another folder."
            )

    def _check_proposed(self, index: int, proposal: Proposal) -> None:
        saved = self.saved[index]
        if (saved.parent, saved.asked) != tuple(proposal):
            raise ValueError(
                f"'{self.folder}' holds the rounds of another run: round {index} pruned round {saved.parent} to "
                f"{saved.asked}, this one would prune round {proposal.parent} to {proposal.sparsity}. Give the same "
                f"target, or another folder."
            )
