"""Data for fine-tuning: read it, look at it, bring it into one shape, hold some out, count its tokens, save it.

The modules are loaded here, not on first use: `read`, `check`, `dedup` and `split` are verbs and modules of one name,
and a module that is loaded later would take the verb's place. None of them imports torch, datasets or pyarrow.
"""

from __future__ import annotations

from nbkit.data import tickets
from nbkit.data.chatterbot import chatterbot
from nbkit.data.check import Problem, Report, check
from nbkit.data.dedup import Leaks, Removed, dedup, leaks
from nbkit.data.formats import Format, convert, detect
from nbkit.data.prepared import Prepared, load_prepared, save_prepared
from nbkit.data.read import read
from nbkit.data.rows import Rows
from nbkit.data.split import split
from nbkit.data.tokens import Marked, TokenStats, marked, token_stats, tokenize_row

__all__ = [
    "Format",
    "Leaks",
    "Marked",
    "Prepared",
    "Problem",
    "Removed",
    "Report",
    "Rows",
    "TokenStats",
    "chatterbot",
    "check",
    "convert",
    "dedup",
    "detect",
    "leaks",
    "load_prepared",
    "marked",
    "read",
    "save_prepared",
    "split",
    "tickets",
    "token_stats",
    "tokenize_row",
]
