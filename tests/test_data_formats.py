"""The shapes of fine-tuning data: which one is it, and what TRL is given."""

from __future__ import annotations

import pytest

from nbkit.data import convert, detect, read
from nbkit.errors import DataError


def user(text):
    """A user's turn."""
    return {"role": "user", "content": text}


def assistant(text):
    """An assistant's turn."""
    return {"role": "assistant", "content": text}


def refusal(verb, rows, **options):
    """The error of a verb on these rows."""
    with pytest.raises(DataError) as caught:
        verb(read(rows), **options)
    return str(caught.value)


PAIR = {"prompt": [user("Hi")], "completion": [assistant("Hello")]}
SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "Bye"},
        {"from": "gpt", "value": "See you"},
    ]
}


class TestDetect:
    @pytest.mark.parametrize(
        ("row", "name", "chat"),
        [
            ({"prompt": "Hi", "completion": "Hello"}, "prompt-completion", False),
            (PAIR, "prompt-completion", True),
            ({"messages": [user("Hi"), assistant("Hello")]}, "messages", True),
            (SHAREGPT, "sharegpt", True),
            ({"instruction": "Add", "input": "1 2", "output": "3"}, "alpaca", False),
            ({"instruction": "Add", "output": "3", "text": "Add 3"}, "alpaca", False),
            ({"text": "Once upon a time"}, "text", False),
        ],
    )
    def test_by_the_columns(self, row, name, chat):
        """The columns decide; a rendered `text` beside them does not."""
        found = detect(read([row, row]))
        assert (name, chat) == (found.name, found.conversational)
        assert found.reason.startswith("every row has '")

    def test_says_why(self):
        """A Format reads as a sentence with the columns that decided."""
        text = str(detect(read([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b"}])))
        assert "alpaca (strings): every row has 'instruction', 'output'" == text

    def test_unknown_columns_are_listed(self):
        """When nothing fits, the columns found and a way to rename them are said."""
        text = refusal(detect, [{"question": "a", "answer": "b"}])
        assert text.startswith("list: no known format has these columns: question, answer.")
        assert "rows.map(" in text

    def test_preference_pairs_are_named(self):
        """DPO data is told apart from data that is merely unknown."""
        assert "preference pairs (DPO)" in refusal(detect, [{"prompt": "a", "chosen": "b", "rejected": "c"}])

    def test_mixed_formats_name_the_first_row_of_each(self):
        """Rows of two kinds are refused with one place for each kind."""
        text = refusal(detect, [PAIR, PAIR, SHAREGPT, {"x": 1}])
        expected = "list mixes 3 formats: list, row 1 is prompt-completion; list, row 3 is sharegpt; list, row 4 has x."
        assert text.startswith(expected)

    def test_no_rows(self):
        """Nothing can be told from no rows."""
        assert 0 == len(read([{"a": 1}])[:0])
        with pytest.raises(DataError, match="holds no rows"):
            detect(read([{"a": 1}])[:0])


class TestConvert:
    def test_strings_become_turns(self):
        """Prompt and completion strings become one user and one assistant turn; other columns stay."""
        rows = convert(read([{"id": 7, "prompt": "Hi", "completion": "Hello", "topic": "greeting"}]))
        assert {**PAIR, "id": 7, "topic": "greeting"} == rows[0]
        assert [1] == rows.lines

    @pytest.mark.parametrize(
        ("row", "question"),
        [
            ({"instruction": "Add", "output": "3"}, "Add"),
            ({"instruction": "Add", "input": "", "output": "3"}, "Add"),
            ({"instruction": "Add", "input": "1 and 2", "output": "3"}, "Add\n\n1 and 2"),
        ],
    )
    def test_alpaca(self, row, question):
        """Alpaca's input follows the instruction after an empty line, when there is one."""
        assert {"prompt": [user(question)], "completion": [assistant("3")]} == convert(read([row]))[0]

    def test_alpaca_with_system_and_history(self):
        """LLaMA-Factory's `system` and `history` columns become earlier turns."""
        row = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]], "id": 1}
        prompt = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c")]
        assert {"id": 1, "prompt": prompt, "completion": [assistant("d")]} == convert(read([row]))[0]

    def test_sharegpt_of_several_turns(self):
        """ShareGPT's speakers get TRL's role names; the last answer is the completion, all before it the prompt."""
        row = convert(read([{**SHAREGPT, "id": "x"}]))[0]
        assert ["system", "user", "assistant", "user"] == [turn["role"] for turn in row["prompt"]]
        assert [assistant("See you")] == row["completion"]
        assert {"id", "prompt", "completion"} == set(row)

    @pytest.mark.parametrize(
        ("speaker", "role"), [("human", "user"), ("gpt", "assistant"), ("observation", "tool"), ("model", "assistant")]
    )
    def test_sharegpt_speakers(self, speaker, role):
        """Each known speaker has one role."""
        turns = [{"from": speaker, "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}]
        assert role == convert(read([{"conversations": turns}]))[0]["prompt"][0]["role"]

    def test_an_unknown_speaker_is_named_with_its_line(self, tmp_path):
        """A speaker that is not known stops the conversion at its line."""
        path = tmp_path / "chat.jsonl"
        path.write_text('\n{"conversations": [{"from": "hacker", "value": "a"}]}\n')
        with pytest.raises(DataError) as caught:
            convert(read(path))
        assert caught.value.message.startswith(f"{path}:2: the speaker 'hacker' is not a known ShareGPT role (human, ")
        assert "leave the row out" in caught.value.hint

    def test_messages_of_several_turns(self):
        """The last assistant turn is the completion; what follows it is left out."""
        turns = [user("a"), assistant("b"), user("c"), assistant("d"), user("e")]
        row = convert(read([{"messages": turns}]))[0]
        assert {"prompt": turns[:3], "completion": [assistant("d")]} == row

    def test_to_messages_and_back(self):
        """Every format becomes messages, and messages become what they were."""
        rows = convert(read([PAIR]), to="messages")
        assert {"messages": [user("Hi"), assistant("Hello")]} == rows[0]
        assert PAIR == convert(rows)[0]
        assert 5 == len(convert(read([SHAREGPT]), to="messages")[0]["messages"])

    def test_leaves_no_second_format_behind(self):
        """TRL picks an arbitrary one of its columns to see whether a row is a chat, so only the target stays."""
        row = convert(read([{**PAIR, "messages": "rendered", "chosen": "x", "text": "kept"}]))[0]
        assert {"prompt", "completion", "text"} == set(row)

    def test_the_input_is_not_changed(self):
        """Converting makes new rows; those given stay as they are."""
        rows = read([{"prompt": "Hi", "completion": "Hello"}])
        convert(rows)
        assert {"prompt": "Hi", "completion": "Hello"} == rows[0]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"text": "a"}, "list: plain text has no question and answer to tell apart."),
            ({"messages": "[]"}, "list, row 1: messages is a string, not a list of messages."),
            ({"messages": []}, "list, row 1: messages is an empty list."),
            ({"messages": ["a"]}, "list, row 1: messages holds a string where a message belongs."),
            ({"messages": [user("a")]}, "list, row 1: there is no assistant turn to learn from."),
            ({"conversations": [{"who": "a"}]}, "list, row 1: a turn has the keys who; it needs from and value."),
            ({"prompt": "a", "completion": None}, "list, row 1: completion is null, not a list of messages."),
            (
                {"instruction": "a", "output": "b", "history": ["c"]},
                "list, row 1: history must be a list of [question, answer] pairs.",
            ),
        ],
    )
    def test_refused(self, row, message):
        """A row that is not what its columns promise is refused with its place."""
        assert refusal(convert, [row]).startswith(message)

    def test_an_unknown_target(self):
        """Only the two forms that TRL trains on are targets."""
        text = refusal(convert, [PAIR], to="alpaca")
        assert 'Rows are converted to "prompt-completion" or "messages", not to \'alpaca\'.' == text
