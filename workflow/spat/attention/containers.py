"""The arguments of modules, and the containers that they return: tuples, mappings, dataclasses."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Argument:
    """An argument of a module: its position and name, of which one may be unknown (None).

    If both are None, it stands for all arguments together.
    """

    position: int | None
    name: str | None

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The value in a call; None if the argument was not passed."""
        if self.name is not None and self.name in kwargs:
            return kwargs[self.name]
        if self.position is None:
            return (args, kwargs) if self.name is None else None
        return args[self.position] if self.position < len(args) else None


def arguments(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[tuple[Argument, Any]]:
    """The arguments of a call of a module, with their values."""
    try:
        parameters = list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):  # a callable without a signature
        parameters = []
    names: list[str | None] = [
        p.name if p.kind is p.POSITIONAL_OR_KEYWORD else None for p in parameters
    ]
    names += [None] * len(args)
    return [
        *((Argument(i, names[i]), value) for i, value in enumerate(args)),
        *(
            (Argument(names.index(name) if name in names else None, name), value)
            for name, value in kwargs.items()
        ),
    ]


@dataclass(frozen=True)
class Container:
    """A container with a tensor at one of its places.

    `type` is the class of the container and `names` are its places: the keys of a mapping, the
    fields of a named tuple or dataclass, or numbers. `index` says which of them is the tensor.
    """

    type: type
    names: tuple[Any, ...]
    index: int

    @classmethod
    def of(cls, value: Any, tensor: Tensor | None) -> Container | None:
        """The container of a tensor; None if the tensor is deeper in it or it cannot be built."""
        names = _names(value)
        index = next((i for i, name in enumerate(names) if _get(value, name) is tensor), None)
        if tensor is None or index is None:
            return None
        container = cls(type(value), names, index)
        try:
            container.build(tensor)
        except Exception:  # whatever a foreign class raises
            return None
        return container

    def build(
        self, tensor: Tensor, like: Any = None, others: Mapping[Any, Any] | None = None
    ) -> Any:
        """A container with a tensor at its place and, elsewhere, the values of `like` or None.

        `others` are further values, by their place.
        """
        values = {name: None if like is None else _get(like, name) for name in self.names}
        values.update(others or {})
        values[self.names[self.index]] = tensor
        make: Any = self.type
        if _has_fields(make):
            return make(**values)
        return make(values) if issubclass(make, Mapping) else make(values.values())

    def get(self, value: Any) -> Tensor:
        """The tensor in a container of this form."""
        tensor: Tensor = _get(value, self.names[self.index])
        return tensor

    def values(self, value: Any) -> dict[Any, Any]:
        """The values in a container of this form besides the tensor, by their places."""
        places = [name for i, name in enumerate(self.names) if i != self.index]
        return {name: _get(value, name) for name in places}

    def to_json(self) -> dict[str, Any]:
        """The container as values of JSON.

        Raises:
            ValueError: if the keys of a mapping are not text or numbers.
        """
        if not all(isinstance(name, str | int) for name in self.names):
            raise ValueError(f"a mapping with the keys {self.names} cannot be saved: use text")
        path = f"{self.type.__module__}:{self.type.__qualname__}"
        return {"type": path, "names": list(self.names), "index": self.index}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Container:
        """The container that `to_json` described.

        Nothing is imported: the class must be in a module that is loaded, such as the one of the
        model, and be a container.

        Raises:
            ValueError: if there is no such class.
        """
        module, _, path = values["type"].partition(":")
        value: Any = sys.modules.get(module)
        for name in path.split("."):
            value = getattr(value, name, None)
        if not isinstance(value, type) or not (
            issubclass(value, tuple | list | Mapping) or is_dataclass(value)
        ):
            raise ValueError(
                f"no container {path!r} is in the loaded module {module!r}: define the class that "
                "the attention returns at the top of a module, and import that module first"
            )
        return cls(value, tuple(values["names"]), values["index"])


def passed_through(output: Any, given: Sequence[tuple[Argument, Any]]) -> dict[Any, Argument]:
    """The values of a container that are arguments of the call that returned it.

    Returns:
        The argument by the place of the value, without plain values.
    """
    passed = {}
    for name in () if isinstance(output, Tensor) else _names(output):
        value = _get(output, name)
        key = next((key for key, one in given if one is value), None)
        if key is not None and not isinstance(value, bool | int | float | str | None):
            passed[name] = key
    return passed


def tensors_by_place(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, Tensor]]:
    """The tensors in nested containers, each with its place.

    An inner list that lacks an item has other items at its places: its length is part of them.
    """
    if isinstance(value, Tensor):
        yield place, value
    elif not isinstance(value, str | bytes):
        inner = isinstance(value, list | tuple) and not _has_fields(value) and len(place) > 1
        size = len(value) if inner else None
        for name in _names(value):
            yield from tensors_by_place(_get(value, name), (*place, size, name))


def _names(value: Any) -> tuple[Any, ...]:
    if isinstance(value, type):
        return ()
    if is_dataclass(value):
        return tuple(field.name for field in fields(value) if field.init)
    if isinstance(value, Mapping):
        return tuple(value)
    if hasattr(value, "_fields"):
        return tuple(value._fields)
    return tuple(range(len(value))) if isinstance(value, Sequence) else ()


def _get(value: Any, name: Any) -> Any:
    if isinstance(name, int) and not isinstance(value, Mapping):
        return value[name]
    return getattr(value, name) if _has_fields(value) else value[name]


def _has_fields(value: Any) -> bool:
    return is_dataclass(value) or hasattr(value, "_fields")
