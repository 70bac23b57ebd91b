"""What modules return around a tensor: tuples, lists, mappings, named tuples and dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor


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


def passed_through(
    output: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[Any, int | str]:
    """The values of a container that are arguments of the call that returned it.

    Returns:
        The position or name of the argument by the place of the value, without plain values.
    """
    given: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    passed = {}
    for name in () if isinstance(output, Tensor) else _names(output):
        value = _get(output, name)
        key = next((key for key, one in given if one is value), None)
        if key is not None and not isinstance(value, bool | int | float | str | None):
            passed[name] = key
    return passed


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
