"""Live bytes of a step while it runs, real or fake: a dispatch mode that sees every storage come and go."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nbkit.memory.places import Places

Phase = Literal["forward", "backward", "optimizer"]
BLOCK = 512  # bytes: the CUDA caching allocator's smallest unit (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)
KINDS = (
    "weights", "adapters", "gradients", "optimizer states", "activations", "logits and loss",
    "recomputed and in flight", "optimizer workspace", "inputs",
)  # fmt: skip
_IN_PHASE: dict[Phase, str] = {
    "forward": "activations",
    "backward": "recomputed and in flight",
    "optimizer": "optimizer workspace",
}


@dataclass(frozen=True)
class Key:
    """One operator at one place of one phase; the unit whose peak is followed from depth to depth.

    Attributes:
        position: Of the decoder layer, from the nearer end: "<0" the first, ">1" the last but one; "" outside of them.
    """

    phase: Phase
    operator: str
    module: str
    position: str


@dataclass
class Mark:
    """The most that was live at a Key, and what it was made of."""

    live: int
    parts: tuple[int, ...]


@dataclass
class _Block:
    key: int
    size: int
    kind: int
    layer: int
    ref: Any = None


@dataclass
class Moment:
    """An event for the allocator's replay.

    Attributes:
        layer: That was at work, -1 for none; in the optimizer, the layer whose parameter is stepped.
    """

    key: int
    size: int
    phase: Phase
    layer: int


@dataclass
class Tally:
    """What a Tracker found in the steps it recorded."""

    marks: dict[Key, Mark] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=list)

    @property
    def peak(self) -> tuple[Key, Mark]:
        """Where the most was live."""
        return max(self.marks.items(), key=lambda item: item[1].live)


class Tracker(TorchDispatchMode):  # type: ignore[misc] # torch is not typed here
    """Counts storages from the first operator that returns them until they die, each rounded up to BLOCK.

    Args:
        places: Knows which module is at work.
        stand_ins: Operators that behave otherwise on the device in mind: name -> function(func, args, kwargs).
        block: Bytes a storage is rounded up to; 1 on a CPU.
        vocab: Tensors whose last dimension is this are logits.
    """

    def __init__(
        self,
        places: Places,
        *,
        stand_ins: dict[str, Callable[..., Any]] | None = None,
        block: int = BLOCK,
        vocab: int = 0,
    ) -> None:
        super().__init__()
        self.places = places
        self.stand_ins = stand_ins or {}
        self.block = block
        self.vocab = vocab
        self.phase: Phase = "forward"
        self.recording = False
        self.tracing = False
        self.live = 0
        self.parts = [0] * len(KINDS)
        self.tally = Tally()
        self._blocks: dict[int, _Block] = {}
        self._next = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, so torch's wrapper against it, run at every operator, can be left out."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, or what stands in for it, and count the storages it made."""
        name = func._schema.name  # noqa: SLF001 - the one cheap way to an operator's name
        if name == "prim::device":  # asked of fake tensors only, but then at two calls of three
            return args[0].fake_device
        stand_in = self.stand_ins.get(name)
        self.places.note_node()
        options = kwargs or {}
        out = func(*args, **options) if stand_in is None else stand_in(func, args, options)
        self._see(out, name, args)
        return out

    def _see(self, out: Any, name: str, args: Sequence[Any]) -> None:
        import torch

        leaves = (out,) if isinstance(out, torch.Tensor) else tree_leaves(out)
        stepped = self._stepped(args, len(leaves)) if self.tracing and self.phase == "optimizer" else ()
        new = False
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                new |= self._count(leaf, layer=stepped[index] if stepped else None)
        if self.recording and new:
            self._mark(name)

    def _stepped(self, args: Sequence[Any], count: int) -> list[int]:
        """Whose parameters an operator of the optimizer works on: for each of its outputs a layer."""
        import torch

        def layer(tensor: Any) -> int:
            block = self._blocks.get(tensor.untyped_storage()._cdata)  # noqa: SLF001
            return block.layer if block is not None else -1

        for arg in args:
            if isinstance(arg, (list, tuple)) and len(arg) == count and isinstance(arg[0], torch.Tensor):
                return [layer(one) for one in arg]
        found = max((layer(one) for one in tree_leaves(args) if isinstance(one, torch.Tensor)), default=-1)
        return [found] * count

    def _count(self, tensor: Any, kind: str | None = None, layer: int | None = None) -> bool:
        storage = tensor.untyped_storage()
        address = storage._cdata  # noqa: SLF001 - the identity of the C++ storage
        if address in self._blocks:
            return False
        size = -(-storage.nbytes() // self.block) * self.block
        if kind is None:
            kind = _IN_PHASE[self.phase]
            if self.phase != "optimizer" and (
                (tensor.dim() > 1 and tensor.shape[-1] == self.vocab) or self.places.in_head
            ):
                kind = "logits and loss"
        block = _Block(self._next, size, KINDS.index(kind), self.places.layer if layer is None else layer)
        self._next += 1
        block.ref = weakref.ref(storage, functools.partial(self._died, address))
        self._blocks[address] = block
        self.live += size
        self.parts[block.kind] += size
        if self.tracing and size:
            self.tally.moments.append(Moment(block.key, storage.nbytes(), self.phase, block.layer))
        return True

    def _died(self, address: int, _: Any) -> None:
        self._free(address)

    def _free(self, address: int) -> None:
        block = self._blocks.pop(address, None)
        if block is None:
            return
        self.live -= block.size
        self.parts[block.kind] -= block.size
        if self.tracing and block.size:
            layer = block.layer if self.phase == "optimizer" else self.places.layer
            self.tally.moments.append(Moment(block.key, 0, self.phase, layer))

    def _mark(self, name: str) -> None:
        for position in self.places.positions:
            key = Key(self.phase, name, self.places.module, position)
            mark = self.tally.marks.get(key)
            if mark is None:
                self.tally.marks[key] = Mark(self.live, tuple(self.parts))
            elif self.live > mark.live:
                mark.live, mark.parts = self.live, tuple(self.parts)

    def hold(self, name: str, *scratch: Any) -> None:
        """Count what a kernel holds at once, beside its inputs; scratch is freed when the caller drops it."""
        for tensor in scratch:
            self._count(tensor)
        if self.recording:
            self._mark(name)

    def key_of(self, tensor: Any) -> int | None:
        """Under which key a live tensor's storage is counted."""
        block = self._blocks.get(tensor.untyped_storage()._cdata)  # noqa: SLF001
        return block.key if block is not None else None

    def adopt(self, tensor: Any, kind: str, layer: int | None = None) -> None:
        """Count a tensor that was there before, or say what kind one is that was counted already."""
        if self._count(tensor, kind, layer):
            return
        block = self._blocks[tensor.untyped_storage()._cdata]  # noqa: SLF001
        self.parts[block.kind] -= block.size
        block.kind = KINDS.index(kind)
        self.parts[block.kind] += block.size
