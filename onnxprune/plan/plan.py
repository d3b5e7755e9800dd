"""Plans: which units of which groups go, as a value and as a file.

The file holds names and positions only, no weights: it replays to the same model, and its ``weights`` tell which
positions of which tensor go, so that a training checkpoint can be cut the same way.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune import arguments
from onnxprune.channels.facts import SPATIAL, Axis
from onnxprune.channels.groups import ChannelGroup, Channels
from onnxprune.errors import PlanError, UsageError
from onnxprune.model.shapes import node_name
from onnxprune.plan.allocation import Task, allocate
from onnxprune.plan.demand import Demand
from onnxprune.plan.rounding import block
from onnxprune.plan.select import select
from onnxprune.score.scores import Scores, Vector

SCHEMA = 1

Positions = tuple[int, ...] | tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class MaskRow:
    """How many zeros a stored tensor gets, and their pattern: ``unstructured``, ``2:4``, ``1x4`` and the like.

    With ``fixed``, magnitude alone decides which weights go, also where samples are given; otherwise the ``criterion``,
    by default the best.
    """

    tensor: str
    pattern: str
    zeros: int
    fixed: bool = False
    criterion: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Units to remove by group name; ``units`` are the sizes of all groups, which must agree when it is applied.

    ``options`` records how the plan was made, ``weights`` the removed positions by tensor and dimension: one list, or
    one for each block of consecutive rows (dimension 0) where the groups of a grouped operator lose different ones.
    ``blocks`` are dropped before units go, so groups are those of what they leave; ``masks`` come last.
    """

    removals: Mapping[str, tuple[int, ...]]
    units: Mapping[str, int]
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[tuple[str, int, Positions], ...] = ()
    blocks: tuple[str, ...] = ()
    masks: tuple[MaskRow, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing goes."""
        return not (self.removals or self.blocks or self.masks)

    def to_json(self) -> str:
        """Returns the plan as JSON text, keys in order."""
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "options": dict(self.options),
            "blocks": list(self.blocks),
            "groups": [
                {"name": name, "units": count, "removed": list(self.removals.get(name, ()))}
                for name, count in self.units.items()
            ],
            "weights": [{"tensor": name, "axis": dim, "removed": list(lost)} for name, dim, lost in self.weights],
        }
        content["masks"] = [asdict(row) for row in self.masks]
        rows = {name: content.pop(name) for name in ("groups", "weights", "masks")}
        text = json.dumps(content, indent=1).removesuffix("\n}")
        for name, lines in rows.items():
            text += f',\n "{name}": [' + ",".join(f"\n  {json.dumps(line)}" for line in lines) + "\n ]"
        return text + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Returns a plan from JSON text.

        Raises:
            UsageError: the text is not a plan.
        """
        try:
            content = json.loads(text)
            groups = content["groups"]
            removals = {str(g["name"]): tuple(int(unit) for unit in g["removed"]) for g in groups if g["removed"]}
            units = {str(g["name"]): int(g["units"]) for g in groups}
            rows = content.get("weights", [])
            weights = tuple((str(w["tensor"]), int(w["axis"]), _positions(w["removed"])) for w in rows)
            options = dict(content.get("options", {}))
            blocks = tuple(str(name) for name in content.get("blocks", ()))
            masks = tuple(
                MaskRow(
                    str(m["tensor"]),
                    str(m["pattern"]),
                    int(m["zeros"]),
                    bool(m.get("fixed")),
                    _word(m.get("criterion")),
                )
                for m in content.get("masks", ())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError("the text is not a plan: give one that --save-plan wrote") from error
        if content.get("schema") != SCHEMA:
            raise PlanError(
                f"the plan has schema {content.get('schema')!r}, not {SCHEMA}: write it anew with --save-plan"
            )
        return cls(removals, units, options, weights, blocks, masks)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Returns the plan in a file.

        Raises:
            UsageError: the file cannot be read.
            UsageError: it holds no plan.
        """
        path = arguments.path(path, "the path of the plan")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UsageError(
                f"the plan {str(path)!r} cannot be read ({reason}): give the path of a saved plan"
            ) from error
        try:
            return cls.from_json(text)
        except UsageError as error:
            raise UsageError(f"{str(path)!r} holds no plan: give a file that --save-plan wrote") from error

    def check(self, channels: Channels) -> None:
        """Checks that the plan was made for this model.

        Raises:
            PlanError: a group is missing or has another number of units.
        """
        present = {group.name: group.units for group in channels.groups}
        for name, count in self.units.items():
            if present.get(name) != count:
                found = f"has {present[name]}" if name in present else "does not have it"
                raise PlanError(
                    f"the plan was made for a model in which group {name!r} has {count} units, and this one {found}: "
                    "make a plan for this model with --save-plan"
                )


def plan(
    channels: Channels,
    scores: Scores,
    ratio: float | None = None,
    round_to: int | str = "auto",
    allocation: str = "uniform",
    target: str = "ort-cpu",
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    *,
    max_macs: float | str | None = None,
    max_params: float | str | None = None,
    losses: Mapping[str, Vector] | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
) -> Plan:
    """Returns which units go: the lowest scores of every group, as many as the allocation gives it.

    Args:
        channels: Analysis of the model.
        scores: Importance of its units.
        ratio: Fraction of the prunable units to remove, 0 <= ratio < 1; counts that stay are rounded to the nearest.
        round_to: Multiple for the channels that stay, or ``auto`` for what the target likes.
        allocation: ``uniform`` (the same fraction everywhere), ``global`` (the lowest scores of all groups),
            ``per-mac`` (the lowest for what they save) or ``measured`` (the smallest ``losses`` for what they save).
        target: ``ort-cpu``, ``ort-cuda``, ``tensorrt`` or ``generic``.
        include: Selectors; only groups that one of them matches.
        exclude: Selectors; no group that one of them matches.
        max_macs: Instead of a ratio, what may stay of the multiply-accumulates: a fraction, or text as ``3GMAC``.
        max_params: The same of the parameters, such as ``0.5`` or ``10M``.
        losses: For ``measured``: what the outputs lose when the first 0, 1, 2, ... units of a group are gone.
        input_shape: Sizes of inputs with free dimensions at which multiply-accumulates are counted.

    Raises:
        UsageError: an option is out of range.
        SelectorError: a selector matches nothing.
        PlanError: nothing can be removed.
    """
    round_to, target = arguments.multiple(round_to, "--round-to"), arguments.word(target, "--target")
    include, exclude = arguments.patterns(include, "--include"), arguments.patterns(exclude, "--exclude")
    shapes = arguments.shapes(input_shape, "the sizes of inputs")
    demand = Demand.of(ratio, max_macs, max_params)
    groups = select(channels, include, exclude)
    blocks = [block(group, round_to, target) for group in groups]
    made = planned(Task(channels, groups, blocks, scores, losses, shapes), allocation, demand)
    options = {
        **demand.options(), "score": scores.name, "allocation": allocation, "round_to": round_to, "target": target,
        "include": list(include), "exclude": list(exclude), "inexact": made.options["inexact"],
    }  # fmt: skip
    return replace(made, options=options)


def planned(task: Task, allocation: str, demand: Demand) -> Plan:
    """Returns which units of the groups of a task go.

    Raises:
        UsageError: there is no such allocation.
        PlanError: nothing can be removed.
    """
    if not task.groups:
        raise PlanError(why_nothing(task.channels))
    removed, met = allocate(task, allocation, demand)
    removals = {
        group.name: lowest(group, task.scores.values[group.name], int(count))
        for group, count in zip(task.groups, removed, strict=True)
        if count
    }
    if not removals and not met:
        raise PlanError(
            f"rounding leaves nothing to remove from {len(task.groups)} groups at {demand}: "
            "ask for more, or lower --round-to"
        )
    return plan_of(task.channels, removals)


def plan_of(channels: Channels, removals: Mapping[str, tuple[int, ...]]) -> Plan:
    """Returns the plan that removes these units; its options say whether a group of them is inexact."""
    inexact = any(not group.exact and group.name in removals for group in channels.groups)
    units = {group.name: group.units for group in channels.prunable}
    return Plan(removals, units, {"inexact": inexact}, _weights(channels, removals))


def lowest(group: ChannelGroup, values: Vector, count: int) -> tuple[int, ...]:
    """Returns the ``count`` units of the lowest scores, in order; as many from each block of the group."""
    order = np.argsort(values, kind="stable")
    if group.blocks is not None:
        order = order[np.argsort(group.blocks[order], kind="stable")].reshape(group.block_count, -1)
        order = order[:, : count // group.block_count].ravel()
    return tuple(np.sort(order[:count]).tolist())


def _weights(channels: Channels, removals: Mapping[str, tuple[int, ...]]) -> tuple[tuple[str, int, Positions], ...]:
    lost_of = channels.lost(removals)
    stored = {axis for group in channels.groups for axis in group.weights}
    found: dict[Axis, Positions] = {axis: tuple(lost.tolist()) for axis, lost in lost_of.items() if axis in stored}
    for grid in channels.grids:
        axis = Axis(grid.tensor, grid.columns)
        if axis in stored and grid.axis in lost_of:
            blocks = channels.shapes.shapes[grid.axis.tensor][grid.axis.dim] // grid.size
            rows = (lost_of[grid.axis] % grid.size).reshape(blocks, -1).tolist()
            found[axis] = tuple(map(tuple, rows)) if any(row != rows[0] for row in rows) else tuple(rows[0])
    return tuple((*axis, lost) for axis, lost in sorted(found.items()))


def _word(value: object) -> str | None:
    return None if value is None else str(value)


def _positions(removed: list[Any]) -> Positions:
    if any(isinstance(item, list) for item in removed):
        return tuple(tuple(int(place) for place in row) for row in removed)
    return tuple(int(place) for place in removed)


def why_nothing(channels: Channels) -> str:
    """Returns why nothing of a model, or of the selected groups, can be pruned."""
    reasons: dict[str, int] = {}
    for group in channels.groups:
        if group.frozen not in (None, SPATIAL) and group.units > 1:
            reasons[group.frozen] = reasons.get(group.frozen, 0) + 1
    if channels.prunable:
        return "no prunable group is selected: loosen --include or --exclude"
    bodies = [
        node_name(node) for node in channels.graph.nodes if any(isinstance(v, gs.Graph) for v in node.attrs.values())
    ]
    if not reasons and bodies:
        return f"nothing can be pruned: the weights are inside the bodies of {', '.join(map(repr, bodies[:3]))}"
    if not reasons:
        return "nothing can be pruned: the model has no weights that a channel rule knows"
    most = max(reasons, key=lambda reason: reasons[reason])
    return f"nothing can be pruned; the most common reason is {most!r}: see 'onnxprune inspect' for all of them"
