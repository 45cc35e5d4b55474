"""Run the real training step on fake tensors and keep what was live, by phase, operator and module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from nbkit.errors import NbkitError
from nbkit.memory import fake, kernels, optimizers
from nbkit.memory.places import Places
from nbkit.memory.program import Program
from nbkit.memory.tracker import BLOCK, Moment, Tally, Tracker


@dataclass(frozen=True)
class Job:
    """One step to run.

    Attributes:
        checkpointing: None for none, else the keywords for torch.utils.checkpoint.
        accumulates: More than one micro-batch a step: gradients are there while the next one runs.
        packed: Rows carry position ids and no mask, several texts in one row.
        args: The trainer's arguments, for optimizers that transformers makes.
        scored: Share of positions with a label: those are all that TRL's fused head computes.
    """

    wanted: fake.Wanted
    program: Program
    batch: int
    seq: int
    checkpointing: dict[str, Any] | None = None
    accumulates: bool = False
    packed: bool = False
    device: Literal["cuda", "cpu"] = "cuda"
    args: Any = field(default=None, compare=False)
    scored: float = 1.0


@dataclass
class Ran:
    """What one run found. Bytes.

    Attributes:
        tally: Peaks and, when traced, events of the steady step.
        first: Events of the first step, when traced.
        resident: (bytes, layer) of each tensor that is there before the first step; layer -1 outside of them.
        paged: Optimizer states in managed memory; they are counted in the tally and must be taken out.
        params, trained: Counts.
    """

    tally: Tally
    first: Tally
    resident: tuple[tuple[int, int], ...]
    paged: int
    params: int
    trained: int
    doubts: tuple[str, ...]


def run(job: Job, layers: int | None, *, edge: int = 2, trace: bool = False) -> Ran:
    """Run two steps of `job` with that many decoder layers; the second is recorded, optimizer states in place.

    Where nothing of a forward lives on, the gradients of the first step and of the micro-batches before the last are put
    there instead of computed: the peak is the same, and found in half of the time.

    Raises: ModelError, NbkitError as fake.build; NbkitError when the step itself fails on fakes.
    """

    built = fake.build(job.wanted, layers, job.program)
    model, program = built.model, job.program
    with fake.quiet():
        _prepare(model, job, adapted=built.adapted)
    places = Places(model, edge)
    tracker = Tracker(places, block=BLOCK if job.device == "cuda" else 64, vocab=_vocab(job.wanted.config))
    tracker.stand_ins = kernels.stand_ins(tracker, device=job.device, scored=job.scored)
    resident = _adopt(model, tracker)
    tracker.tracing = trace
    try:
        with fake.quiet():
            optimizer = optimizers.make(program, model, job.args, mode=built.mode)
        with (
            fake.quiet(),
            kernels.as_on(job.device, compact=program.compact_head) as doubts,
            fake.dora_without_weights(),
            built.mode,
            tracker,
        ):
            first = _two_steps(_Stepper(model, job, optimizer, tracker), trace=trace)
            paged = optimizers.paged_bytes(optimizer, program)
    except NbkitError:
        raise
    except Exception as error:
        raise NbkitError(
            f"The step cannot be run on fake tensors: {type(error).__name__}: {str(error).splitlines()[0][:300]}",
            hint="nbkit.memory.estimate(Shape.from_config(config), Step(...)) gives a formula's answer",
        ) from error
    finally:
        places.close()
    if trace:
        _forget_replaced(model, tracker, first)
    params, trained = _counts(model)
    return Ran(tracker.tally, first, resident, paged, params, trained, (*doubts, *_adapter_doubts(model, job)))


def _adapter_doubts(model: Any, job: Job) -> list[str]:
    config, said = job.wanted.peft_config, []
    if missing := fake.unmatched(model, config):
        said.append(f"target_modules: no module is called {', '.join(missing)}; the others are adapted.")
    rank, width = getattr(config, "r", None), getattr(job.wanted.config, "hidden_size", None)
    if isinstance(rank, int) and isinstance(width, int) and rank > width:
        said.append(
            f"r={rank} is more than the model's width of {width}: such adapters gain nothing over full training."
        )
    return said


def _two_steps(stepper: _Stepper, *, trace: bool) -> Tally:
    """Run them; the second is left in the tracker's tally, and the first is returned."""
    job, tracker = stepper.job, stepper.tracker
    next_one, micro_batches = job.program.holds_outputs == "next", 2 if job.accumulates else 1
    carries = next_one or not job.program.set_to_none  # more than the optimizer's states, from step to step
    if next_one or (trace and carries):
        stepper.step(micro_batches if trace else 1)
    else:
        stays = not job.program.steps_in_backward  # of a gradient, till the last micro-batch's update
        stepper.warm_up(gradients=job.accumulates and stays and not trace)
        micro_batches = micro_batches if trace else 1
    first, tracker.tally = tracker.tally, Tally()
    tracker.recording = True
    stepper.step(micro_batches)
    if trace and not carries:
        first.moments = _first_step(first.moments, tracker.tally.moments)
    return first


def _first_step(warm_up: list[Moment], steady: list[Moment]) -> list[Moment]:
    """A first step's events: a later one's, with the states that the optimizer made in the warm-up."""
    made, freed = {one.key for one in steady if one.size}, {one.key for one in warm_up if not one.size}
    steady = [one for one in steady if one.key in made]
    states = [one for one in warm_up if one.size and one.phase == "optimizer" and one.key not in freed]
    begun = next((at for at, one in enumerate(steady) if one.phase == "optimizer"), len(steady))
    return [*steady[:begun], *states, *steady[begun:]]


def _forget_replaced(model: Any, tracker: Tracker, first: Tally) -> None:
    """Leave out of the traces that a weight was replaced (bitsandbytes casts a bias to its input's format): it happens
    once, and no later step frees or makes it."""
    tensors = (*model.parameters(), *model.buffers())
    weights = {tracker.key_of(one) for one in tensors}
    made = {one.key for one in (*first.moments, *tracker.tally.moments) if one.size}
    for tally in (first, tracker.tally):
        tally.moments = [one for one in tally.moments if one.key in made and one.key not in weights]


def _vocab(config: Any) -> int:
    return int(getattr(config, "vocab_size", 0) or 0)


def _counts(model: Any) -> tuple[int, int]:
    params = trained = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        params += state.shape.numel() if state is not None else parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
    return params, trained


def _adopt(model: Any, tracker: Tracker) -> tuple[tuple[int, int], ...]:
    sizes = []
    trains = {True: "adapters" if _has_adapters(model) else "weights", False: "weights"}
    tensors = [(path, trains[one.requires_grad], one) for path, one in model.named_parameters()]
    tensors += [(path, "weights", one) for path, one in (*model.named_buffers(), *fake.constants(model))]
    for path, kind, tensor in tensors:
        before, layer = tracker.live, tracker.places.layer_of(path)
        tracker.adopt(tensor, kind, layer)
        if tracker.live > before:
            sizes.append((tensor.untyped_storage().nbytes(), layer))
    return tuple(sizes)


def _has_adapters(model: Any) -> bool:
    return any(not one.requires_grad for one in model.parameters())


def _prepare(model: Any, job: Job, *, adapted: bool) -> None:
    """What the program does to the model before the first step."""
    program = job.program
    if program.attention == "flash":
        _use_flash(model)
    if program.extra_4bit_copy:
        kernels.keep_inputs_of_4bit(model)
    if program.unpacks_4bit:
        kernels.keep_unpacked_4bit(model)
    if program.model_code == "litgpt":
        model.gradient_checkpointing = job.checkpointing is not None
    elif job.checkpointing is not None:
        _checkpoint(model, job, adapted=adapted)
    if _fused(job):
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model.get_base_model() if adapted else model, outputs=("log_probs", "entropy", "is_top1"))
    if program.loss == "shifted":
        _shift(model.get_base_model() if adapted else model, program.upcasts_logits)
    if program.autocast:
        _autocast(model, program)


def _shift(model: Any, upcasts: str) -> None:
    """The loss of transformers before 4.49 (modeling_llama.py, then loss_utils.py): over a shifted copy of the logits."""
    import torch

    def loss(logits: Any, labels: Any, **_: Any) -> Any:
        if upcasts == "in the loss":
            logits = logits.float()
        kept = logits[..., :-1, :].contiguous()
        wanted = labels[..., 1:].contiguous().view(-1)
        return torch.nn.functional.cross_entropy(kept.view(-1, kept.shape[-1]), wanted)

    model.loss_function = loss
    if upcasts == "at the head":
        model.get_output_embeddings().register_forward_hook(lambda *found: found[-1].float())


def _use_flash(model: Any) -> None:
    name = kernels.register_flash()
    configs = [model.config, *(getattr(module, "config", None) for module in model.modules())]
    for config in configs:
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = name  # noqa: SLF001 - what set_attn_implementation sets


def _checkpoint(model: Any, job: Job, *, adapted: bool) -> None:
    options = {name: value for name, value in (job.checkpointing or {}).items() if name != "offload"}
    extra = {"every_n_layers": options.pop("every_n_layers")} if "every_n_layers" in options else {}
    options.setdefault("use_reentrant", job.program.reentrant)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    if adapted:  # PeftModel forwards unknown names to the base model
        enable = getattr(model.base_model.model, "activation_checkpointing_enable", enable)
    enable(options, **extra)
    if adapted and job.program.input_grads:
        model.enable_input_require_grads()


def _autocast(model: Any, program: Program) -> None:
    import torch

    forward, dtype = model.forward, getattr(torch, str(program.autocast))

    def mixed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=dtype):
            return forward(*args, **kwargs)

    model.forward = mixed
    if program.outputs_to_fp32:
        from accelerate.utils.operations import convert_outputs_to_fp32

        model.forward = convert_outputs_to_fp32(mixed)


def _fused(job: Job) -> bool:
    program = job.program
    return program.loss == "trl fused" and job.wanted.task == "causal" and program.model_code == "transformers"


class _Stepper:
    """The loop of the program."""

    def __init__(self, model: Any, job: Job, optimizer: Any, tracker: Tracker) -> None:
        self.model, self.job, self.optimizer, self.tracker = model, job, optimizer, tracker
        self.held: Any = None
        self.held_loss: Any = None
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._has_grad)

    def _has_grad(self, parameter: Any) -> None:
        self.tracker.adopt(parameter.grad, "gradients")
        if self.job.program.steps_in_backward:
            self.optimizer.step_one(parameter)
            self._adopt_states()

    def warm_up(self, *, gradients: bool) -> None:
        """Make the optimizer's states, the gradient buffers where the program keeps them, and, where asked for, the
        `gradients` that micro-batches before the last would have left."""
        self._fill_gradients()
        self._update()
        if gradients:
            self._fill_gradients()

    def _fill_gradients(self) -> None:
        import torch

        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
                self.tracker.adopt(parameter.grad, "gradients")

    def _update(self) -> None:
        tracker = self.tracker
        tracker.phase, tracker.places.backward = "optimizer", False
        self.optimizer.step()
        self._adopt_states()
        self.optimizer.zero_grad(set_to_none=self.job.program.set_to_none)

    def _adopt_states(self) -> None:
        for state in optimizers.states(self.optimizer):
            self.tracker.adopt(state, "optimizer states")

    def step(self, micro_batches: int) -> None:
        for _ in range(micro_batches):
            self._micro()
        self._update()

    def _micro(self) -> None:
        tracker, held = self.tracker, self.job.program.holds_outputs
        tracker.phase, tracker.places.backward = "forward", False
        inputs = self._inputs()
        outputs, loss = self._forward(inputs)
        if held != "no":
            self.held = outputs
        if held == "next":
            self.held_loss = loss  # the name is bound till the next loss: with it the nodes of the graph live on
        del outputs, inputs
        tracker.phase, tracker.places.backward = "backward", True
        buckets = self._buckets()
        loss.backward()
        tracker.places.backward = False
        del loss, buckets
        if held == "backward":
            self.held = None

    def _buckets(self) -> Any:
        import torch

        return torch.empty(self.job.program.bucket_bytes, dtype=torch.uint8)

    def _inputs(self) -> dict[str, Any]:
        import torch

        job = self.job
        ids = torch.zeros((job.batch, job.seq), dtype=torch.int64)
        inputs = {"input_ids": ids, "labels": ids}
        if job.wanted.task == "sequence classification":
            inputs["labels"] = torch.zeros((job.batch,), dtype=torch.int64)
        if job.packed:
            inputs["position_ids"] = torch.zeros((job.batch, job.seq), dtype=torch.int64)
        for one in inputs.values():
            self.tracker.adopt(one, "inputs")
        return inputs

    def _forward(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        program = self.job.program
        if program.model_code == "litgpt":
            from nbkit.memory import litgpt

            logits = litgpt.logits(self.model, inputs["input_ids"])
            self.held = logits
            return logits, litgpt.loss(logits, inputs["input_ids"])
        if _fused(self.job):
            outputs = self.model(**inputs, use_cache=False, fused_lm_head=True)
            per_token = -outputs.log_probs
            return outputs, per_token.sum() / inputs["labels"].numel()
        if program.loss == "chunked" and self.job.wanted.task == "causal":
            return self._chunked(inputs)
        outputs = self.model(**inputs)
        loss = outputs.loss
        if program.holds_outputs == "no":
            outputs = None
        return outputs, loss

    def _chunked(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Cross entropy in float32, `chunk` tokens at a time, and the head too where the program says so."""
        import torch

        program, targets = self.job.program, inputs["labels"]
        plain = {name: one for name, one in inputs.items() if name != "labels"}
        if program.chunked_head:
            base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            head, hidden = base.get_output_embeddings(), base.base_model(**plain, use_cache=False).last_hidden_state
            pieces = [head(one) for one in hidden.split(program.chunk, dim=1)]
        else:
            pieces = list(self.model(**plain, use_cache=False).logits.split(program.chunk, dim=1))
        losses = [
            torch.nn.functional.cross_entropy(one.float().flatten(0, 1), target.flatten(), reduction="sum")
            for one, target in zip(pieces, targets.split(program.chunk, dim=1), strict=True)
        ]
        return pieces if program.holds_outputs != "no" else None, torch.stack(losses).sum() / targets.numel()
