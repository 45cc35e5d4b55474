"""Programs of other frameworks: found by name, written so that they can be pasted, and said truly."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re

import pytest

from nbkit.errors import NbkitError
from nbkit.memory import Program, frameworks, predict
from nbkit.memory.distributed import How
from nbkit.memory.frameworks import FRAMEWORKS

NAMES = [one.name for one in FRAMEWORKS]
HABITS = {one.name for one in dataclasses.fields(Program)}


class TestNamed:
    def test_a_name_gives_the_loop_and_habits_change_it(self):
        """Capitals do not matter."""
        found = Program.named("MS-Swift 2", unpacks_4bit=True)
        assert ("ms-swift 2", "at the head", True) == (found.name, found.upcasts_logits, found.unpacks_4bit)
        assert not Program.named("ms-swift 2").unpacks_4bit

    def test_an_unknown_name_is_an_error_with_the_nearest(self):
        """And the names that there are."""
        with pytest.raises(NbkitError, match="torchtune, peft metamath") as failed:
            Program.named("torchtun")
        assert "did you mean 'torchtune'?" == failed.value.hint
        with pytest.raises(NbkitError) as failed:
            Program.named("megatron")
        assert "Program(...) describes any loop" in failed.value.hint

    def test_an_unknown_habit_is_an_error_with_those_there_are(self):
        """Not a TypeError of dataclasses."""
        with pytest.raises(NbkitError, match="optimiser: a Program has no such habit") as failed:
            Program.named("litgpt", optimiser="sgd")
        assert "optimizer" in failed.value.hint
        assert 2 == failed.value.exit_code


class TestTable:
    @pytest.mark.parametrize("one", FRAMEWORKS, ids=NAMES)
    def test_habits_can_be_pasted(self, one):
        """Program(<what the table says>) is the program, but for its name and how well it is known."""
        pasted = eval(f"Program({one.habits})", {"Program": Program})
        assert one.program == pasted.but(name=one.program.name, exact=one.program.exact, bar=one.program.bar)

    @pytest.mark.parametrize("one", FRAMEWORKS, ids=NAMES)
    def test_what_is_to_be_told_can_be_told(self, one):
        """Each keyword in the advice is a habit, an argument of predict or of How; and the habits are taken."""
        known = HABITS | set(inspect.signature(predict).parameters) | {field.name for field in dataclasses.fields(How)}
        assert set(re.findall(r"\b(\w+)=", one.beside)) <= known
        said = re.findall(r"\b(\w+)=('[^']*'|True|False|None)", one.beside)
        habits = {key: ast.literal_eval(value) for key, value in said if key in HABITS}
        changed = Program.named(one.name, **habits)
        assert habits == {key: getattr(changed, key) for key in habits}

    def test_names_are_their_own(self):
        """One entry a name, and the table has them all with where they were read."""
        assert len(NAMES) == len(set(NAMES))
        table = frameworks()
        assert NAMES == [row[0] for row in table.rows]
        assert all(row[-1] for row in table.rows)
