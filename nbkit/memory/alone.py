"""A training step on one device, in the pieces that several devices share out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nbkit.errors import NbkitError
from nbkit.hardware.parts import GIB
from nbkit.memory.formula import NF4_BYTES, Estimate


@dataclass(frozen=True)
class Alone:
    """The step on one device, in the pieces that distribution moves.

    Attributes:
        trainable, frozen: Parameters.
        frozen_gib: Frozen weights as they are stored (4-bit packed, say).
        trained_bytes, gradient_bytes, state_bytes: Of one trained weight: stored, its gradient, all its states.
        activations_gib: Kept for the backward by all layers together.
        passing_gib: Live for one layer at a time: its recomputation and gradients in flight.
        loss_gib: At the head and the loss.
        layers: Decoder layers.
        layer_gib: One layer's weights when they are gathered, in the compute format (or packed).
        ends_gib: Embedding, head and the last norm, gathered in the compute format.
        quantised: How the frozen weights are stored.
        workspace_gib: What the optimizer's kernel takes beside states at the step, when activations are gone.
    """

    trainable: int
    frozen: int
    frozen_gib: float
    activations_gib: float
    passing_gib: float
    loss_gib: float
    layers: int
    layer_gib: float
    ends_gib: float
    trained_bytes: float = 2
    gradient_bytes: float = 2
    state_bytes: float = 8
    quantised: Literal["", "4-bit", "8-bit"] = ""
    workspace_gib: float = 0

    def __post_init__(self) -> None:
        for name in (
            "trainable", "frozen", "frozen_gib", "activations_gib", "passing_gib", "loss_gib", "layer_gib", "workspace_gib",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise NbkitError(f"{name}={getattr(self, name)}: it cannot be negative.", exit_code=2)
        if self.layers < 1:
            raise NbkitError(f"layers={self.layers}: a model has at least one.", exit_code=2)

    @classmethod
    def of(cls, found: Estimate) -> Alone:
        """From the formula's estimate of one device."""
        shape, step = found.shape, found.step
        parts = {part.name: part.gib for part in found.parts}
        full = step.method == "full"
        trained = shape.params if full else shape.lora_params(step.rank, step.targets)
        wide = step.dtype == "float32" or (full and step.dtype == "float16")
        stored = 4 if wide else 2
        width = 4 if step.dtype == "float32" else 2
        packed = NF4_BYTES if step.method == "qlora" else width
        trained_bytes = stored if full else 4
        states = (2 if step.optimizer == "adamw_8bit" else 2 * trained_bytes) if trained else 0
        return cls(
            trainable=trained,
            frozen=0 if full else shape.params,
            frozen_gib=0 if full else parts["weights"],
            activations_gib=parts.get("activations", 0),
            passing_gib=parts.get("gradients in flight", 0) + parts.get("autocast copies", 0),
            loss_gib=parts.get("loss", 0),
            layers=shape.layers,
            layer_gib=shape.linear_params / shape.layers * packed / GIB,
            ends_gib=shape.embedding_params * width / GIB,
            trained_bytes=trained_bytes,
            gradient_bytes=trained_bytes,
            state_bytes=states,
            quantised="4-bit" if step.method == "qlora" else "",
        )

    @classmethod
    def from_parts(
        cls,
        parts: Mapping[str, float],
        *,
        trainable: int,
        frozen: int,
        layers: int,
        layer_gib: float,
        ends_gib: float,
        trained_bytes: float = 2,
        quantised: Literal["", "4-bit", "8-bit"] = "",
        workspace_gib: float = 0.0,
    ) -> Alone:
        """From the parts at the peak before the step (GiB by a Prediction's names), and what they do not carry."""
        trained = trainable / GIB

        def gib(*names: str) -> float:
            return sum(parts.get(name, 0.0) for name in names)

        return cls(
            trainable=trainable,
            frozen=frozen,
            frozen_gib=max(0.0, gib("weights", "adapters") - trained * trained_bytes),
            activations_gib=gib("activations", "inputs"),
            passing_gib=gib("recomputed and in flight", "cuBLAS workspace"),
            loss_gib=gib("logits and loss"),
            layers=layers,
            layer_gib=layer_gib,
            ends_gib=ends_gib,
            trained_bytes=trained_bytes,
            gradient_bytes=trained_bytes,
            state_bytes=gib("optimizer states") / trained if trained else 0.0,
            quantised=quantised,
            workspace_gib=workspace_gib,
        )
