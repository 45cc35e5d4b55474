"""nbkit.evaluation.fields: what counts as the right answer, field by field."""

from __future__ import annotations

import pytest

from nbkit.evaluation.fields import Match, leaves, match, parse_object, same

TICKET = '{"name": "Ana", "order": 7, "urgent": true}'


class TestMatch:
    @pytest.mark.parametrize(
        "got",
        [
            TICKET,
            f"  {TICKET}\n",
            '{"name":"Ana","order":7,"urgent":true}',
            '{"urgent": true, "order": 7, "name": "Ana"}',
            '{"name": "\\u0041na", "order": 7.0, "urgent": true}',
        ],
    )
    def test_the_same_object_is_exact(self, got):
        """Spacing, the order of keys and the spelling of a value do not matter where JSON is expected."""
        assert Match(exact=True, right=3, fields=3) == match(TICKET, got)

    @pytest.mark.parametrize(
        "got",
        [
            f"Sure! {TICKET}",
            f"{TICKET} Done.",
            f"```json\n{TICKET}\n```",
            f"{TICKET}{TICKET}",
            f"[{TICKET}]",
            TICKET[:-1],
            '"Ana"',
            "null",
            "",
            '{"name": "Ana", "name": "Ana", "order": 7, "urgent": true}',
            '{"name": "Ana", "order": NaN, "urgent": true}',
            "[" * 100_000,
        ],
    )
    def test_what_is_not_one_object_has_nothing_right(self, got):
        """Text around it, two objects, a list, a bare value, a doubled key, NaN or half an object: 0 of 3 fields."""
        assert Match(exact=False, right=0, fields=3) == match(TICKET, got)

    @pytest.mark.parametrize(
        ("got", "right"),
        [
            ('{"name": "Ana", "order": "7", "urgent": true}', 2),
            ('{"name": "Ana", "order": 7, "urgent": 1}', 2),
            ('{"name": "Ana", "order": 7, "urgent": "true"}', 2),
            ('{"name": "ana", "order": 8, "urgent": null}', 0),
            ('{"order": 7}', 1),
            ("{}", 0),
        ],
    )
    def test_each_field_counts_by_value_and_type(self, got, right):
        """A number is not its string, true is not 1, case matters, and a missing field is a wrong one."""
        assert Match(exact=False, right=right, fields=3) == match(TICKET, got)

    def test_an_extra_key_costs_exactness_only(self):
        """A key nobody asked for makes the answer inexact, its fields stay right."""
        assert Match(exact=False, right=3, fields=3) == match(TICKET, TICKET[:-1] + ', "note": ""}')

    def test_nested_fields_count_one_by_one(self):
        """A field is a leaf; a list is one field, in order; an object in place of a leaf is wrong."""
        expected = '{"a": {"b": 1, "c": {}}, "d": [1, {"e": 2}], "f": null}'
        assert Match(exact=False, right=3, fields=4) == match(
            expected, '{"a": {"b": 1, "c": {}}, "d": [1, {"e": 3}], "f": null}'
        )
        assert Match(exact=False, right=1, fields=4) == match(expected, '{"a": 1, "d": [1, {"e": 2}], "f": {}}')

    def test_plain_text_has_no_fields(self):
        """Where no object is expected, the text decides, without its outer white space, and there is no field share."""
        assert Match(exact=True, right=0, fields=0) == match("Paris.", " Paris.\n")
        assert Match(exact=False, right=0, fields=0) == match("Paris.", "Paris")
        assert None is match("Paris.", "Paris.").share

    def test_an_expected_list_is_text(self):
        """Only objects have fields; an expected list is compared as text."""
        assert Match(exact=False, right=0, fields=0) == match("[1, 2]", "[1,2]")

    def test_an_odd_expected_text_can_still_be_matched(self):
        """An expected object with a doubled key is not an object to anyone, so it is compared as text."""
        assert Match(exact=True, right=0, fields=0) == match('{"a": 1, "a": 2}', '{"a": 1, "a": 2}')

    def test_share(self):
        """The share of fields is right over expected."""
        assert 2 / 3 == match(TICKET, '{"name": "Ana", "order": 7}').share


class TestParts:
    @pytest.mark.parametrize("text", ["{} {}", "[]", "1", "{'a': 1}", '{"a": 1,}', '{"a": Infinity}', "{\n"])
    def test_parse_object_refuses(self, text):
        """Nothing but one strict JSON object is read."""
        assert None is parse_object(text)

    def test_parse_object_reads_unicode_and_space(self):
        """White space around an object and letters of any script are fine."""
        assert {"ñ": "東京"} == parse_object('\n {"ñ": "東京"} ')

    def test_a_doubled_key_inside_is_found(self):
        """A key that stands twice in an inner object spoils the whole."""
        assert None is parse_object('{"a": {"b": 1, "b": 1}}')

    def test_leaves_are_named_by_their_path(self):
        """Two keys that hold a dot do not collide with a nested key."""
        assert {("a", "b"): 1, ("a.b",): 2, ("c",): {}} == leaves({"a": {"b": 1}, "a.b": 2, "c": {}})

    @pytest.mark.parametrize(
        ("one", "other", "expected"),
        [
            (1, 1.0, True), (1, True, False), (0, False, False), (None, False, False), ("1", 1, False),
            ([1, [True]], [1, [True]], True), ([1, [True]], [1, [1]], False), ([1], [1, 1], False),
            ({"a": 1}, {"a": True}, False), ({}, [], False), (12345678901234567890, 12345678901234567891, False),
        ],
    )  # fmt: skip
    def test_same_is_equality_of_json(self, one, other, expected):
        """Booleans are not numbers, at any depth; long order numbers are not rounded."""
        assert expected is same(one, other)
        assert expected is same(other, one)
