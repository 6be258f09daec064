"""Rules: which leaves are pruned how, as a value and as a file.

A list of rules is a strategy: called with parameters, it returns masks, here and inside `gradual`, and
`jaxprune.io.prune` follows it through a file that is larger than memory.

Examples:
  >>> import jax.numpy as jnp
  >>> from jaxprune import patterns
  >>> from jaxprune.rules import Rule, Rules
  >>> params = {"embed": jnp.ones((8, 4)), "mlp": {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}}
  >>> rules = Rules([Rule("embed", method=None), Rule("up", pattern=patterns.NM(2, 4)), Rule(sparsity=0.75)])
  >>> print(rules.explain(params))
  leaf      shape  rule  method       pattern  left  of
  embed     8×4       1  stays dense             32  32
  mlp/down  8×4       3  magnitude                8  32
  mlp/up    4×8       2  magnitude    2:4        16  32
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxprune import _strategies, _text, budgets, patterns
from jaxprune._arrays import checks, tree
from jaxprune._selection import requests
from jaxprune.filters import is_kernel
from jaxprune.typing import Budget, Masks, Params, Pattern, Sparsity, Where

METHODS: Mapping[str, Callable[..., Masks] | None] = {
    "magnitude": _strategies.magnitude,
    "lamp": _strategies.lamp,
    "dft": _strategies.dft,
    "keep": None,
}
"""By the names that files of rules have for them."""

BUDGETS: Mapping[str, Budget] = {"uniform": budgets.uniform, "global": budgets.global_, "erk": budgets.erk}
"""By the names that files of rules have for them."""


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""How the leaves whose paths match are pruned, together.

    Attributes:
      path: A regular expression, searched in the path, or a function of the path; the default matches all.
      method: A strategy, `method(params, sparsity, *, where, pattern, budget)`, or `None`: the leaves stay dense.
      pattern: What is removed together; `None` leaves it to the method.
      sparsity: The fraction to remove; `None` means what the pattern or the budget fixes, else what the rules are
        called with, else 0.5.
      budget: How the sparsity is spread over the leaves of this rule; `None` leaves it to the method.

    Raises:
      ValueError: The expression is not regular, or the sparsity is out of range or contradicts the pattern.
      TypeError: A value is of the wrong type.
    """

    path: str | Callable[[str], bool] = ""
    method: Callable[..., Masks] | None = _strategies.magnitude
    pattern: Pattern | None = None
    sparsity: float | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        tree.matcher(self.path)
        if self.method is not None:
            checks.function(self.method, "method", "jaxprune.magnitude")
        pattern = self.pattern or patterns.Unstructured()
        requests.settled(pattern, self.sparsity, self.budget or budgets.uniform)

    @property
    def name(self) -> str:
        """What the method is called."""
        if self.method is None:
            return "stays dense"
        function: Any = self.method
        while isinstance(function, functools.partial):
            function = function.func
        return getattr(function, "__name__", str(function))

    @property
    def spread(self) -> Budget:
        """The budget, or where there is none the method's own."""
        return self.budget or (budgets.global_ if self.method is _strategies.lamp else budgets.uniform)

    def masks(self, params: Params, sparsity: Sparsity | None, where: Where) -> Masks:
        """The masks of the leaves that `where` picks."""
        assert self.method is not None
        options = {"pattern": self.pattern, "budget": self.budget}
        given = {name: value for name, value in options.items() if value is not None}
        return self.method(params, self.settled(sparsity), where=where, **given)

    def settled(self, sparsity: Sparsity | None) -> Sparsity | None:
        """The sparsity to ask the method for, where the rules are called with this one."""
        fixes = self.pattern is not None and self.pattern.sparsity is not None
        settles = isinstance(self.budget, budgets.SettlingBudget)
        return self.sparsity if self.sparsity is not None or fixes or settles else sparsity

    def counts(self, shapes: Params, sparsity: Sparsity | None = None) -> list[int] | None:
        """How many groups of its pattern each leaf keeps; `None` where only scores tell.

        Args:
          shapes: `jax.ShapeDtypeStruct` for the leaves of the rule, `None` for all others.
          sparsity: What the rules are called with.
        """
        pattern = self.pattern or patterns.Unstructured()
        if self.spread not in (budgets.uniform, budgets.erk):
            return None
        settled: Any = requests.settled(pattern, self.settled(sparsity), self.spread)
        return [int(count) for count in jax.tree.leaves(self.spread(shapes, settled, pattern))]


class Decision(NamedTuple):
    """What is to become of one leaf.

    Attributes:
      path: The leaf's path.
      shape: Its shape.
      size: How many weights it has.
      rule: The number of the rule that matches first, from 0; `None` where none does, or `where` does not pick it.
      kept: How many weights stay; `None` where leaves of the rule compete and only their values tell.
    """

    path: str
    shape: tuple[int, ...]
    size: int
    rule: int | None
    kept: int | None


class Explanation(NamedTuple):
    """What rules will do. Prints as a table, and below it what no rule matches.

    Attributes:
      rules: The rules.
      decisions: One a leaf of two axes or more, in order.
    """

    rules: Sequence[Rule]
    decisions: Sequence[Decision]

    def __str__(self) -> str:
        rows = [("leaf", "shape", "rule", "method", "pattern", "left", "of")]
        for path, shape, size, number, kept in self.decisions:
            if number is None:
                continue
            rule = self.rules[number]
            left = "shared" if kept is None else f"{kept:,}"
            cells = rule.name, _named(rule.pattern), left, f"{size:,}"
            rows.append((path, "×".join(map(str, shape)), str(number + 1), *cells))
        dense = [decision.path for decision in self.decisions if decision.rule is None]
        rest = [f"No rule matches {tree.some(dense)}: dense."] if dense else []
        return "\n".join([*_text.aligned(rows, "llrllrr"), *rest])


@dataclasses.dataclass(frozen=True)
class Rules:
    """A list of rules, the first of which that matches a leaf decides: a strategy.

    Attributes:
      rules: In order. Each must match a leaf of the parameters that it is called with; what none matches stays dense.

    Raises:
      TypeError: They are no rules.
    """

    rules: Sequence[Rule]

    def __post_init__(self) -> None:
        if not checks.is_a(self.rules, list, tuple) or not all(checks.is_a(rule, Rule) for rule in self.rules):
            raise TypeError(f"`Rules` takes a list of `Rule`; got {self.rules!r:.80}. Give, for example, [Rule()].")

    def __call__(self, params: Params, sparsity: Sparsity | None = None, *, where: Where = is_kernel) -> Masks:
        """The masks.

        Args:
          params: Any pytree of arrays.
          sparsity: For the rules that say none; may be traced.
          where: What to prune at all: rules decide among the leaves that it picks.

        Raises:
          ValueError: A rule decides about no leaf; or see its method.
        """
        paths = self.numbers(params, where)
        rows, treedef = tree.flatten(params)
        masks: list[Any] = [None] * len(rows)
        for number, rule in enumerate(self.rules):
            if rule.method is None:
                continue
            mine = {path for path, its in paths.items() if its == number}
            found = rule.masks(params, sparsity, lambda path, leaf, mine=mine: path in mine)
            # A `Spectral` is a subtree of masks.
            for i, mask in enumerate(treedef.flatten_up_to(found)):
                masks[i] = masks[i] if mask is None else mask
        return treedef.unflatten(masks)

    def numbers(self, params: Params, where: Where = is_kernel) -> dict[str, int | None]:
        """For each path the number of the rule that decides about it, from 0, or `None`.

        Raises:
          ValueError: A rule decides about no leaf; the message names the paths there are.
        """
        matchers = [tree.matcher(rule.path) for rule in self.rules]
        rows, _ = tree.flatten(params)
        found = {
            path: next((i for i, matches in enumerate(matchers) if matches(path)), None) if where(path, leaf) else None
            for path, leaf in rows
        }
        for number, rule in enumerate(self.rules):
            if number not in found.values():
                picked = [path for path, leaf in rows if where(path, leaf)]
                raise ValueError(
                    f"Rule {number + 1}, for {rule.path!r}, decides about no leaf that `where` picks: none matches, or "
                    f"earlier rules take them all. There are {tree.some(picked)}. Correct it or take it out."
                )
        return found

    def explain(self, params: Params, sparsity: Sparsity | None = None, *, where: Where = is_kernel) -> Explanation:
        """What will become of each leaf, by its shape alone: nothing is pruned, and nothing computed.

        Args:
          params: Arrays, or `jax.ShapeDtypeStruct` in their place.
          sparsity: As in a call.
          where: As in a call.

        Returns:
          A value that prints as a table.

        Raises:
          ValueError: As in a call.
        """
        numbers = self.numbers(params, where)
        rows, treedef = tree.flatten(params)
        kept = dict[str, int | None]()
        for number, rule in enumerate(self.rules):
            mine = {path for path, its in numbers.items() if its == number}
            shapes = [tree.shape_of(leaf) if path in mine else None for path, leaf in rows]
            paths = [path for path, _ in rows if path in mine]
            sizes = [shape.size for shape in shapes if shape is not None]
            kept |= dict(zip(paths, _left(rule, treedef.unflatten(shapes), sizes, sparsity), strict=True))
        return Explanation(
            self.rules,
            [
                Decision(path, leaf.shape, leaf.size, numbers[path], kept.get(path, leaf.size))
                for path, leaf in rows
                if tree.is_floating(leaf) and leaf.ndim > 1
            ],
        )


def _left(rule: Rule, shapes: Params, sizes: Sequence[int], sparsity: Sparsity | None) -> list[int | None]:
    """How many weights each leaf of a rule keeps, as far as shapes tell."""
    if rule.method is None:
        return list(sizes)
    pattern = rule.pattern or patterns.Unstructured()
    if pattern.sparsity is not None:
        return [round(size * (1 - pattern.sparsity)) for size in sizes]
    kept = rule.counts(shapes, sparsity)
    if kept is None:
        return [None] * len(sizes)
    groups = budgets.group_sizes(shapes, pattern)
    return [round(size * count / max(of, 1)) for size, count, of in zip(sizes, kept, groups, strict=True)]


def _named(pattern: Pattern | None) -> str:
    """What a pattern is called by `pattern_of`, if it is; nothing for single weights."""
    if isinstance(pattern, patterns.NM):
        return f"{pattern.n}:{pattern.m}"
    if isinstance(pattern, patterns.Block):
        return "{}x{}".format(*pattern.shape)
    return "" if pattern is None or isinstance(pattern, patterns.Unstructured) else type(pattern).__name__.lower()


def read(path: str | Path) -> Rules:
    r"""Reads rules from a file of TOML: one table `[[rule]]` each, in order.

    Its keys are those of `Rule`, all of them optional: `path`, a regular expression; `method`, "magnitude", "lamp",
    "dft" or "keep"; `pattern`, as `pattern_of` reads it; `sparsity`; and `budget`, "uniform", "global" or "erk".

    Raises:
      ValueError: It is no such file; the message names the rule and the key.
      OSError: It cannot be read.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not TOML: {error}.") from error
    tables = document.get("rule")
    if (
        set(document) != {"rule"}
        or not isinstance(tables, list)
        or not all(isinstance(table, dict) for table in tables)
    ):
        raise ValueError(
            f"'{path}' must have tables `[[rule]]` and nothing else; got {', '.join(document) or 'nothing'}."
        )
    rules = list[Rule]()
    for number, table in enumerate(tables, 1):
        try:
            rules.append(rule_of(**table))
        except (ValueError, TypeError) as error:
            raise ValueError(f"Rule {number} of '{path}': {error}") from error
    return Rules(rules)


def rule_of(**values: Any) -> Rule:
    """A rule of the texts and numbers that files and command lines have, by the names that `read` lists.

    Raises:
      ValueError: A name or a value is unknown.
      TypeError: A value is of the wrong type.
    """
    known = {field.name for field in dataclasses.fields(Rule)}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"there is no '{name}'; a rule has {', '.join(sorted(known))}.")
        if isinstance(value, str) == (name == "sparsity"):
            raise TypeError(f"'{name}' must be a {'number' if name == 'sparsity' else 'text'}; got {value!r}.")
    choices: dict[str, Mapping[str, Any]] = {"method": METHODS, "budget": BUDGETS}
    for name in values.keys() & choices.keys():
        if values[name] not in choices[name]:
            raise ValueError(f"the {name} must be one of {', '.join(choices[name])}; got {values[name]!r}.")
        values[name] = choices[name][values[name]]
    if "pattern" in values:
        values["pattern"] = pattern_of(values["pattern"])
    return Rule(**values)


def pattern_of(text: str) -> Pattern:
    """A pattern by its name: "unstructured", "2:4", "16x16" for blocks, "channel", or "along" for lines of inputs.

    Raises:
      ValueError: It is none of them.

    Examples:
      >>> print(pattern_of("2:4"), pattern_of("16x4"))
      NM(2, 4) Block(shape=(16, 4), balanced=False, sparsity=None)
    """
    named: dict[str, Pattern] = {
        "unstructured": patterns.Unstructured(), "channel": patterns.Channel(), "along": patterns.Along(),
    }  # fmt: skip
    if text in named:
        return named[text]
    if found := re.fullmatch(r"(\d+)([:x])(\d+)", text):
        first, second = int(found[1]), int(found[3])
        return patterns.NM(first, second) if found[2] == ":" else patterns.Block((first, second))
    raise ValueError(
        f"the pattern must be one of {', '.join(named)}, 'N:M' or 'RxC', as in 2:4 and 16x16; got {text!r}."
    )
