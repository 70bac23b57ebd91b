"""Read a YAML file as plain values, with stricter rules than YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

# The largest size of a file, which takes a second to read; experiments have a few thousand bytes.
MOST_BYTES: Final = 10**6
# The largest number of values in a file with aliases expanded; experiments have a few hundred.
MOST_VALUES: Final = 100_000


def read(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ValueError: naming the file (and the line, if possible), if the file cannot be read, is not
            YAML in UTF-8, has a duplicate key in a mapping or a number in another form than decimal
            digits, is larger than `MOST_BYTES`, or has aliases that refer to themselves or expand
            to more than `MOST_VALUES` values.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe or a device"
        raise ValueError(f"{path}: {kind}, not a regular file")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(
                f"{path.stat().st_size} bytes, more than the {MOST_BYTES} of a configuration: give "
                "another file"
            )
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} is not UTF-8: save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def typed(value: Any) -> Any:
    """A value of Snakemake's `--config`, in which nested numbers and truth values are texts."""
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    if isinstance(value, list):
        return [typed(part) for part in value]
    if isinstance(value, str) and _NUMBER_OR_TRUTH.fullmatch(value):
        return yaml.load(value, _Loader)
    return value


class _Loader(yaml.SafeLoader):
    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _check(node, {})
        return node


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The number of values in a node, including values repeated by aliases."""
    if (known := sizes.get(id(node))) is not None:
        if not known:
            raise ValueError(f"{_place(node)}: the alias refers to the value that contains it")
        return known
    sizes[id(node)] = 0  # in progress: if this node occurs again below, it contains itself
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode) and (number := _misread(node)) is not None:
        raise ValueError(
            f"{_place(node)}: YAML reads {node.value!r} as the number {number}: write the number "
            "in plain digits, or quote a text"
        )
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, Any], yaml.Node] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                earlier = first.setdefault((key.tag, key.value), key)
                if earlier is not key:
                    raise ValueError(
                        f"{_place(key)}: the key {key.value!r} is a duplicate (first in "
                        f"{_place(earlier)}): keep one"
                    )
            parts += [key, value]
    size = 1 + sum(_check(part, sizes) for part in parts)
    if size > MOST_VALUES:
        raise ValueError(
            f"{_place(node)}: more than {MOST_VALUES} values (including aliases): use fewer"
        )
    sizes[id(node)] = size
    return size


# Plain decimal numbers. YAML 1.1 has other forms: 010 is 8, 1:30 is 90, 1_0 is 10.
_EXPONENT: Final = r"[-+]?(0|[1-9]\d*)(\.\d*)?[eE][-+]?\d+"
_PLAIN: Final = re.compile(
    rf"{_EXPONENT}"
    r"|[-+]?(0|[1-9]\d*|(0|[1-9]\d*)?\.\d+([eE][-+]\d+)?|(0|[1-9]\d*)\.(\d*([eE][-+]\d+)?))"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

_NUMBER_OR_TRUTH: Final = re.compile(rf"{_PLAIN.pattern}|(?i:true|false|null)")
# YAML 1.1 reads `1e-3` and `1.5e3` as texts; YAML 1.2 and JSON as numbers.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(f"(?:{_EXPONENT})$"), list("-+0123456789")
)


def _misread(node: yaml.ScalarNode) -> int | float | None:
    numeric = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if not numeric or _PLAIN.fullmatch(node.value):
        return None
    value = yaml.safe_load(node.value)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def _place(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
