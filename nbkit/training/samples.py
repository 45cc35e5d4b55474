"""What the model answers to fixed prompts as it learns; training is not changed by asking."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from nbkit.errors import RunError
from nbkit.training import rng
from nbkit.training.record import Recorder

NEW_TOKENS = 64

Prompt = str | Sequence[dict[str, str]]


class Sampling:
    """A callback that answers `prompts` greedily after each evaluation, and once more at the end of the run.

    Args:
        prompts: Texts, or conversations as lists of {"role", "content"}, which the chat template renders.
        new_tokens: The longest answer.
    Raises: RunError for a prompt of another kind, or a trainer without a tokenizer.
    """

    def __init__(self, trainer: Any, recorder: Recorder, prompts: Sequence[Prompt], new_tokens: int) -> None:
        self.trainer, self.recorder, self.new_tokens = trainer, recorder, new_tokens
        self.prompts = [(shown(prompt), rendered(trainer, prompt)) for prompt in prompts]
        self.at = -1

    def on_evaluate(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.answer(state.global_step)

    def on_train_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.answer(state.global_step)

    def answer(self, step: int) -> None:
        """Generate and note all answers; a stop breaks off within a token. Twice at one step is done once."""
        if step == self.at or self.recorder.stop_asked:
            return
        self.at = step
        before = self.recorder.status
        self.recorder.set("evaluating", doing="answering the samples")
        try:
            self._answer_all(step)
        finally:
            self.recorder.set(before.state)

    def _answer_all(self, step: int) -> None:
        with rng.untouched(), _generating(self.trainer.model):
            for index, (text, ids) in enumerate(self.prompts):
                answer = self._generate(ids)
                if self.recorder.stop_asked:
                    return
                self.recorder.sample(step, index, text, answer)

    def _generate(self, ids: list[int]) -> str:
        import torch
        from transformers import StoppingCriteriaList

        model, tokenizer = self.trainer.model, tokenizer_of(self.trainer)
        batch = torch.tensor([ids], device=next(model.parameters()).device)
        recorder = self.recorder

        def stop(_ids: Any, _scores: Any, **_: Any) -> Any:
            return torch.full((1,), recorder.stop_asked, dtype=torch.bool, device=batch.device)

        with torch.no_grad():
            out = model.generate(
                input_ids=batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=self.new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        return str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))


@contextlib.contextmanager
def _generating(model: Any) -> Iterator[None]:
    """Evaluation mode with a cache and without activation checkpointing; each module is put back as it was."""
    training = [(module, module.training) for module in model.modules()]
    checkpointing = [
        (module, module.gradient_checkpointing)
        for module in model.modules()
        if isinstance(getattr(module, "gradient_checkpointing", None), bool)
    ]
    use_cache = model.config.use_cache if hasattr(model.config, "use_cache") else None
    try:
        model.eval()
        for module, _ in checkpointing:
            module.gradient_checkpointing = False
        yield
    finally:
        for module, was in training:
            module.training = was
        for module, was in checkpointing:
            module.gradient_checkpointing = was
        if use_cache is not None:
            model.config.use_cache = use_cache


def tokenizer_of(trainer: Any) -> Any:
    """The trainer's tokenizer, or that inside its processor.

    Raises: RunError without one.
    """
    found = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if found is None or not hasattr(found, "decode"):
        raise RunError(
            "samples need a tokenizer, and this trainer has none.",
            hint="pass processing_class=tokenizer to the trainer, or leave samples out",
        )
    return found


def rendered(trainer: Any, prompt: Prompt) -> list[int]:
    """Token ids of a prompt; a conversation ends where the answer begins.

    Raises: RunError for anything but a text or a list of messages.
    """
    tokenizer = tokenizer_of(trainer)
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    elif isinstance(prompt, Sequence) and prompt and all(isinstance(m, dict) and "role" in m for m in prompt):
        ids = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
    else:
        raise RunError(
            f"A sample is a text or a list of messages, not {type(prompt).__name__}.",
            hint='nbkit.start(trainer, samples=["Some text", [{"role": "user", "content": "A question"}]])',
        )
    return [int(token) for token in ids]


def shown(prompt: Prompt) -> str:
    """A prompt as a person reads it: the text, or the last message of a conversation."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
