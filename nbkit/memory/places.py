"""Which module is at work: in the forward by hooks, in the backward by the sequence numbers of autograd's nodes."""

from __future__ import annotations

import re
from typing import Any

_LAYER = re.compile(r"\.(\d+)(?=\.|$)")


class Places:
    """Follows a model through a step.

    Args:
        model: Any module; its decoder layers are the longest ModuleList of it.
        edge: How many layers from each end keep a position of their own; the rest lies between.
    """

    def __init__(self, model: Any, edge: int = 2) -> None:
        self.edge = edge
        self.backward = False
        self._stack: list[str] = []
        self._of_node: dict[int, str] = {}
        self._handles: list[Any] = []
        self._head = _head(model)
        self.list_path, self.layers = longest_list(model)
        self._root = type(model).__name__
        self._cache: dict[str, tuple[str, int, tuple[str, ...], bool]] = {}
        for path, module in model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._enter(path)),
                module.register_forward_hook(self._leave, always_call=True),
            ]

    def _enter(self, path: str) -> Any:
        def hook(*_: Any) -> None:
            self._stack.append(path)

        return hook

    def _leave(self, *_: Any) -> None:
        if self._stack:
            self._stack.pop()

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def note_node(self) -> None:
        """Remember which module makes the autograd node that is being made (call before the operator runs)."""
        import torch

        if not self.backward or self._stack:
            # VariableType numbers the node before it calls the operator: the current one is one less.
            self._of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, self._stack[-1] if self._stack else "")  # noqa: SLF001

    @property
    def path(self) -> str:
        """Dotted path of the module at work, "" for the model itself."""
        if self._stack:
            return self._stack[-1]
        if self.backward:
            import torch

            node = torch._C._current_autograd_node()  # noqa: SLF001 - no public name
            if node is not None:
                return self._of_node.get(node._sequence_nr(), "")  # noqa: SLF001
        return ""

    def _known(self) -> tuple[str, int, tuple[str, ...], bool]:
        path = self.path
        known = self._cache.get(path)
        if known is None:
            known = self._cache[path] = self._read(path)
        return known

    def _read(self, path: str) -> tuple[str, int, tuple[str, ...], bool]:
        layer = -1
        positions: tuple[str, ...] = ("",)
        shown = path
        if self.list_path and path.startswith(self.list_path + "."):
            rest = path[len(self.list_path) + 1 :]
            layer = int(rest.partition(".")[0])
            shown = f"{self.list_path}.*{rest[len(str(layer)) :]}"
            from_end = self.layers - 1 - layer
            positions = tuple(
                [f"<{layer}"] * (layer < self.edge) + [f">{from_end}"] * (from_end < self.edge)
            )  # a layer in the middle has none: its peaks lie between those of the ends
        in_head = bool(self._head) and (path == self._head or path.startswith(self._head + "."))
        return shown.removeprefix("base_model.model."), layer, positions, in_head

    def layer_of(self, path: str) -> int:
        """Number of the decoder layer that holds a parameter of that name, -1 for none."""
        return self._read(path)[1]

    @property
    def module(self) -> str:
        """The path with its layer's number left out."""
        return self._known()[0]

    @property
    def layer(self) -> int:
        """Number of the decoder layer at work, -1 outside of them."""
        return self._known()[1]

    @property
    def positions(self) -> tuple[str, ...]:
        """Where that layer stands, from the nearer end or both."""
        return self._known()[2]

    @property
    def in_head(self) -> bool:
        """The output head is at work, or what lies behind it: the loss."""
        return self._known()[3]


def longest_list(model: Any) -> tuple[str, int]:
    """Path and length of the longest ModuleList: the decoder layers."""
    import torch

    lists = [(len(module), path) for path, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        return "", 0
    length, path = max(lists, key=lambda one: (one[0], -one[1].count(".")))
    return path, length


def _head(model: Any) -> str:
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        return ""
    return next((path for path, module in model.named_modules() if module is head), "")
