"""Official names and shapes of weights as data: one table reads them, writes them, and finds modules by them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vssm.models._checkpoint.read import merged

# The official dimensions in terms of ours: (0, 1) joins two of ours, () is a dimension of size one. None: as ours.
Dims = tuple[int | tuple[int, ...], ...] | None


@dataclass(frozen=True)
class Row:
    """One line of a table: an official name and ours.

    Names are templates of dotted paths: "layers.{i}.blocks" stands for one name per index, "{i+1}" for an index that
    counts from elsewhere. A template also stands for all names below it.

    Args:
        theirs: the official name; several for tensors that are stacked here along a new first dimension.
        ours: our name; several for the equal parts that the official tensor is split into along its first dimension.
        dims: the official dimensions of each tensor (of each part, each slice) in terms of ours.
        joined: several official tensors are not stacked here, but joined along their first dimension. `dims` is then
            of what is joined.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    dims: Dims = None
    joined: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.theirs, tuple) and isinstance(self.ours, tuple):
            raise ValueError(f"{self}: several official tensors into several of ours; expected one on either side")

    @cached_property
    def patterns(self) -> list[re.Pattern]:
        """What our names must match from their start, one for each of them."""
        return [_pattern(ours) for ours in _several(self.ours)]

    @property
    def stacks(self) -> bool:
        """Whether the official tensors are stacked."""
        return isinstance(self.theirs, tuple) and not self.joined


@dataclass(frozen=True)
class Rule:
    """What one row of a table says of the tensors of one model."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    row: Row | None

    def read(self, values: Sequence[Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """Our tensors from the official ones; those that fit no shape stay misshapen, to be reported."""
        split = self.row is not None and isinstance(self.row.ours, tuple)
        stacked = self.row is not None and self.row.stacks
        dims = None if self.row is None else self.row.dims
        if split:
            values = values[0].chunk(len(self.ours)) if values[0].dim() and not len(values[0]) % len(self.ours) else []
        elif self.row is not None and self.row.joined:
            values = [torch.cat(values)] if len({value.shape for value in values}) == 1 else []
        found = {}
        for ours, parts in zip(self.ours, [values] if stacked else [[value] for value in values], strict=False):
            shape = shapes.get(ours)
            inner = shape[1:] if stacked and shape is not None else shape
            parts = [_reshaped(part, inner, dims) for part in parts]
            if not stacked:
                found[ours] = parts[0]
            elif len({part.shape for part in parts}) == 1:
                found[ours] = torch.stack(parts)
        return found

    def write(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The official tensors from ours."""
        if self.row is None:
            return {self.theirs[0]: state[self.ours[0]]}
        values = [state[name] for name in self.ours]
        parts = list(values[0]) if self.row.stacks else values
        parts = [_official(part, self.row.dims) for part in parts]
        if isinstance(self.row.ours, tuple):
            parts = [torch.cat(parts)]
        elif self.row.joined:
            parts = parts[0].chunk(len(self.theirs))
        return dict(zip(self.theirs, (part.contiguous() for part in parts), strict=True))


@dataclass(frozen=True)
class Renaming:
    """The official layout of a family's weights: a table that is read in both directions.

    Where several rows match a name, the one that matches most of it counts, the last of equals; a name that none
    matches is the same in both layouts.

    Args:
        rows: (official name, our name), with dims and joined where they are needed: see `Row`.
        older: (older official name, official name): names of earlier releases, which are read and never written.
        dropped: official names that are left out: buffers that are computed here.
        outputs: (official module, our module) where a module has no weights of its own, or where the output of one is
            that of another here: needed to compare intermediate results.
        twins: (second official name, official name) of tensors that stand in official files twice.

    >>> table = Renaming((("layers.{i}.downsample", "stages.{i+1}.downsample"), ("head", "head.fc")))
    >>> table.official("stages.2.downsample.norm.bias")
    ('layers.1.downsample.norm.bias',)
    """

    rows: tuple[tuple, ...] = ()
    older: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    twins: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: Renaming) -> Renaming:
        """Both tables in one."""
        return Renaming(
            self.rows + other.rows,
            self.older + other.older,
            self.dropped + other.dropped,
            self.outputs + other.outputs,
            self.twins + other.twins,
        )

    @cached_property
    def _table(self) -> list[Row]:
        return [Row(*row) for row in self.rows]

    @cached_property
    def _older(self) -> Renaming:
        return Renaming(self.older)

    @cached_property
    def _twin(self) -> Renaming:
        return Renaming(self.twins)

    def official(self, name: str) -> tuple[str, ...]:
        """The official names of one of our tensors; several where it is stacked of them."""
        return self._find(name)[0]

    def _find(self, name: str) -> tuple[tuple[str, ...], Row | None, dict[str, int]]:
        best: tuple[int, Row, re.Match] | None = None
        for row in self._table:
            for pattern in row.patterns:
                found = pattern.match(name)
                if found and (best is None or found.end() >= best[0]):
                    best = found.end(), row, found
        if best is None:
            return (name,), None, {}
        end, row, found = best
        indices = _indices(found)
        return tuple(_filled(theirs, indices) + name[end:] for theirs in _several(row.theirs)), row, indices

    def rules(self, names: Iterable[str]) -> Iterator[Rule]:
        """What the table says of a model with tensors of these names."""
        done = set()
        for name in names:
            theirs, row, indices = self._find(name)
            if row is None or isinstance(row.ours, str):
                yield Rule(theirs, (name,), row if row and _is_tensor_row(row) else None)
            elif theirs not in done:  # one official tensor, several of ours: seen again at each of them
                done.add(theirs)
                yield Rule(theirs, tuple(_filled(ours, indices) for ours in row.ours), row)

    def read(self, state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """A state dict in the official layout as one of ours; names that are not official ones stay as they are.

        Args:
            state: weights, in the official layout or in ours.
            shapes: of our tensors.

        Raises:
            CheckpointError: a tensor that stands there twice, with different values.
        """
        if state.keys() <= shapes.keys():
            return dict(state)
        state = {name: value for name, value in state.items() if not name.startswith(self.dropped)}
        rules = list(self.rules(shapes))
        for other_names in (self._older, self._twin):
            if other_names.rows:
                current = {other_names.official(name)[0]: name for rule in rules for name in rule.theirs}
                state = merged((current.get(name, name), value) for name, value in state.items())
        found = {}
        for rule in rules:
            if all(name in state for name in rule.theirs):
                ours = rule.read([state[name] for name in rule.theirs], shapes)
                if ours:
                    found.update(ours)
                    for name in rule.theirs:
                        del state[name]
        return merged((*state.items(), *found.items()))

    def write(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of ours in the official layout."""
        written = {name: value for rule in self.rules(state) for name, value in rule.write(state).items()}
        return {self._twin.official(name)[0]: value for name, value in written.items()} | written

    def module(self, official: str, names: Iterable[str]) -> str:
        """Our module whose output is that of an official one: the one that holds just its weights.

        Args:
            official: path of the official module.
            names: of all our tensors.

        Raises:
            KeyError: there is none.
        """
        names = list(names)
        held = [name for name in names if any(theirs.startswith(f"{official}.") for theirs in self.official(name))]
        if held:
            path = posixpath.commonpath([posixpath.dirname(name.replace(".", "/")) for name in held]).replace("/", ".")
            if sum(name.startswith(f"{path}.") for name in names) == len(held):
                return path
        for theirs, ours in self.outputs:
            if (found := _pattern(theirs).match(official)) and found.end() == len(official):
                return _filled(ours, _indices(found))
        raise KeyError(f"no module of ours holds just the weights of the official {official!r}")


def under(theirs: str, ours: str, rows: Iterable[tuple]) -> tuple[tuple, ...]:
    """Rows for what lies below a module, from rows that begin there.

    >>> under("layers.{i}", "stages.{i}", [("op", "mixer")])
    (('layers.{i}.op', 'stages.{i}.mixer'),)
    """

    def below(top: str, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return f"{top}.{names}" if isinstance(names, str) else tuple(f"{top}.{name}" for name in names)

    return tuple((below(theirs, row[0]), below(ours, row[1]), *row[2:]) for row in rows)


_END = r"(?=\.|$)"
_INDEX = re.compile(r"\{(\w+)([+-]\d+)?\}")


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _is_tensor_row(row: Row) -> bool:
    return row.dims is not None or isinstance(row.theirs, tuple)


def _pattern(template: str) -> re.Pattern:
    """A template as an expression that matches the beginnings of names; "{i+1}" becomes a group "i_p1"."""
    parts = _INDEX.split(template)
    text = re.escape(parts[0])
    for name, offset, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        group = name + (offset or "").replace("+", "_p").replace("-", "_m")
        text += rf"(?P<{group}>\d+)" + re.escape(rest)
    return re.compile(text + _END)


def _indices(found: re.Match) -> dict[str, int]:
    """The indices that a match of `_pattern` stands for."""
    indices = {}
    for group, digits in found.groupdict().items():
        name, _, offset = group.partition("_")
        indices[name] = int(digits) - (int(offset.replace("p", "+").replace("m", "-")) if offset else 0)
    return indices


def _filled(template: str, indices: Mapping[str, int]) -> str:
    return _INDEX.sub(lambda found: str(indices[found[1]] + int(found[2] or 0)), template)


def _reshaped(value: Tensor, shape: torch.Size | None, dims: Dims) -> Tensor:
    """An official tensor in our shape; where it cannot be had, as it is."""
    if shape is None or value.shape == shape:
        return value
    if dims is not None:
        fits = value.numel() == shape.numel() and all(axis < len(shape) for axis in _axes(dims))
        if not fits:
            return value
        axes = _axes(dims)
        return value.reshape([shape[axis] for axis in axes]).permute([axes.index(axis) for axis in range(len(axes))])
    # Linear layers are 1 x 1 convolutions in some files.
    without_ones = [[size for size in sizes if size != 1] for sizes in (value.shape, shape)]
    return value.reshape(shape) if without_ones[0] == without_ones[1] else value


def _official(value: Tensor, dims: Dims) -> Tensor:
    """One of our tensors in the official shape."""
    if dims is None:
        return value
    groups = [(group,) if isinstance(group, int) else group for group in dims]
    sizes = [torch.Size([value.shape[axis] for axis in group]).numel() for group in groups]
    return value.permute(_axes(dims)).reshape(sizes)


def _axes(dims: Dims) -> list[int]:
    return [axis for group in dims for axis in ((group,) if isinstance(group, int) else group)]
