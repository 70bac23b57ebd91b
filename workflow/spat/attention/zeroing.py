"""A model with the output of some of its modules at zero, and with the same noise each time."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from spat.attention.containers import Container


@contextlib.contextmanager
def zeroed(
    model: nn.Module, names: Mapping[str, Container | None], *, alone: bool = False
) -> Iterator[None]:
    """Set the output of modules to zero within the block.

    `names` has the containers of the outputs, and None for outputs that are tensors. The other
    values in a container stay; with `alone` they are None, except for arguments that the module
    returned, as if the module had been removed.
    """

    def zero(container: Container | None) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if container is None:
                return torch.zeros_like(output)
            zeros = torch.zeros_like(container.get(output))
            if not alone:
                return container.build(zeros, output)
            given = [*args, *kwargs.values()]
            values = container.values(output)
            others = {n: v for n, v in values.items() if any(v is one for one in given)}
            return container.build(zeros, others=others)

        return hook

    with contextlib.ExitStack() as hooks:
        for name, container in names.items():
            module = model.get_submodule(name)
            handle = module.register_forward_hook(zero(container), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def kept_noise() -> contextlib.AbstractContextManager[None]:
    """Context manager: the states of torch's random generators are restored afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    return torch.random.fork_rng(devices)


@contextlib.contextmanager
def fixed_noise(model: nn.Module) -> Iterator[None]:
    """Seed torch at the entry and exit of each module, by its name and the number of the call.

    Then the random numbers of one module do not depend on those of another, which may be removed.
    """
    count: dict[str, int] = {}
    # torch.manual_seed also reaches accelerators, but a call takes a millisecond: seconds a pass.
    start: Any = torch.default_generator.manual_seed
    if torch.accelerator.is_available():
        start = torch.manual_seed

    def seed(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            count[name] = count.get(name, 0) + 1
            start(zlib.crc32(f"{name} {count[name]}".encode()))

        return hook

    with kept_noise(), contextlib.ExitStack() as hooks:
        start(0)
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(seed(f"{name} in")).remove)
            hooks.callback(module.register_forward_hook(seed(f"{name} out")).remove)
        yield
