"""Does this installation compute right QLoRA gradients? A second's work that proves it, for the hardware notebook."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from nbkit.display import Table
from nbkit.errors import require
from nbkit.models.prepare import keep_differentiable, silence_optional_kernel

_SAME = 0.9999  # cosine of two fp32 gradients that differ by rounding only


@dataclass(frozen=True)
class SelfTest:
    """Gradients of a small 4-bit network, against those of its own dequantised weights.

    Attributes:
        device: Where it ran.
        fresh: Cosine of the 4-bit gradient to the reference, before any evaluation.
        after_evaluation: The same after an evaluation, with nbkit's mend.
        unmended: The same after an evaluation, without the mend: what plain transformers would train with here.
    """

    device: str
    fresh: float
    after_evaluation: float
    unmended: float

    @property
    def ok(self) -> bool:
        """True when a model prepared by nbkit trains with right gradients here."""
        return min(self.fresh, self.after_evaluation) >= _SAME

    @property
    def trap(self) -> bool:
        """True when this machine has the trap that the mend is for."""
        return self.unmended < _SAME

    def table(self) -> Table:
        """Three cosines, and what they mean."""
        rows = [
            ("fresh model", self.fresh, _verdict(self.fresh)),
            ("after an evaluation, prepared by nbkit", self.after_evaluation, _verdict(self.after_evaluation)),
            ("after an evaluation, not prepared", self.unmended, _verdict(self.unmended)),
        ]
        return Table(
            ["4-bit network", "cosine to the right gradient", "verdict"],
            [(name, round(cosine, 4), verdict) for name, cosine, verdict in rows],
            title=f"Gradient self-test on {self.device}: {'passed' if self.ok else 'FAILED'}",
            notes=[
                "This CPU has AVX512-BF16: bitsandbytes would repack the weights during an evaluation and then train with "
                "wrong gradients, silently. nbkit.models.prepare keeps it from doing so."
                if self.trap
                else "This machine does not have the AVX512-BF16 trap of bitsandbytes; prepared or not, gradients are right.",
                *([] if self.ok else ["Do not train here: file what you see, with the versions above."]),
            ],
        )

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _verdict(cosine: float) -> str:
    return "right" if cosine >= _SAME else "WRONG"


def self_test(device: str | None = None) -> SelfTest:
    """Compare the gradients of a small NF4 network with those of its dequantised weights, before and after evaluation.

    Args:
        device: "cuda" or "cpu"; chosen by torch when not given.
    Raises: MissingPackageError without the train extra.
    """
    require("torch", "bitsandbytes", extra="train")
    silence_optional_kernel()
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(256, 256, generator=generator) / 16 for _ in range(3)]
    batch = torch.randn(4, 8, 256, generator=generator).to(device)
    reference = _gradient(_dequantised(_network(weights, device)), batch)

    fresh = _network(weights, device)
    mended = _network(weights, device)
    keep_differentiable(mended)
    _evaluate(mended, batch)
    unmended = _network(weights, device)
    _evaluate(unmended, batch)
    with warnings.catch_warnings():
        # torch warns that the repacked kernel has no backward pass: that is the very thing shown here.
        warnings.filterwarnings("ignore", message=".*autograd kernel was not registered")
        cosines = [_cosine(_gradient(network, batch), reference) for network in (fresh, mended, unmended)]
    return SelfTest(device, *cosines)


def _network(weights: list[Any], device: str) -> Any:
    import bitsandbytes as bnb
    import torch

    layers: list[Any] = []
    for weight in weights:
        layer = bnb.nn.Linear4bit(
            weight.shape[1], weight.shape[0], bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", module=layer)
        layers += [layer, torch.nn.GELU()]
    return torch.nn.Sequential(*layers).to(device)


def _dequantised(network: Any) -> Any:
    import bitsandbytes as bnb
    import torch

    plain: list[Any] = []
    for module in network:
        if isinstance(module, bnb.nn.Linear4bit):
            linear = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight.data = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            plain.append(linear)
        else:
            plain.append(module)
    return torch.nn.Sequential(*plain)


def _evaluate(network: Any, batch: Any) -> None:
    import torch

    network.eval()
    with torch.no_grad():
        network(batch)
    network.train()


def _gradient(network: Any, batch: Any) -> Any:
    """Gradient with respect to the input: it must flow through every frozen weight, as it does to a LoRA adapter."""
    leaf = batch.clone().requires_grad_(True)
    loss = network(leaf).square().mean()
    if not loss.requires_grad:  # the repacked kernel has no backward pass at all
        return leaf.detach() * 0
    loss.backward()
    return leaf.grad if leaf.grad is not None else leaf.detach() * 0


def _cosine(one: Any, other: Any) -> float:
    import torch

    return float(
        torch.nn.functional.cosine_similarity(one.flatten().float(), other.flatten().float(), dim=0, eps=1e-30)
    )
