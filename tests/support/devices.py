"""Two GPUs on a machine without any: tensors lie on the CPU and carry the name of a device, which operations respect as torch does."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

CPU = torch.device("cpu")
KINDS = ("cpu", "cuda")
GET_DEVICE, SET_DATA = torch.Tensor.device.__get__, torch.Tensor.data.__set__  # ty: ignore[missing-attribute]
MOVES = {torch.Tensor.to, torch.Tensor.cpu}
# What these take may lie elsewhere.
ACROSS = {torch.Tensor.copy_, torch.Tensor.__setitem__, torch._has_compatible_shallow_copy_type, SET_DATA, *MOVES}


class TwoGPUs(TorchFunctionMode):
    """While it is active, "cuda:0" and "cuda:1" are devices, and an operation on tensors of two devices raises, as torch's own does.

    Attributes:
        moves: (from, to) of the tensors that were moved.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Any = WeakIdKeyDictionary()
        self.moves: list[tuple[str, str]] = []

    def place(self, tensor: torch.Tensor) -> torch.device:
        """The device whose name a tensor carries."""
        return self.places.get(tensor, tensor.device)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        named = dict(kwargs or {})
        if func == GET_DEVICE:
            return self.place(args[0])
        if func in (torch.device, torch._C._nn._parse_to):
            return func(*args, **named)
        where = self._where(func, args, named)
        if func == SET_DATA:
            self.places[args[0]] = self.place(args[1])
            return func(*args)
        asked = [each for each in [*args, *named.values()] if _is_device(each)]
        if func in MOVES:
            asked += [self.place(each) for each in args[1:] if isinstance(each, torch.Tensor)] + [CPU] * (func is torch.Tensor.cpu)
        target = torch.device(asked[0]) if asked else where
        if func in MOVES and target != where:
            self.moves.append((str(where), str(target)))
        made = func(*map(_on_cpu, args), **{name: _on_cpu(each) for name, each in named.items()})
        if made is (args[0] if args else None) and target != where:
            made = made.view(made.shape)  # the same memory, but another tensor
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and each.device == CPU:
                self.places[each] = target
        return made

    def _where(self, func: Any, args: tuple, named: dict[str, Any]) -> torch.device:
        """The device that an operation runs on. Raises RuntimeError: its tensors are on two."""
        given = [each for each in tree_leaves((args, named)) if isinstance(each, torch.Tensor)]
        if func in ACROSS:
            return self.place(given[0])
        if func is torch.Tensor.__getitem__:  # an index may lie on the CPU
            given = [each for each in given if each is args[0] or self.place(each) != CPU]
        found = {str(self.place(each)) for each in given if each.dim()} or {str(self.place(each)) for each in given[:1]} or {"cpu"}
        if len(found) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {' and '.join(sorted(found))} ({func.__name__})")
        return torch.device(found.pop())


def _is_device(each: Any) -> bool:
    return (isinstance(each, str) and each.partition(":")[0] in KINDS) or (isinstance(each, torch.device) and each.type in KINDS)


def _on_cpu(each: Any) -> Any:
    return CPU if _is_device(each) else each
