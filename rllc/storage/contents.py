"""A hash of a value's contents: of numbers, tensors, modules, and functions with all that they use.

Two values of equal contents have equal hashes, in any process. A function of the user is hashed by
its bytecode, defaults, closure and the globals that it uses, among them further functions of the
user; a function of an installed library by its name and the library's version. Values whose
contents cannot be read are refused: generators, open files, locks, objects of another language.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import hashlib
import os
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rllc.errors import InputError
from rllc.storage.files import bytes_of_tensor

_RECORDED = {"rllc", "torch", "numpy", "transformers"}
"""Libraries whose version is not hashed, because results record it and warn of a change."""

_PLAIN = (bool, int, float, complex, str, bytes, range, slice, type(None), type(...))

_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)
"""Kinds of values that their ``repr`` describes completely."""

_CONTAINERS = (list, tuple, set, frozenset, dict, types.MappingProxyType)

_KINDS_OF_NOTES = (
    str,
    int,
    tuple,
    list,
    dict,
    set,
    frozenset,
    type(None),
    types.GetSetDescriptorType,
)
"""Kinds of values in which Python notes something in a class."""

_OF_ANY_MODULE = set(vars(nn.Module()))
"""Attributes that every ``torch.nn.Module`` has."""

_NOTES = {"name_or_path", "warnings_issued", "model_tags", "generation_config"}
"""Attributes of models that change no forward pass."""

NOTES_OF_CONFIG = {"transformers_version", "architectures", "dtype", "torch_dtype", "use_cache"}
"""Fields of a configuration of transformers that change no forward pass."""


def digest(value: object, what: str) -> str:
    """Return the SHA-256 of a value's contents, in hexadecimal.

    >>> shift = 1.0
    >>> digest(lambda x: x + shift, "loss") == digest(lambda x: x + shift, "loss")
    True

    Args:
        value: anything.
        what: what errors call it.

    Raises:
        InputError: something within it cannot be known; the error says what, and where.
    """
    return _Walk().digest(value, what).hex()


class _Walk:
    """One walk through a value and all that it holds."""

    def __init__(self) -> None:
        self.open: dict[int, int] = {}
        """The depth of each value that the walk is inside of, by id: a value may hold itself."""

    def digest(self, value: Any, where: str) -> bytes:
        kind = type(value)
        if isinstance(value, enum.Enum):
            contents = self.digest(value.value, where)
            return _hashed("enum", _name(kind), value.name, contents)
        if kind in _PLAIN or isinstance(value, _NAMED):
            return _hashed("plain", kind.__name__, repr(value))
        depth = len(self.open)
        if id(value) in self.open:
            levels_up = depth - self.open[id(value)]
            return _hashed("again", str(levels_up))
        self.open[id(value)] = depth
        try:
            return self._compound(value, where)
        except RecursionError as error:
            raise _unknown(value, where, "is nested too deeply") from error
        finally:
            del self.open[id(value)]

    def _compound(self, value: Any, where: str) -> bytes:
        for kind, describe in _DESCRIPTIONS:
            if isinstance(value, kind):
                return describe(self, value, where)
        return self._instance(value, where)

    # Numbers and containers.

    def _tensor(self, tensor: Tensor, where: str) -> bytes:
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise _unknown(tensor, where, "is not a dense tensor")
        resolved = tensor.detach().resolve_conj().resolve_neg()
        numbers = bytes_of_tensor(resolved)
        shape = tuple(tensor.shape)
        return _hashed("tensor", str(tensor.dtype), str(shape), numbers)

    def _array(self, array: np.ndarray | np.generic, where: str) -> bytes:
        array = np.asarray(array)
        shape = str(array.shape)
        if array.dtype.hasobject:
            objects = self.digest(array.tolist(), where)
            return _hashed("objects", shape, objects)
        return _hashed("array", array.dtype.str, shape, array.tobytes())

    def _container(self, values: Any, where: str) -> bytes:
        kind = type(values)
        parts = []
        if getattr(values, "__dict__", None):
            parts.append(self.digest(vars(values), where))
        if kind not in _CONTAINERS:
            parts.append(self.digest(kind, where))
        if isinstance(values, set | frozenset):
            members = sorted(self.digest(value, where) for value in values)
            return _hashed("set", *parts, *members)
        if isinstance(values, list | tuple):
            for i, value in enumerate(values):
                parts.append(self.digest(value, f"{where}[{i}]"))
            return _hashed("sequence", kind.__name__, *parts)
        entries = self._mapping(values, where)
        return _hashed("mapping", *parts, entries)

    def _mapping(self, values: Mapping[Any, Any], where: str) -> bytes:
        parts = []
        for key, value in values.items():
            parts.append(self.digest(key, where))
            parts.append(self.digest(value, f"{where}[{key!r}]"))
        return _hashed(*parts)

    # Functions.

    def _function(self, function: types.FunctionType, where: str) -> bytes:
        code = function.__code__
        module = str(function.__globals__.get("__name__"))
        parts: list[str | bytes]
        if is_installed(module, code.co_filename):
            parts = ["installed function", _installed(module, code.co_qualname)]
        else:
            parts = ["function"]
            parts.append(self.digest(code, where))
            parts.append(self._globals(function, where))
        cells = function.__closure__ or ()
        for name, cell in zip(code.co_freevars, cells, strict=True):
            contents = self.digest(cell, f"{where}, {name!r} in its closure")
            parts += [name, contents]
        defaults = (function.__defaults__, function.__kwdefaults__)
        parts.append(self.digest(defaults, f"{where}, its defaults"))
        attributes = dict(vars(function))
        attributes.pop("__wrapped__", None)
        parts.append(self.digest(attributes, f"{where}, its attributes"))
        return _hashed(*parts)

    def _code(self, code: types.CodeType, where: str) -> bytes:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        constants = self.digest(code.co_consts, where)
        tables = getattr(code, "co_exceptiontable", b"")
        return _hashed("code", code.co_code, repr(counts), repr(names), constants, tables)

    def _globals(self, function: types.FunctionType, where: str) -> bytes:
        """Return the hash of the globals that a function uses, those of nested ones included."""
        parts: list[str | bytes] = ["globals"]
        attributes = set(_names(function.__code__))
        for name in sorted(global_names(function.__code__)):
            if name in function.__globals__:
                value = function.__globals__[name]
            else:
                value = getattr(builtins, name, None)
            contents = self._global(value, attributes, f"{where}, global {name!r}")
            parts += [name, contents]
        return _hashed(*parts)

    def _global(self, value: Any, attributes: set[str], where: str) -> bytes:
        """Return the hash of a global; of a user's module, of the attributes that are used."""
        if not isinstance(value, types.ModuleType) or is_installed_module(value):
            return self.digest(value, where)
        used_names = attributes & vars(value).keys()
        used = {name: getattr(value, name) for name in sorted(used_names)}
        return _hashed("module", self.digest(used, where))

    def _cell(self, cell: types.CellType, where: str) -> bytes:
        try:
            contents = cell.cell_contents
        except ValueError:  # a variable that has no value yet
            return _hashed("empty cell")
        return self.digest(contents, where)

    def _partial(self, partial: functools.partial[Any], where: str) -> bytes:
        parts = (partial.func, partial.args, partial.keywords)
        contents = self.digest(parts, f"{where}, functools.partial")
        return _hashed("partial", contents)

    def _method(self, method: types.MethodType, where: str) -> bytes:
        function = self.digest(method.__func__, where)
        owner = self.digest(method.__self__, where)
        return _hashed("method", function, owner)

    def _builtin(self, function: types.BuiltinFunctionType, where: str) -> bytes:
        owner = function.__self__
        name = function.__qualname__
        if owner is None or isinstance(owner, types.ModuleType | type):
            module = str(function.__module__)
            return _hashed("builtin", _installed(module, name))
        return _hashed("builtin", name, self.digest(owner, where))

    def _slot(self, slot: Any, where: str) -> bytes:
        return _hashed("slot", _name(slot.__objclass__), slot.__name__)

    def _wrapped(self, wrapper: Any, where: str) -> bytes:
        function = self.digest(wrapper.__wrapped__, where)
        return _hashed("wrapped", _name(type(wrapper)), function)

    def _unwrapped(self, wrapper: Any, where: str) -> bytes:
        function = self.digest(wrapper.__func__, where)
        return _hashed(type(wrapper).__name__, function)

    def _property(self, value: property, where: str) -> bytes:
        functions = (value.fget, value.fset, value.fdel)
        return _hashed("property", self.digest(functions, where))

    # Classes and their instances.

    def _class(self, kind: type, where: str) -> bytes:
        module = sys.modules.get(kind.__module__)
        if module is not None and is_installed_module(module):
            return _hashed("installed class", _installed(kind.__module__, kind.__qualname__))
        parts = [self.digest(base, where) for base in kind.__bases__]
        for name, value in sorted(vars(kind).items()):
            if _is_note(name, value) or _is_generated(value):
                continue
            place = f"{where}, {kind.__qualname__}.{name}"
            parts += [name.encode(), self.digest(value, place)]
        return _hashed("class", kind.__qualname__, *parts)

    def _library(self, module: types.ModuleType, where: str) -> bytes:
        if not is_installed_module(module):
            raise _unknown(module, where, "is a module, of which it is not known what is used")
        return _hashed("library", _installed(module.__name__, ""))

    def _instance(self, value: Any, where: str) -> bytes:
        kind = type(value)
        attributes = dict(getattr(value, "__dict__", {}))
        for slot in _slots(kind):
            if hasattr(value, slot):
                attributes[slot] = getattr(value, slot)
        if not _holds_only_attributes(kind):
            raise _unknown(value, where, "cannot be looked into")
        if hasattr(value, "to_diff_dict") and hasattr(value, "model_type"):
            attributes = _configuration(value)
        caches = set()
        for name, attribute in _attributes(kind):
            if isinstance(attribute, functools.cached_property):
                caches.add(name)
        parts: list[bytes] = [self.digest(kind, where)]
        for name in sorted(attributes.keys() - caches):
            contents = self.digest(attributes[name], f"{where}.{name}")
            parts += [name.encode(), contents]
        return _hashed("instance", *parts)

    def _module(self, module: nn.Module, where: str) -> bytes:
        """A model: its class, tensors, parts, hooks of its forward pass, and plain attributes."""
        if isinstance(module, torch.jit.ScriptModule):
            raise _unknown(module, where, "is compiled by torch.jit")
        parts: list[bytes] = [self.digest(type(module), where)]
        kinds = (module._parameters, module._buffers, module._modules)
        for kind in kinds:
            for name, part in kind.items():
                contents = self.digest(part, f"{where}.{name}")
                parts += [name.encode(), contents]
        for name, value in self._attributes(module):
            contents = self.digest(value, f"{where}.{name}")
            parts += [name.encode(), contents]
        return _hashed("model", *parts)

    def _attributes(self, module: nn.Module) -> Iterator[tuple[str, Any]]:
        """Yield hooks and attributes of a part of a model, without a library's private ones."""
        yield "hooks", list(module._forward_hooks.values())
        yield "pre-hooks", list(module._forward_pre_hooks.values())
        owner = sys.modules.get(type(module).__module__)
        is_of_library = owner is not None and is_installed_module(owner)
        left_out = _OF_ANY_MODULE | _NOTES
        for name, value in sorted(vars(module).items()):
            is_private = is_of_library and name.startswith("_")
            if not is_private and name not in left_out:
                yield name, value


_DESCRIPTIONS: tuple[tuple[Any, Callable[[_Walk, Any, str], bytes]], ...] = (
    (Tensor, _Walk._tensor),
    (np.ndarray | np.generic, _Walk._array),
    (nn.Module, _Walk._module),
    (type, _Walk._class),
    (types.ModuleType, _Walk._library),
    (types.FunctionType, _Walk._function),
    (types.MethodType, _Walk._method),
    (types.BuiltinFunctionType, _Walk._builtin),
    (types.WrapperDescriptorType | types.MethodDescriptorType, _Walk._slot),
    (types.MemberDescriptorType | types.GetSetDescriptorType, _Walk._slot),
    (types.CodeType, _Walk._code),
    (types.CellType, _Walk._cell),
    (functools.partial, _Walk._partial),
    (functools._lru_cache_wrapper, _Walk._wrapped),
    (staticmethod | classmethod, _Walk._unwrapped),
    (property, _Walk._property),
    (list | tuple | set | frozenset | dict | types.MappingProxyType, _Walk._container),
    (PurePath, lambda _, path, where: _hashed("path", str(path))),
    (re.Pattern, lambda _, pattern, where: _hashed("pattern", repr(pattern))),
)
"""The method that hashes each kind of value; the first kind that fits counts."""


def _hashed(*parts: str | bytes | np.ndarray) -> bytes:
    """The SHA-256 of parts, each behind its length, so that no two lists give the same bytes."""
    sha = hashlib.sha256()
    for part in parts:
        contents: Any = part
        if isinstance(part, str):
            contents = part.encode("utf-8", "surrogatepass")
        num_bytes = memoryview(contents).nbytes
        sha.update(f"{num_bytes}:".encode())
        sha.update(contents)
    return sha.digest()


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _unknown(value: object, where: str, problem: str) -> InputError:
    return InputError(
        f"{where}: {type(value).__name__} {problem}, so that it cannot be told whether it is the "
        f"same as before; for a loss of yours give a name that you change with it, "
        f"rllc.losses.named(loss, 'my loss, version 2')."
    )


# Functions and what they use.


def global_names(code: types.CodeType) -> set[str]:
    """Names of the globals that a function uses, those of functions within it included."""
    names = set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(str(instruction.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return names


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


# Installed libraries, and the user's own code.


@functools.cache
def _installed_places() -> tuple[str, ...]:
    places = set()
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        place = sysconfig.get_path(name)
        if place:
            places.add(os.path.realpath(place) + os.sep)
    return tuple(places)


@functools.cache
def is_installed(module: str, file: str | None) -> bool:
    """Whether code is of a library and not of the user.

    Args:
        module: its module's name.
        file: where that is; ``None`` for what is built in.
    """
    top = module.partition(".")[0]
    if top == "rllc" or top in sys.builtin_module_names:
        return True
    if file is None:
        return top in sys.stdlib_module_names
    if file.startswith("<frozen"):
        return True
    return os.path.realpath(file).startswith(_installed_places())


def is_installed_module(module: types.ModuleType) -> bool:
    """Whether a module is of a library and not of the user."""
    return is_installed(module.__name__, getattr(module, "__file__", None))


def _installed(module: str, name: str) -> str:
    top = module.partition(".")[0]
    version = ""
    if top not in _RECORDED and top not in sys.stdlib_module_names:
        library = sys.modules.get(top)
        version = str(getattr(library, "__version__", ""))
    return f"{module}:{name} {version}"


# Classes.


def _is_note(name: str, value: object) -> bool:
    """Whether a member of a class is only a note of Python's, such as the class's module."""
    if name in ("_abc_impl", "__dataclass_params__"):
        return True
    is_special = name.startswith("__") and name.endswith("__")
    return is_special and isinstance(value, _KINDS_OF_NOTES)


def _is_generated(value: object) -> bool:
    """Whether a member was made by ``dataclasses`` or ``namedtuple``: the fields say it all."""
    if type(value).__name__ == "_tuplegetter":
        return True
    function = getattr(value, "__wrapped__", value)
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith("<string>")


def _holds_only_attributes(kind: type) -> bool:
    """Whether a class was made by a ``class`` statement, and none below it keeps memory of its own.

    An instance is then as large as any object, with a place for each slot, attributes and
    references.
    """
    made_by_statement = False
    for base in kind.__mro__:
        if "__dict__" in vars(base) or "__slots__" in vars(base):
            made_by_statement = True
    places = len(_slots(kind)) + 2
    largest_size = object.__basicsize__ + 8 * places
    return made_by_statement and kind.__basicsize__ <= largest_size


def _slots(kind: type) -> list[str]:
    names = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        if isinstance(slots, str):
            names.append(slots)
        else:
            names += slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _attributes(kind: type) -> Iterator[tuple[str, Any]]:
    for base in kind.__mro__:
        yield from vars(base).items()


def _configuration(config: Any) -> dict[str, Any]:
    """The fields of a configuration of transformers that its forward pass may depend on."""
    fields = {}
    for name, value in config.to_dict().items():
        if name not in NOTES_OF_CONFIG and not name.startswith("_"):
            fields[name] = value
    return fields
