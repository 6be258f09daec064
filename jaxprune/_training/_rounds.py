"""Rounds of pruning and retraining until a target, around the user's own training step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _text
from jaxprune._arrays import checks, tree
from jaxprune._evaluation import _metrics, _page
from jaxprune._masks import masking, verbs
from jaxprune._progress import Progress, reporting
from jaxprune._training import _checkpoints
from jaxprune._training._description import described
from jaxprune._training._rewind import rewind
from jaxprune.targets import Proposal, Round, Target
from jaxprune.typing import Masks, Params, Sparsity

_HEADING = ("round", "from", "sparsity", "metric", "epochs")
_CALLS = {
    "init": "init(params, masks)",
    "step": "step(params, state, batch)",
    "batches": "batches(round, epoch)",
    "evaluate": "evaluate(params)",
    "strategy": "strategy(params, sparsity)",
}


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

    Raises:
      TypeError: One of them is not a function.
    """

    init: Callable[[Params, Masks], Any]
    step: Callable[[Params, Any, Any], Any]
    batches: Callable[[int, int], Iterable[Any]]
    evaluate: Callable[[Params], Any]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_function(getattr(self, field.name), f"Trainer.{field.name}", _CALLS[field.name])


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

    def to_html(self, path: str | os.PathLike[str], title: str = "Rounds of pruning") -> None:
        """Writes one self-contained page: the metric over the sparsity, and every round.

        Args:
          path: Where to.
          title: Of the page.
        """
        dense, best = self.history[0], self.history[self.best]
        verdict = [
            f"The best of {len(self.history) - 1} rounds is round {self.best}, at {best.sparsity:.2%} sparsity.",
            f"The metric was {dense.metric:.4f} and is {best.metric:.4f} ({best.metric - dense.metric:+.4f}).",
        ]
        points = [(row.sparsity, row.metric) for row in self.history if math.isfinite(row.metric)]
        rows = [[_page.Cell(str(i)), *map(_page.Cell, cells)] for i, cells in enumerate(self._cells())]
        sections = [
            ("Quality against sparsity", _page.chart({"rounds": sorted(points)}, "sparsity", "metric")),
            ("Every round", _page.table(_HEADING, rows)),
        ]
        _page.write(Path(path), _page.document(title, verdict, sections))

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
        killed: it ends with the same masks and parameters, to the bit. Other arguments are refused, as far as they can
        be told apart: the parameters, the options, the target, the masks of the rounds so far, and the dense model's
        metric. One run at a time; nothing is removed but the round that a killed run left half-written. At the end
        it gets a page, `report.html`.
      progress: Called as `progress(epoch, epochs, what)` at the start of each round, where `epoch` is 0, and after each
        epoch, with the round and its best metric as `what`; or `True`, to show a bar by rich.

    Returns:
      The best round's model, and all rounds.

    Raises:
      ValueError: A retrained model is not masked; a metric is NaN; an epoch has no batches; or the folder is of another
        run, in use by one, or damaged. The message names what.
      TypeError: An argument is of the wrong kind, or a step does not return parameters and state.
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
    _check_function(strategy, "strategy", _CALLS["strategy"])
    if not isinstance(cast("Any", trainer), Trainer):
        raise TypeError(f"`trainer` must be a `jaxprune.Trainer`; got {trainer!r:.100}.")
    if not isinstance(cast("Any", target), Target) or isinstance(target, type):
        raise TypeError(
            f"`target` must be a target; got {target!r:.100}. Give one such as `jaxprune.targets.AtSparsity(0.5)`."
        )
    epochs, minimum = checks.whole(epochs, "epochs", least=0), checks.real(minimum, "minimum")
    patience = None if patience is None else checks.whole(patience, "patience", least=1)
    if math.isnan(minimum):
        raise ValueError("`minimum` is NaN, which no metric is below. Give a number.")
    options: dict[str, Any] = {"epochs": epochs, "patience": patience, "minimum": minimum, "target": described(target)}
    options |= {
        "strategy": described(strategy),
        "snapshot": None if snapshot is None else _checkpoints.checksums(snapshot),
    }
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(reporting(progress))
        if folder is not None:
            stack.enter_context(_checkpoints.locked(Path(folder)))
        retrain = functools.partial(_retrain, trainer, epochs, patience, report)
        run = _Run(params, strategy, retrain, snapshot, None if folder is None else Path(folder))
        run.begin(lambda: _metric(trainer, params, 0), options)
        passed = run.rounds
        while (proposal := target.propose(run.rounds, run.cost)) is not None:
            run.take(Proposal(int(proposal[0]), checks.fraction(float(proposal[1]), "Target.propose")))
            if run.rounds[-1].metric < minimum:
                passed = run.rounds[:-1]
                break
        best = target.best(passed)
        found, masks = run.model(best)
        rounds = Rounds(found, masks, tuple(run.rounds), best)
        if folder is not None and jax.process_index() == 0:
            rounds.to_html(Path(folder) / "report.html")
    return rounds


class _Retrained(NamedTuple):
    params: Params
    metric: float
    epochs: int
    kept: int


def _retrain(
    trainer: Trainer, epochs: int, patience: int | None, report: Progress, index: int, start: Params, masks: Masks
) -> _Retrained:
    """Trains a pruned model, and keeps the parameters of the best epoch."""
    best = _Retrained(start, _metric(trainer, start, index), 0, 0)
    params, state = _copy(start), _copy(trainer.init(start, masks))
    report(0, epochs, f"round {index}, metric {best.metric:.4f}")
    for epoch in range(epochs):
        count = 0
        for count, batch in enumerate(trainer.batches(index, epoch), 1):
            stepped = trainer.step(params, state, batch)
            if epoch == 0 and count == 1:
                _check_step(stepped, start)
            params, state, *_ = stepped
        if not count:
            raise ValueError(
                f"`Trainer.batches({index}, {epoch})` gave no batches. Return a new iterable for each epoch: an "
                f"iterator is used up by the first."
            )
        metric = _metric(trainer, params, index)
        if metric > best.metric:
            best = _Retrained(_copy(params), metric, epoch + 1, epoch + 1)
        best = best._replace(epochs=epoch + 1)
        report(epoch + 1, epochs, f"round {index}, metric {best.metric:.4f}")
        if patience is not None and best.epochs - best.kept >= patience:
            break
    tree.map_with_path(_check_masked, best.params, masks)
    return best


def _metric(trainer: Trainer, params: Params, index: int) -> float:
    metric = checks.real(trainer.evaluate(params), "Trainer.evaluate(params)")
    if math.isnan(metric) or metric == math.inf or (index == 0 and metric == -math.inf):
        raise ValueError(
            f"`Trainer.evaluate` returned {metric} for {f'round {index}' if index else 'the dense model'}; rounds are "
            f"chosen by comparing it. Return a finite number, or -inf for a model that has diverged."
        )
    return metric


def _check_function(value: Any, name: str, call: str) -> None:
    if not callable(value):
        raise TypeError(f"`{name}` must be a function, called as `{call}`; got {value!r:.100}.")


def _check_step(stepped: Any, params: Params) -> None:
    expected = jax.tree.structure(params)
    if not isinstance(stepped, tuple | list) or len(stepped) < 2 or jax.tree.structure(stepped[0]) != expected:
        got = type(stepped).__name__
        raise TypeError(
            f"`Trainer.step(params, state, batch)` must return `(params, state)`, with parameters of the structure "
            f"that it was given; got {got}{f' of {len(stepped)}' if isinstance(stepped, tuple | list) else ''}."
        )
    tree.map_with_path(_check_stepped, params, stepped[0], names=("parameters that `Trainer.step` returns",))


def _check_stepped(path: str, leaf: Any, stepped: Any) -> None:
    if tree.is_array(leaf) and (leaf.shape, leaf.dtype) != (jnp.shape(stepped), jnp.result_type(stepped)):
        raise ValueError(
            f"'{path}' is {leaf.dtype}{list(leaf.shape)}; `Trainer.step` returns it as "
            f"{jnp.result_type(stepped)}{list(jnp.shape(stepped))}. Return parameters like those it was given."
        )


def _copy(values: Any) -> Any:
    """A copy of each leaf, since a jitted step may donate its arguments, and no buffer twice."""
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if tree.is_array(leaf) else leaf, values)


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
        self.structures: dict[int, Masks] = {}
        """Shapes and shardings of the masks, to read them by."""
        records = [] if folder is None else _checkpoints.records(folder)
        self.saved = [Round(**record["round"]) for record in records]
        self.masks = [record["masks"] for record in records]
        self.run: dict[str, Any] = records[0]["run"] if records else {}

    def begin(self, metric: Callable[[], float], options: dict[str, Any]) -> None:
        """Makes the dense model round 0."""
        found = metric()
        run = {"params": _checkpoints.checksums(self.dense), **options}
        _, nothing = self.model(0)
        if not self.saved:
            self._add(Round(0, 0.0, 0.0, found, 0, 0), self.dense, nothing, run)
            return
        self._check_run(run)
        if not math.isclose(found, self.saved[0].metric, rel_tol=1e-3, abs_tol=1e-3):
            self._refuse(f"its dense model has the metric {self.saved[0].metric}, here it is {found}", "`evaluate`")
        self.rounds.append(self.saved[0])

    def take(self, proposal: Proposal) -> None:
        """Does a round, or finds it on disk."""
        index = len(self.rounds)
        if index < len(self.saved):
            self._check_proposed(index, proposal)
        parent, _ = self.model(proposal.parent)
        masks = self.strategy(parent, proposal.sparsity)
        self.structures[index] = jax.tree.map(_abstract, masks)
        if index < len(self.saved):
            self._check_masks(index, masks)
            self.rounds.append(self.saved[index])
            return
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
            self.models[index] = _checkpoints.load(self.folder, index, self.dense, self.structures[index])
        return self.models[index]

    def cost(self, parent: int, of: Callable[[Params, Masks], float], sparsity: float) -> float:
        """The cost of a round's model pruned to a sparsity."""
        params, _ = self.model(parent)
        return of(params, self.strategy(params, sparsity))

    def _add(self, row: Round, params: Params, masks: Masks, run: dict[str, Any] | None = None) -> None:
        index = len(self.rounds)
        if self.folder is not None:
            _checkpoints.save(self.folder, index, params, masks, {"round": row._asdict(), "run": run})
            self.models.clear()
        self.rounds.append(row)
        self.models[index] = params, masks

    def _check_run(self, run: dict[str, Any]) -> None:
        name = _checkpoints.differing(run, self.run)
        if name is None:
            return
        now, then = run.get(name), self.run.get(name)
        if isinstance(now, dict) and isinstance(then, dict):
            self._refuse(f"in its {name} '{_checkpoints.differing(now, then)}' differs", f"`{name}`")
        self._refuse(f"its {name} was {then}, here it is {now}", f"`{name}`")

    def _check_proposed(self, index: int, proposal: Proposal) -> None:
        saved = self.saved[index]
        if (saved.parent, saved.asked) != tuple(proposal):
            self._refuse(
                f"round {index} pruned round {saved.parent} to {saved.asked}, this one would prune round "
                f"{proposal.parent} to {proposal.sparsity}",
                "target",
            )

    def _check_masks(self, index: int, masks: Masks) -> None:
        assert self.folder is not None
        different = _checkpoints.differing(_checkpoints.checksums(masks), self.masks[index])
        if different is not None:
            self._refuse(f"its masks of round {index} differ at '{different}'", "strategy")
        self.model(index)  # to read it now, and not after hours

    def _refuse(self, difference: str, fix: str) -> None:
        raise ValueError(
            f"'{self.folder}' holds the rounds of another run: {difference}. Give the same {fix}, or another folder."
        )


def _abstract(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None))
