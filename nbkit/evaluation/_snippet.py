"""The loading code of a model card; it is executed in a test, in the folder it is written for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EMBEDDED = "embedded"
_ASK = """\
folder = "."  # where this file lies, or the model's id on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


def load_snippet(
    base_model: str, recipe: Mapping[str, Any], *, merged: bool, example: Mapping[str, Any] | None = None
) -> str:
    """Code that loads the model as it was measured and answers one prompt.

    An adapter is put on a base that is quantised as it was in training: on another it is not the model that was scored.
    """
    four_bit = bool(recipe.get("load_in_4bit")) and not merged
    imports = ["import torch"] if not merged else []
    if not merged:
        imports.append("from peft import PeftModel")
    names = ["AutoModelForCausalLM", "AutoTokenizer", *(["BitsAndBytesConfig"] if four_bit else [])]
    imports.append(f"from transformers import {', '.join(names)}")
    own = not merged and base_model == EMBEDDED
    text = "\n".join(imports) + "\n" + ("\nfrom nbkit.models import embedded\n" if own else "") + "\n" + _ASK
    if merged:
        text += 'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")\n'
    else:
        dtype = "bfloat16" if recipe.get("bf16") else "float16" if recipe.get("fp16") else "float32"
        quantised = ""
        if four_bit:
            kind, nested = recipe.get("bnb_4bit_quant_type", "nf4"), bool(recipe.get("use_bnb_nested_quant"))
            text += (
                "four_bit = BitsAndBytesConfig(\n"
                f'    load_in_4bit=True, bnb_4bit_quant_type="{kind}", bnb_4bit_use_double_quant={nested},\n'
                f"    bnb_4bit_compute_dtype=torch.{dtype},\n)\n"
            )
            quantised = ", quantization_config=four_bit"
        where = "embedded()" if own else repr(base_model)
        text += f"base = AutoModelForCausalLM.from_pretrained({where}, dtype=torch.{dtype}{quantised})\n"
        text += "model = PeftModel.from_pretrained(base, folder)\n"
    return text + _question(example)


def _question(example: Mapping[str, Any] | None) -> str:
    prompt = example["prompt"] if example else [{"role": "user", "content": "Hello!"}]
    if isinstance(prompt, str):
        text = f"prompt = {prompt!r}\n" + 'inputs = tokenizer(prompt, return_tensors="pt").to(model.device)\n'
    else:
        lines = "".join(f"    {dict(message)!r},\n" for message in prompt)
        text = f"messages = [\n{lines}]\n"
        text += (
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True\n'
            ").to(model.device)\n"
        )
    return text + (
        "out = model.generate(**inputs, max_new_tokens=96, do_sample=False)\n"
        'answer = tokenizer.decode(out[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True)\n'
        "print(answer)\n"
    )
