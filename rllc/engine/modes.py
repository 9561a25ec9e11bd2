"""The state in which a model is evaluated: its mode, its precision, its random numbers."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_slow_paths = 0
_fast_path_before = True
_lock = threading.Lock()


@contextmanager
def one_arithmetic() -> Iterator[None]:
    """Evaluate in the same way whether gradients are wanted or not.

    Without gradients PyTorch takes a fast path through ``nn.TransformerEncoder`` and
    ``nn.MultiheadAttention``, which gives other numbers at padding. And a module may ask
    ``torch.is_grad_enabled()``. So the fast path is off, and gradients are enabled whether a graph
    is built or not: none is where no input requires them.
    """
    global _slow_paths, _fast_path_before
    # The switch is one for all threads: the first turns it, the last turns it back.
    with _lock:
        if _slow_paths == 0:
            _fast_path_before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _slow_paths += 1
    try:
        with torch.enable_grad():
            yield
    finally:
        with _lock:
            _slow_paths -= 1
            if _slow_paths == 0:
                torch.backends.mha.set_fastpath_enabled(_fast_path_before)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every submodule into one mode, and each back into its own afterwards."""
    changed = [module for module in model.modules() if module.training != training]
    for module in changed:
        module.training = training
    try:
        yield
    finally:
        for module in changed:
            module.training = not training


@contextmanager
def leaving_no_batches(model: nn.Module) -> Iterator[None]:
    """Take back what modules keep of a stacked evaluation.

    A tensor of ``torch.func.vmap`` is of no use once the call is over, and raises where it is used.
    """
    before = [(module, dict(vars(module)), _contents(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            for container, earlier in contents:
                _take_back(container, earlier)
            _take_back(vars(module), attributes)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The lists and dicts that a module has as attributes, each with what is in it now."""
    contents: list[tuple[Any, Any]] = []
    for name, value in vars(module).items():
        if name not in _OF_TORCH and isinstance(value, list | dict):
            contents.append((value, value.copy()))
    return contents


def _take_back(container: Any, earlier: Any) -> None:
    values = container.values() if isinstance(container, dict) else container
    if not any(_is_of_a_batch(value) for value in values):
        return
    if isinstance(container, list):
        container[:] = earlier
        return
    for name in list(container):
        if not _is_of_a_batch(container[name]):
            continue
        if name in earlier:
            container[name] = earlier[name]
        else:
            del container[name]


def _is_of_a_batch(value: object) -> bool:
    return isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value)


_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def in_precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Do matrix products in ``dtype``; ``None`` leaves them as they are."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Compute the same whatever is set around: autocast, default dtype, inference mode, precision.

    The default dtype is that of the model's weights, since a forward pass may make tensors of it.
    """
    device_types = {parameter.device.type for parameter in model.parameters()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device_type in device_types - {"meta"} | {"cpu"}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_default_dtype(_DOUBLE if _DOUBLE in dtypes else torch.float32))
        stack.enter_context(_full_precision())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


_DOUBLE = torch.float64


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    if before == dtype:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, not in TensorFloat-32 or bfloat16."""
    global _full_precisions, _precision_before
    # As the fast path, it is one for all threads.
    with _lock:
        if _full_precisions == 0:
            _precision_before = Precision.now()
            torch.set_float32_matmul_precision("highest")
        _full_precisions += 1
    try:
        yield
    finally:
        with _lock:
            _full_precisions -= 1
            if _full_precisions == 0:
                _precision_before.put_back()


class Precision(NamedTuple):
    """How float32 matrices are multiplied: one old setting, and from torch 2.9 on one a backend.

    The old one cannot say what each backend does, and cannot be read once they were set apart, as
    by ``torch.backends.cuda.matmul.allow_tf32 = True``.
    """

    of_all: str | None
    of_backends: tuple[str, ...]

    @classmethod
    def now(cls) -> Precision:
        """Take the settings as they are."""
        try:
            of_all = torch.get_float32_matmul_precision()
        except RuntimeError:
            of_all = None
        return cls(of_all, tuple(backend.fp32_precision for backend in _backends()))

    def put_back(self) -> None:
        """Set them as they were."""
        if self.of_all is not None:
            torch.set_float32_matmul_precision(self.of_all)
        for backend, precision in zip(_backends(), self.of_backends, strict=True):
            backend.fp32_precision = precision


def _backends() -> list[Any]:
    backends: list[Any] = [torch.backends.cuda.matmul]
    if hasattr(torch.backends.mkldnn, "matmul"):
        backends.append(torch.backends.mkldnn.matmul)
    return [backend for backend in backends if _has_precision(backend)]


def _has_precision(backend: Any) -> bool:
    # CUDA's settings have no attributes of their own: they answer or raise.
    try:
        return isinstance(backend.fp32_precision, str)
    except AttributeError:
        return False


_full_precisions = 0
_precision_before = Precision(None, ())


def ambient() -> dict[str, Any]:
    """Return what is left as it is around a computation, and may change the last bits."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


# Random numbers that a loss draws from the global generators.

_GENERATORS = threading.RLock()
"""Held while the global generators, which all threads share, are in a state of our own."""


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw global random numbers from ``seed``, and restore their state; nothing for ``None``.

    A loss that draws numbers (dropout) then draws the same for every run of a step and for the
    baseline, whatever their company. The generators are torch's, NumPy's and Python's.
    """
    if seed is None:
        yield
        return
    with _GENERATORS:
        before = GlobalNumbers.now(device, everything=True)
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (it is the global one that losses draw from)
        random.seed(seed)
        try:
            yield
        finally:
            before.put_back()


class GlobalNumbers(NamedTuple):
    """The states of the global random generators."""

    device: torch.device
    of_torch: Tensor
    of_device: Tensor | None
    of_numpy: Any = None
    of_python: Any = None

    @classmethod
    def now(cls, device: torch.device, everything: bool) -> GlobalNumbers:
        """Take the states as they are.

        Args:
            device: torch's state on the CPU and on this device.
            everything: NumPy's and Python's states, too, which take ten times as long.
        """
        of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        if not everything:
            return cls(device, torch.get_rng_state(), of_device)
        of_numpy = np.random.get_state()  # noqa: NPY002
        return cls(device, torch.get_rng_state(), of_device, of_numpy, random.getstate())

    def put_back(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self.of_torch)
        if self.of_device is not None:
            torch.cuda.set_rng_state(self.of_device, self.device)
        if self.of_numpy is not None:
            np.random.set_state(self.of_numpy)  # noqa: NPY002
            random.setstate(self.of_python)

    def differ_of_torch(self, other: GlobalNumbers) -> bool:
        """Whether torch's states are not those of ``other``."""
        if not torch.equal(self.of_torch, other.of_torch):
            return True
        if self.of_device is None or other.of_device is None:
            return False
        return not torch.equal(self.of_device, other.of_device)

    def differ_elsewhere(self, other: GlobalNumbers) -> bool:
        """Whether NumPy's or Python's state is not that of ``other``."""
        if self.of_numpy is None:
            return False
        same_keys = np.array_equal(self.of_numpy[1], other.of_numpy[1])
        same = same_keys and self.of_numpy[2:] == other.of_numpy[2:]
        return not same or self.of_python != other.of_python


class Count(TorchDispatchMode):
    """Counts floating-point operations, and notes whether random numbers are drawn.

    It sees this thread alone, unlike torch's own counter, which hangs hooks on all modules.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.draws = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.draws = True
        result = func(*args, **kwargs)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result
