"""Renamed and removed arguments, found before a user meets them.

The keywords that notebook cells give to TRL's, PEFT's and transformers' own objects are read from the cells and looked
up in the installed release. A rename (`max_seq_length`, `evaluation_strategy`) then fails a test, with the closest
present name, and not a Colab session.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache

# name in a cell -> the module that has it
CONSTRUCTORS = {
    "SFTConfig": "trl",
    "SFTTrainer": "trl",
    "LoraConfig": "peft",
    "BitsAndBytesConfig": "transformers",
}


def missing() -> list[str]:
    """The modules that are not installed, of those that would be asked."""
    return [name for name in sorted(set(CONSTRUCTORS.values())) if importlib.util.find_spec(name) is None]


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """`SFTConfig` or `AutoTokenizer.from_pretrained`, and the call, for each call that this gate knows."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = ast.unparse(node.func).split(".")
            if words[-1] in CONSTRUCTORS:
                yield words[-1], node
            elif words[-1] == "from_pretrained" and len(words) > 1 and words[-2][:1].isupper():
                yield ".".join(words[-2:]), node


def unknown_keywords(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and sentence for each keyword that the installed release does not take."""
    found = []
    for called, node in calls(tree):
        try:
            known = accepted(called)
        except LookupError as error:
            found.append((node.lineno, str(error)))
            continue
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in known:
                close = difflib.get_close_matches(keyword.arg, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                found.append(
                    (keyword.lineno, f"{called} takes no argument {keyword.arg!r} in {_release(called)}{hint}")
                )
    return found


@cache
def accepted(called: str) -> frozenset[str]:
    """The keywords that `called` takes by name.

    A constructor's come from its signature. `from_pretrained` hands most of its keywords down, so for it they are those
    of the class, of the base class that does the work, and what either takes out of **kwargs in its source.

    Raises: LookupError for a class that none of the installed libraries has.
    """
    first, _, method = called.partition(".")
    if not method:
        signature = inspect.signature(getattr(importlib.import_module(CONSTRUCTORS[first]), first))
        return frozenset(name for name, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD)
    import transformers

    owner = getattr(_home(first), first)
    names = _taken(owner.from_pretrained)
    if "Tokenizer" in first or "Processor" in first:
        base = transformers.PreTrainedTokenizerBase
        names |= _taken(base.from_pretrained) | _taken(base.__init__)
    elif not first.startswith("Peft") and not first.endswith("Config"):
        # What the model does not take is set on its configuration: num_labels, use_cache.
        names |= _taken(transformers.PreTrainedModel.from_pretrained)
        names |= set(inspect.signature(transformers.PreTrainedConfig).parameters)
        names |= {"num_labels", "id2label", "label2id", "problem_type"}
    return frozenset(names)


def _home(class_name: str) -> object:
    for module in ("transformers", "peft", "trl"):
        home = importlib.import_module(module)
        if hasattr(home, class_name):
            return home
    raise LookupError(f"neither transformers, peft nor trl has {class_name}, so its keywords cannot be checked")


def _taken(function: object) -> set[str]:
    function = inspect.unwrap(getattr(function, "__func__", function))
    names = {name for name, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"kwargs.pop", "kwargs.get"} and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                names.add(first.value)
    return names


def _release(called: str) -> str:
    first = called.partition(".")[0]
    module = importlib.import_module(CONSTRUCTORS[first]) if first in CONSTRUCTORS else _home(first)
    return f"{module.__name__} {module.__version__}"
