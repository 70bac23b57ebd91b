"""Remove attention from any model, verify the result, and save it to a file."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from spat.attention.containers import Argument, Container, tensors_by_place
from spat.attention.discovery import (
    Candidate,
    ForeignSite,
    Loss,
    check_model,
    columns,
    differentiable,
    form,
    looking,
    place,
    unknown,
)
from spat.attention.errors import (
    AttentionError,
    AttentionWarning,
    DeadParameters,
    InputLost,
    SharedOutput,
    Stochastic,
    UnknownSite,
)
from spat.attention.graph import Call, floating, recording
from spat.attention.zeroing import fixed_noise, zeroed
from spat.files import replacing
from spat.scoring.foreign import data_frame
from spat.training.device import costs

if TYPE_CHECKING:
    import pandas as pd

KEY: Final = "spat_removal"
VERSION: Final = 4
# In 2, no argument is passed through. Up to 3, arguments have a position or a name, and the input
# with the shape of the zeros is one of the floating tensors of all arguments.
READABLE: Final = (2, 3, 4)

_RESURRECTED: Final = (
    "save_pretrained does not record removed modules, so from_pretrained restores them with random "
    "weights: use spat.save, and spat.load on a freshly built model"
)


class Removed(nn.Module):
    """Replacement of a removed module: returns zeros for the residual sum.

    The zeros have the shape of an input: the floating tensor `index` in the argument `like`. If
    their last size is another one, it is `width`. If the output is a `container`, it holds the
    zeros in the place of the output. The module may have returned some of its arguments as they
    were, for example a position bias for the next layer: `passed` has these arguments by their
    place in the container. All other values are None.
    """

    def __init__(
        self,
        like: Argument,
        index: int,
        width: int | None,
        container: Container | None,
        passed: Mapping[Any, Argument] | None = None,
        instead_of: nn.Module | None = None,
    ):
        super().__init__()
        self.like, self.index, self.width, self.container = like, index, width, container
        self.passed = dict(passed or {})
        # Attributes that the owner reads, for example the number of heads.
        for name, value in vars(instead_of).items() if instead_of is not None else ():
            if not name.startswith("_") and isinstance(value, bool | int | float | str):
                self.__dict__.setdefault(name, value)
        # With this, nn.TransformerEncoderLayer does not use its fused path, which reads weights.
        self.batch_first = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"the module was removed by spat.prune, so it has no attribute {name!r}: change "
                "the code that uses it, or keep the module"
            ) from None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros instead of the output.

        Raises:
            ValueError: if the argument with the shape of the zeros was not passed.
        """
        tensors = floating(self.like.of(args, kwargs))
        if self.index >= len(tensors):
            raise ValueError(
                f"a module that spat.prune removed was called without its argument "
                f"{self.like.name or self.like.position}, whose shape its zeros have: pass it, as "
                "with the batch that was given to spat.prune"
            )
        x = tensors[self.index]
        zeros = x.new_zeros(x.shape if self.width is None else (*x.shape[:-1], self.width))
        if self.training and torch.is_grad_enabled() and x.requires_grad:
            # Reentrant checkpointing needs an output with a gradient. This one is zero.
            zeros = zeros + x.flatten()[:0].sum()
        if self.container is None:
            return zeros
        others = {place: argument.of(args, kwargs) for place, argument in self.passed.items()}
        return self.container.build(zeros, others=others)


@dataclass(frozen=True)
class Removal:
    """The result of `prune`: the removed modules, the norms replaced by the identity, and sizes.

    `dead` names the parameters that remain but are not used; `before` and `after` are the numbers
    of parameters.
    """

    removed: tuple[str, ...]
    identity: tuple[str, ...]
    dead: tuple[str, ...]
    before: int
    after: int


def prune(
    model: nn.Module,
    sites: str | ForeignSite | Sequence[str | ForeignSite],
    loss: Loss,
    batch: Any,
    *,
    units: Sequence[str] = (),
    inplace: bool = False,
    verify: bool = True,
    tolerance: float = 1e-5,
) -> nn.Module:
    """Remove whole attention sites from any model; returns a copy, unless `inplace`.

    The result computes the same as the model with the outputs of these sites set to zero, which is
    verified on `batch`; if this fails, a model that was changed in place is restored. Norms that
    only the removed attention used are replaced by the identity. The attribute `spat_removal` of
    the result is the `Removal`. Single heads cannot be removed.

    Args:
        model: any model.
        sites: names, or sites that `find_sites` returned; or one of them.
        loss: function of model and batch that returns a scalar or the loss of each sample [B].
        batch: any batch that `loss` accepts.
        units: see `find_sites`.
        inplace: whether to change the model itself.
        verify: whether to compare the result with the model.
        tolerance: the largest difference, absolute and relative.

    Raises:
        UnknownSite: if the model has no such site.
        TypeError: if the model is not a module, or `sites` holds something else than sites.
        ValueError: if the loss or the tolerance is not finite.
        InlineAttention, NoResidual, TooCoarse, SharedModule: if a site cannot be removed.
        SharedOutput: if the verification fails; the model is not changed.
        Stochastic: if the model gives different results at each call.
        NoSites, NotDifferentiable: see `find_sites`.
    """
    wanted = _names(sites)
    check_model(model)
    real = isinstance(tolerance, Real) and not isinstance(tolerance, bool)
    if not (real and 0 <= tolerance < math.inf):
        raise ValueError(f"tolerance={tolerance!r}: give a number of at least 0, such as 1e-5")
    for name in wanted:
        if isinstance(_get(model, name), Removed):
            raise UnknownSite(f"{name!r} was removed before: leave it out")
    model = model if inplace else _copy(model)
    with looking(model, loss, batch, units) as (_, _, candidates):
        chosen = _chosen(candidates, wanted)
        stubs = {call.name: _stub(call) for one in chosen for call in (one.call, *one.branch)}
    if not chosen:
        model.spat_removal = _record(model, (), ())  # type: ignore[assignment]
        return model
    before = costs.parameters(model)
    was = _Run.of(model, loss, batch)
    reached, plain = _reached(model, loss, batch)
    if verify and not was.equals(_Run.of(model, loss, batch), tolerance):
        raise Stochastic(
            f"{type(model).__name__} gives different results at each call: fix the seeds of its "
            "random generators, or pass verify=False"
        )
    with zeroed(model, {name: stub.container for name, stub in stubs.items()}):
        expected = _Run.of(model, loss, batch) if verify else None
    undo: list[Callable[[], None]] = []
    try:
        for name, stub in stubs.items():
            if (old := _get(model, name)) is not None:
                _warn_of_caches(name, old)
                undo.append(_replace(model, old, stub))
        undo.append(_plain_tensors(model))
        try:
            lost = reached - _reached(model, loss, batch)[0]
            norms = tuple(name for name in _dead_norms(model, lost) if name in plain)
            for name in norms:
                back = _replace(model, model.get_submodule(name), nn.Identity())
                undo.append(back)
            got = _Run.of(model, loss, batch)
        except AttentionError:
            raise
        except Exception as error:
            raise SharedOutput(
                f"without {', '.join(wanted)} the model fails ({type(error).__name__}: {error}): "
                "another module uses more of its output than the residual branch; keep it"
            ) from error
        if expected is not None and not got.equals(expected, tolerance):
            raise SharedOutput(
                f"without {', '.join(wanted)} the result differs from the model with their outputs "
                f"set to zero (loss {got.loss:.6g}, not {expected.loss:.6g}): another module uses "
                "what they compute; remove fewer sites"
            )
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    dead = tuple(sorted(n for n in lost if n in dict(model.named_parameters())))
    record = _record(model, dead, norms)
    model.spat_removal = Removal(  # type: ignore[assignment]
        record.removed, record.identity, dead, before, record.after
    )
    _warn_at_save_pretrained(model)
    _warn_of(model, wanted, dead, was, loss, batch)
    return model


def save(model: nn.Module, path: str | Path) -> None:
    """Write the weights of a model and the names of removed modules to one safetensors file.

    Tensors that share memory are written once.

    Raises:
        TypeError: if the model is not a module, its state holds something else than tensors, or the
            path is no path.
        IsADirectoryError: if the path is a folder.
    """
    check_model(model)
    path = _path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; give the name of a file in it")
    weights: dict[str, Tensor] = {}
    seen: set[Any] = set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} in the state of the {type(model).__name__} is a {type(value).__name__}, "
                "not a tensor, as in quantised modules: save the model before it is quantised"
            )
        place = _place(value)
        if place not in seen:
            seen.add(place)
            # A copy, since tensors of a file must not share a part of their memory.
            weights[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    stubs = {
        name: [
            [*astuple(module.like), module.index],
            module.width,
            module.container and module.container.to_json(),
            [(place, astuple(argument)) for place, argument in module.passed.items()],
        ]
        for name, module in model.named_modules()
        if isinstance(module, Removed)
    }
    removal = getattr(model, "spat_removal", None)
    values = {
        "version": VERSION,
        "class": type(model).__name__,
        "removed": stubs,
        "removal": asdict(removal) if isinstance(removal, Removal) else None,
    }
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata={KEY: json.dumps(values)})


def load(model: nn.Module, path: str | Path) -> nn.Module:
    """Prune a freshly built dense model in place as recorded in a file of `save`; load its weights.

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if the model is not a module, or the path is no path.
        ValueError: naming the file, if it is damaged, was not written by `save`, or belongs to
            another model. The model may then be partly pruned: build it again.
    """
    check_model(model)
    path = _path(path)
    if not path.is_file():
        what = "not a file" if path.exists() else "there is no such file"
        raise FileNotFoundError(f"{path}: {what}")
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})[KEY])
        weights = load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a file of spat.save ({error!r})") from None
    if values["version"] not in READABLE:
        raise ValueError(
            f"{path}: has version {values['version']}, but this package reads {READABLE}: "
            "load it with the version of the package that saved it"
        )
    if values["class"] != type(model).__name__:
        raise ValueError(
            f"{path}: holds the weights of a {values['class']}, but the model is a "
            f"{type(model).__name__}: build the model that was saved"
        )
    names = [name for name, _ in model.named_modules()]
    removal = values["removal"] or {}
    for name, stub in values["removed"].items():
        if name not in names:
            raise ValueError(f"{path}: {unknown(name, names)}")
        old = model.get_submodule(name)
        try:
            container = None if stub[2] is None else Container.from_json(stub[2])
        except ValueError as error:
            raise ValueError(f"{path}: {name!r}: {error}") from None
        (*like, index), width = stub[0] if values["version"] > 3 else (None, None, stub[0]), stub[1]
        passed = {place: _argument(key) for place, key in (stub[3] if len(stub) > 3 else ())}
        _replace(model, old, Removed(Argument(*like), index, width, container, passed, old))
    for name in removal.get("identity", ()):
        _replace(model, model.get_submodule(name), nn.Identity())
    if values["removed"]:
        _plain_tensors(model)
        _warn_at_save_pretrained(model)
    own = model.state_dict()
    given = {_place(own[name]) for name in weights if name in own}
    missing = [name for name, value in own.items() if _place(value) not in given]
    wrong = [n for n, value in weights.items() if n not in own or own[n].shape != value.shape]
    if missing or wrong:
        raise ValueError(
            f"{path}: belongs to another model (first differences: {(missing + wrong)[:3]}): build "
            "the model with the same arguments as before it was pruned"
        )
    model.load_state_dict(weights, strict=False)
    if removal:
        tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in removal.items()
        }
        model.spat_removal = Removal(**tuples)  # type: ignore[assignment]
    return model


@dataclass(frozen=True)
class Comparison:
    """Costs of two models on the same inputs. Prints as a table.

    Each attribute has the value of the dense and of the pruned model: `parameters` and `flops` are
    counts, `milliseconds` the latency, and `megabytes` the peak memory of a forward pass.
    """

    parameters: tuple[int, int]
    flops: tuple[int, int]
    milliseconds: tuple[float, float]
    megabytes: tuple[float, float]

    def table(self) -> pd.DataFrame:
        """One row per cost: dense, pruned, and the relative change.

        Raises:
            ImportError: if pandas is not installed.
        """
        rows = [(name, *pair, _change(pair)) for name, pair in self._pairs()]
        return data_frame(rows, ["cost", "dense", "pruned", "change"])

    def __str__(self) -> str:
        head = ("", "dense", "pruned", "change")
        lines = [
            (name, f"{a:,.6g}", f"{b:,.6g}", f"{_change((a, b)):+.1%}")
            for name, (a, b) in self._pairs()
        ]
        return columns([head, *lines])

    __repr__ = __str__

    def _pairs(self) -> list[tuple[str, tuple[float, float]]]:
        return [(name, getattr(self, name)) for name in self.__dataclass_fields__]


def compare(dense: nn.Module, pruned: nn.Module, inputs: Any, *, repeats: int = 30) -> Comparison:
    """Parameters, FLOPs, latency and peak memory of two models on the same inputs.

    `inputs` is a tensor, a tuple of arguments or a mapping of keyword arguments, on the device of
    the models. The latency of a model is the lower quartile of `repeats` passes; the passes of the
    two models alternate.

    Raises:
        TypeError: if one of the models is not a module.
        ValueError: if `repeats` is not a whole number above 0.
    """
    check_model(dense, "the dense model")
    check_model(pruned, "the pruned model")
    if not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats={repeats!r}: give a whole number above 0")
    models = {"dense": dense, "pruned": pruned}
    task, batch = cast(Any, _Calls()), inputs
    device = next((t.device for m in models.values() for t in m.parameters()), torch.device("cpu"))
    try:
        with _without_fast_path():  # FLOPs of the fused encoder layer are not counted
            flops = [costs.flops(model, task, batch) for model in models.values()]
    except Exception as error:
        error.add_note(
            f"raised by a model that was called with the inputs, a {form(inputs)}: give a tensor, "
            "a tuple of arguments or a mapping of keyword arguments, without the target"
        )
        raise
    times = costs.latency(models, task, batch, repeats, device)
    # On the CPU the memory within a fused layer is not measured, but that of its pruned copy is.
    with _without_fast_path() if device.type == "cpu" else contextlib.nullcontext():
        memory = [costs.peak_memory(model, task, batch, device) for model in models.values()]
    return Comparison(
        (costs.parameters(dense), costs.parameters(pruned)),
        (flops[0], flops[1]),
        (times["dense"].milliseconds, times["pruned"].milliseconds),
        (memory[0], memory[1]),
    )


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Calls:
    """A task whose batch holds the arguments of the model."""

    def forward(self, model: nn.Module, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return model(**batch)
        return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@dataclass(frozen=True)
class _Run:
    """The result of a forward pass: the loss, and the floating tensors of the outputs.

    The tensors have the number of the call of the model and their place in its output.
    """

    loss: float
    outputs: dict[Any, Tensor]

    @classmethod
    def of(cls, model: nn.Module, loss: Loss, batch: Any, flipped: bool = False) -> _Run:
        """One pass in `eval()`; with `flipped`, the samples are in reverse order."""
        outputs: dict[Any, Tensor] = {}
        calls = itertools.count()

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            call = next(calls)
            tensors = ((key, t) for key, t in tensors_by_place(output) if t.is_floating_point())
            outputs.update(((call, key), t.detach()) for key, t in tensors)

        with contextlib.ExitStack() as stack:
            stack.enter_context(differentiable(model))
            stack.enter_context(fixed_noise(model))
            if flipped:
                handle = model.register_forward_pre_hook(_flip, with_kwargs=True)
                stack.callback(handle.remove)
            stack.callback(model.register_forward_hook(note).remove)
            value = loss(model, batch).detach().double().sum()
        return cls(float(value), outputs)

    def equals(self, other: _Run, tolerance: float) -> bool:
        """Whether losses agree, and the outputs at the places that both have."""
        close = math.isclose(self.loss, other.loss, rel_tol=tolerance, abs_tol=tolerance)
        return close and all(
            x.shape == y.shape and torch.allclose(x, y, tolerance, tolerance, equal_nan=True)
            for key, x in self.outputs.items()
            if (y := other.outputs.get(key)) is not None
        )


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"the path is a {type(path).__name__}: give the model first, then the path")
    return Path(path)


def _names(sites: Any) -> list[str]:
    given = [sites] if isinstance(sites, str | ForeignSite) else sites
    if not isinstance(given, Iterable) or isinstance(given, Mapping):
        given = [given]
    given = list(given)
    for site in given:
        if not isinstance(site, str | ForeignSite):
            raise TypeError(
                f"sites: a {type(site).__name__} is not a site: give names, or sites of "
                "find_sites, for example scores.lowest(2)"
            )
    return [site if isinstance(site, str) else site.name for site in given]


def _chosen(candidates: Sequence[Candidate], wanted: Sequence[str]) -> list[Candidate]:
    by_name = {one.name: one for one in candidates}
    for name in wanted:
        if name not in by_name:
            raise unknown(name, list(by_name))
        refusal = by_name[name].refusal
        if refusal is not None:
            raise refusal
    return [by_name[name] for name in dict.fromkeys(wanted)]


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of a model that keeps results, such as its last maps, with their graph."""
    kept = [t for m in model.modules() for t in tree_leaves(vars(m)) if isinstance(t, Tensor)]
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in kept if not t.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        error.add_note(
            "raised by copy.deepcopy of the model: pass inplace=True to change the model itself, "
            "or prune it before it is wrapped"
        )
        raise


def _stub(call: Call) -> Removed:
    """The replacement of the module of a call."""
    like, width, container = place(call)
    return Removed(like.argument, like.index, width, container, call.passed, call.module)


def _argument(key: Any) -> Argument:
    """An argument from its position and name in a file; earlier versions had one of them."""
    if isinstance(key, list):
        return Argument(*key)
    return Argument(None, key) if isinstance(key, str) else Argument(key, None)


def _get(model: nn.Module, name: str) -> nn.Module | None:
    """The module of this name, or None if it was removed with a module that contains it."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> Callable[[], None]:
    """Replace a module wherever it occurs; returns a function that restores it."""
    places = [
        (owner, name)
        for owner in model.modules()
        for name, child in owner._modules.items()
        if child is old
    ]
    new.train(old.training)
    for owner, name in places:
        owner._modules[name] = new

    def back() -> None:
        for owner, name in places:
            owner._modules[name] = old

    return back


def _plain_tensors(model: nn.Module) -> Callable[[], None]:
    """Prevent encoders from packing padded sequences, which a replacement cannot process."""
    changed = [m for m in model.modules() if getattr(m, "enable_nested_tensor", False) is True]
    changed += [m for m in model.modules() if getattr(m, "use_nested_tensor", False) is True]
    names = ("enable_nested_tensor", "use_nested_tensor")
    old = [(m, n, getattr(m, n)) for m in changed for n in names if hasattr(m, n)]
    for module, name, _ in old:
        setattr(module, name, False)

    def back() -> None:
        for module, name, value in old:
            setattr(module, name, value)

    return back


def _reached(model: nn.Module, loss: Loss, batch: Any) -> tuple[set[str], set[str]]:
    """The parameters that the loss or an output of the model depends on, and its plain modules.

    These have one argument, and return a tensor of its shape, as norms do.
    """
    outputs: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(differentiable(model))
        stack.enter_context(fixed_noise(model))

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs.extend(t for t in floating(output) if t.requires_grad)

        stack.callback(model.register_forward_hook(note).remove)
        with recording(model) as calls:
            value = loss(model, batch).sum()
        plain = {
            call.name
            for call in calls
            if isinstance(call.output, Tensor)
            and [one.shape for one in call.inputs] == [tuple(call.output.shape)]
            and call.arguments == 1
        }
        for output in outputs:
            value = value + output.sum()
        named = dict(model.named_parameters())
        weights = [p for p in named.values() if p.requires_grad]
        if not value.requires_grad or not weights:
            return set(), plain
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
        alive = {id(p) for p, g in zip(weights, gradients, strict=True) if g is not None}
    return {name for name, p in named.items() if id(p) in alive}, plain


def _dead_norms(model: nn.Module, lost: set[str]) -> tuple[str, ...]:
    """Modules without children whose parameters are vectors and no longer used: norms, scales."""
    names = []
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters())
        if (
            parameters
            and not list(module.children())
            and all(p.ndim == 1 and f"{name}.{n}" in lost for n, p in parameters.items())
        ):
            names.append(name)
    return tuple(names)


def _record(model: nn.Module, dead: tuple[str, ...], norms: tuple[str, ...]) -> Removal:
    removed = tuple(name for name, m in model.named_modules() if isinstance(m, Removed))
    earlier = getattr(model, "spat_removal", None)
    identity = (*(earlier.identity if isinstance(earlier, Removal) else ()), *norms)
    size = costs.parameters(model)
    return Removal(removed, tuple(dict.fromkeys(identity)), dead, size, size)


def _place(tensor: Tensor) -> Any:
    """A key that is equal for tensors of the same memory; tensors without memory all differ."""
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _change(pair: tuple[float, float]) -> float:
    return pair[1] / pair[0] - 1 if pair[0] else math.nan


def _flip(_module: nn.Module, args: Any, kwargs: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.flip(0) if t.ndim else t, (args, kwargs))


def _warn_at_save_pretrained(model: nn.Module) -> None:
    hooks = model._state_dict_pre_hooks.values()
    if hasattr(model, "save_pretrained") and _saving not in hooks:
        model.register_state_dict_pre_hook(_saving)  # type: ignore[no-untyped-call]


def _saving(_module: nn.Module, _prefix: str, _keep: bool) -> None:
    """Warn if `save_pretrained` of a pruned model reads its weights.

    A hook is copied and pickled with the model, and leaves its methods unchanged.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "save_pretrained":
        frame = frame.f_back
    if frame is not None:
        warnings.warn(_RESURRECTED, AttentionWarning, stacklevel=2)


def _warn_of_caches(name: str, module: nn.Module) -> None:
    if any(getattr(part, "layer_idx", None) == 0 for part in module.modules()):
        warnings.warn(
            f"{name!r} is the attention of layer 0, from which a cache of keys may take its number "
            "of tokens: in cached decoding, pass the positions explicitly",
            AttentionWarning,
            stacklevel=3,
        )


def _warn_of(
    model: nn.Module,
    wanted: Sequence[str],
    dead: tuple[str, ...],
    was: _Run,
    loss: Loss,
    batch: Any,
) -> None:
    if dead:
        warnings.warn(
            f"without {', '.join(wanted)} these parameters are not used: {', '.join(dead)}",
            DeadParameters,
            stacklevel=3,
        )
    if hasattr(model, "save_pretrained"):
        warnings.warn(_RESURRECTED, AttentionWarning, stacklevel=3)
    try:
        now, turned = (_Run.of(model, loss, batch, flipped) for flipped in (False, True))
    except Exception:  # a model that depends on the order of its samples
        return
    outputs = [(t, turned.outputs[key]) for key, t in now.outputs.items() if key in turned.outputs]
    varied = any(
        len(t) > 1 and not torch.equal(t, t.flip(0)) for t in was.outputs.values() if t.ndim
    )
    if varied and outputs and all(torch.equal(a, b) for a, b in outputs):
        warnings.warn(
            f"without {', '.join(wanted)} the output no longer depends on the input: keep a site",
            InputLost,
            stacklevel=3,
        )
