"""Runs in a fresh process: one prediction, timed by part; the result as JSON in the last line of stdout."""

from __future__ import annotations

import functools
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

GIB = 2**30
MODEL = "meta-llama/Llama-3.1-8B"
LENGTHS = [100, 350, 500, 900, 1500, 2048] * 20


class Clock:
    """CPU seconds by part. Parts may hold others: those are taken off."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self._inner = [0.0]

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its time is added to the part."""

        @functools.wraps(work)
        def around(*args: Any, **options: Any) -> Any:
            started = time.process_time()
            self._inner.append(0.0)
            try:
                return work(*args, **options)
            finally:
                took = time.process_time() - started
                self.cpu_s[part] = self.cpu_s.get(part, 0.0) + took - self._inner.pop()
                self._inner[-1] += took

        return around


def ours(clock: Clock, *, lengths: list[int] | None) -> float:
    """What a notebook has in its cells, and the prediction."""

    def imports() -> tuple[Any, ...]:
        import torch
        from peft import LoraConfig
        from transformers import BitsAndBytesConfig
        from trl import SFTConfig

        import nbkit

        return nbkit, torch, BitsAndBytesConfig, LoraConfig, SFTConfig

    nbkit, torch, BitsAndBytesConfig, LoraConfig, SFTConfig = clock.timed("imports", imports)()  # noqa: N806 - classes
    from nbkit.memory import fake, predicted, replay, step, unroll

    fake.build = clock.timed("build", fake.build)
    step._two_steps = clock.timed("step", step._two_steps)  # type: ignore[attr-defined]  # noqa: SLF001 - timed from here
    predicted.unroll = unroll.unroll = clock.timed("replay", unroll.unroll)  # type: ignore[attr-defined]
    replay.Reserved._go = clock.timed("replay", replay.Reserved._go)  # type: ignore[method-assign]  # noqa: SLF001
    args = SFTConfig(
        output_dir="out", per_device_train_batch_size=1, gradient_accumulation_steps=8, max_length=2048, bf16=False,
        use_cpu=True, report_to=[],
    )  # fmt: skip
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    # A machine without a GPU refuses bf16=True; the program says what the arguments cannot.
    program = nbkit.Program.trl(args).but(autocast="bfloat16")

    found = clock.timed("other", nbkit.predict)(
        MODEL, args, peft_config=lora, quantization_config=four_bit, dataset=lengths, device="cuda", program=program
    )
    return float(found.device_gib)


def accelerate(clock: Clock) -> float:
    """The path of `accelerate estimate-memory` from the config on: the hub, which it asks first, is left out."""

    def imports() -> tuple[Any, ...]:
        import torch
        from accelerate import init_empty_weights
        from accelerate.commands.estimate import estimate_training_usage
        from accelerate.utils import calculate_maximum_sizes
        from transformers import AutoModel

        return torch, init_empty_weights, estimate_training_usage, calculate_maximum_sizes, AutoModel

    _, empty, usage, sizes, auto = clock.timed("imports", imports)()

    def estimate() -> float:
        from nbkit.models.known import config_of, known

        entry = known(MODEL)
        assert entry is not None
        with empty():
            model = auto.from_config(config_of(entry))
        total, _ = sizes(model)
        return float(max(usage(total, "bfloat16").values())) / GIB

    answer: float = clock.timed("estimate", estimate)()
    return answer


def main(kind: str) -> dict[str, Any]:
    """Answer once."""
    clock = Clock()
    answer = accelerate(clock) if kind == "accelerate" else ours(clock, lengths=LENGTHS if kind == "mixed" else None)
    return {
        "answer_gib": answer,
        "cpu_s": clock.cpu_s,
        "ram_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
