"""A copy of a model for one sampling: the same tensors, in modules of its own.

``torch.func.functional_call`` puts weights into the modules that it calls, for as long as the call
lasts. In the modules of a copy nobody else sees them: neither another thread, nor a loss that also
evaluates the model that was given, nor whoever uses it afterwards. Parameters and buffers are those
of the model, so that a copy takes no memory.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rllc.errors import InputError, first_line
from rllc.storage.contents import global_names

Model = TypeVar("Model", bound=nn.Module)

_ATOMS = (Tensor, type, types.ModuleType, str, bytes, int, float, complex, type(None))
"""Kinds of values that lead nowhere."""

_OF_ANY_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def private_copy(model: Model) -> Model:
    """Copy a model's modules and what refers to them; tensors are shared.

    >>> model = nn.Linear(2, 1)
    >>> copied = private_copy(model)
    >>> copied is model, copied.weight is model.weight
    (False, True)

    Whatever a module holds that leads back to a module of the model, such as a method, a hook or a
    function that was made inside it, leads to the copy's in the copy. Containers are copied, so
    that a module that keeps activations keeps those of a chain in the copy.

    Raises:
        InputError: a part of the model is compiled by ``torch.jit``, or a function that it holds
            finds the model as a global: it would evaluate the weights as they were.
    """
    return _Copy(model).of(model)


class _Copy:
    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[int, nn.Module] = {}
        """By the original's id: the copy."""
        self.made: dict[int, Any] = {}
        """By the original's id: whatever else was copied."""
        self.originals: list[Any] = []
        """Kept, so that no id is used again."""
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise InputError(
                    f"sampling {type(model).__name__}: its part {name!r} is compiled by torch.jit, "
                    f"into which no weights can be put; give the model as it was before."
                )
            self.modules[id(module)] = object.__new__(_kind_of_copy(module))
            self.originals.append(module)
        self.leads_nowhere: dict[int, Any] = {}
        """By id: what does not lead to a module."""
        for module in list(self.originals):
            self._fill(module)

    def of(self, module: Model) -> Model:
        copied: Any = self.modules[id(module)]
        return copied

    def _fill(self, module: nn.Module) -> None:
        copied = self.modules[id(module)]
        copied.__dict__.update(vars(nn.Module()))
        for name, value in vars(module).items():
            if type(copied) is _Eager and name not in _OF_ANY_MODULE:
                continue  # it is compiled for the original
            copied.__dict__[name] = self._value(value)
        copied.__dict__["_compiled_call_impl"] = None  # so is this

    def _value(self, value: Any) -> Any:
        """Return a value for the copy: itself, unless it leads to a module or is a container."""
        if id(value) in self.modules:
            return self.modules[id(value)]
        if id(value) in self.made:
            return self.made[id(value)]
        if isinstance(value, Tensor) and value.is_inference():
            return self._tensor(value)
        if isinstance(value, _ATOMS):
            return value
        kind = type(value)
        if kind in (tuple, list, set, frozenset) or isinstance(value, dict):
            return self._container(value)
        if not self._leads(value):
            return value
        self.originals.append(value)
        if isinstance(value, tuple | list | set | frozenset):
            return self._container(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self._value(value.__func__), self._value(value.__self__))
        if isinstance(value, functools.partial):
            parts = (value.func, value.args, value.keywords)
            function, arguments, keywords = (self._value(part) for part in parts)
            return functools.partial(function, *arguments, **keywords)
        if isinstance(value, weakref.ref):
            return weakref.ref(self._value(value()))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        return self._instance(value)

    def _tensor(self, tensor: Tensor) -> Tensor:
        """Copy a tensor made in inference mode, through which nothing can be differentiated."""
        copied = tensor.clone()
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
        self._remember(tensor, copied)
        return copied

    def _container(self, value: Any) -> Any:
        if isinstance(value, dict):
            copied = copy.copy(value)
            self._remember(value, copied)
            for key in value:
                copied[key] = self._value(value[key])
            return copied
        if isinstance(value, list):
            listed = value.copy()
            self._remember(value, listed)
            listed[:] = [self._value(part) for part in value]
            return listed
        parts = [self._value(part) for part in value]
        if all(part is original for part, original in zip(parts, value, strict=True)):
            return value if isinstance(value, tuple | frozenset) else value.copy()
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return type(value)(parts)

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = []
        for cell in function.__closure__ or ():
            cells.append(self._cell(cell))
        copied = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            self._value(function.__defaults__),
            tuple(cells) or None,
        )
        self._remember(function, copied)
        copied.__kwdefaults__ = self._value(function.__kwdefaults__)
        copied.__dict__.update(self._value(vars(function)))
        return copied

    def _cell(self, cell: types.CellType) -> types.CellType:
        """A cell that leads to the copy; the same one for all functions that share it."""
        if id(cell) in self.made:
            made: types.CellType = self.made[id(cell)]
            return made
        if not self._leads(cell):
            return cell
        copied = types.CellType()
        self._remember(cell, copied)
        copied.cell_contents = self._value(cell.cell_contents)
        return copied

    def _instance(self, value: Any) -> Any:
        try:
            copied = copy.copy(value)
        except Exception as error:  # objects of other libraries fail in their own ways
            raise _not_copied(value, first_line(error)) from error
        if copied is value or not hasattr(copied, "__dict__"):
            raise _not_copied(value, "it has only one copy")
        self._remember(value, copied)
        for name, part in list(vars(value).items()):
            copied.__dict__[name] = self._value(part)
        return copied

    def _remember(self, original: Any, copied: Any) -> None:
        self.originals.append(original)
        self.made[id(original)] = copied

    def _leads(self, value: Any) -> bool:
        """Whether a value leads to a module of the model."""
        seen: dict[int, Any] = {}
        waiting = [value]
        while waiting:
            part = waiting.pop()
            if id(part) in self.modules:
                return True
            if id(part) in seen or id(part) in self.leads_nowhere or isinstance(part, _ATOMS):
                continue
            seen[id(part)] = part
            waiting += _parts(part, self.modules)
        self.leads_nowhere |= seen
        return False


def _parts(value: Any, modules: Mapping[int, nn.Module]) -> list[Any]:
    """The values that a value refers to."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, tuple | list | set | frozenset):
        return list(value)
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, types.CellType):
        return _contents(value)
    if isinstance(value, types.FunctionType):
        _refuse_global(value, modules)
        return [value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value)]
    attributes = getattr(value, "__dict__", None)
    return [attributes] if isinstance(attributes, dict) else []


def _refuse_global(function: types.FunctionType, modules: Mapping[int, nn.Module]) -> None:
    for name in global_names(function.__code__):
        if id(function.__globals__.get(name)) in modules:
            raise InputError(
                f"sampling: the model holds the function {function.__qualname__!r}, which "
                f"finds the model as the global {name!r} and so would never see weights that "
                f"move; take the module from the function's arguments."
            )


def _not_copied(value: object, why: str) -> InputError:
    return InputError(
        f"sampling: the model holds a {type(value).__name__} that leads back to its modules and "
        f"cannot be copied ({why}), so that it would not see weights that move; take it out of the "
        f"model."
    )


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a variable that has no value yet
        return []


class _Eager(nn.Module):
    """In the place of a module that ``torch.compile`` made: what it was made of.

    What was compiled belongs to the original. The names of parameters stay.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        original: Any = self._modules["_orig_mod"]
        return original(*args, **kwargs)


def _kind_of_copy(module: nn.Module) -> type[nn.Module]:
    if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules:
        return _Eager
    return type(module)
