"""Write nbkit/data/sets/chatterbot_english.jsonl from the installed chatterbot-corpus package.

Run `python tools/vendor_chatterbot.py` in the development environment (chatterbot-corpus 1.3.3 and pyyaml are test
dependencies). tests/test_data_chatterbot.py fails when the vendored file and the package disagree.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import yaml

TARGET = Path(__file__).parents[1] / "nbkit" / "data" / "sets" / "chatterbot_english.jsonl"


def pairs(folder: Path) -> list[dict[str, str]]:
    """The opening line and the first reply of every conversation under `folder`, in file order, text untouched.

    Why not the later turns: most of the longer conversations list alternative replies to the first line (emotion.yml,
    computers.yml), some go on as a dialogue (conversations.yml), and the files do not say which is which.
    """
    found = []
    for file in sorted(folder.glob("*.yml")):
        corpus = yaml.safe_load(file.read_text(encoding="utf-8"))
        for number, conversation in enumerate(corpus["conversations"], start=1):
            found.append(
                {
                    "id": f"{file.stem}-{number:04d}",
                    "category": corpus["categories"][0],
                    "prompt": conversation[0],
                    "completion": conversation[1],
                }
            )
    return found


def as_jsonl(rows: list[dict[str, str]]) -> str:
    """One object a line, UTF-8 kept as it is."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def installed() -> Path:
    """The English folder of the installed package; found without running the package's code."""
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or spec.origin is None:
        sys.exit("chatterbot-corpus is not installed: pip install chatterbot-corpus==1.3.3 pyyaml")
    return Path(spec.origin).parent / "data" / "english"


if __name__ == "__main__":
    rows = pairs(installed())
    TARGET.write_text(as_jsonl(rows), encoding="utf-8")
    print(f"{len(rows):,} rows in {TARGET.name}")
