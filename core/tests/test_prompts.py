"""Prompts from rows: text, chats, and a system prompt for each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rlhf_core.components.config import DemonstrationsConfig, PromptsConfig
from rlhf_core.components.demonstrations import Demonstrations
from rlhf_core.components.prompts import Prompts
from rlhf_core.errors import DataError
from rlhf_core.interfaces import Context
from rlhf_core.records import Prompt

SYSTEM = {"role": "system", "content": "be kind"}
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Ho"}


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path, *rows: dict[str, Any], **config: Any) -> list[Prompt]:
    source = Prompts(PromptsConfig(path=written(path / "a.jsonl", *rows), **config), Context())
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize("row", [
    {"prompt": [SYSTEM, USER]},
    {"prompt": "Hi", "system": "be kind"},
    {"prompt": [USER], "system": "be kind"},
    {"messages": [SYSTEM, USER]},
    {"messages": [SYSTEM, USER, REPLY]},
    {"messages": [USER, REPLY], "system": "be kind", "prompt": None},
    {"messages": json.dumps([USER]), "system": "be kind"},
])  # fmt: skip
def test_every_way_to_write_a_system_prompt_gives_the_same_chat(tmp_path, row):
    (prompt,) = read(tmp_path, {**row, "answer": "42"})
    assert prompt.messages == [SYSTEM, USER] and prompt.fields == {"answer": "42"}


def test_each_row_has_its_own_system_prompt_or_none(tmp_path):
    rows = [{"prompt": "Hi", "system": system} for system in ("be kind", "be brief", "", " ", None)]
    first, second, *others = read(tmp_path, *rows, {"prompt": [USER], "system": None}, {"prompt": "Hi"})
    assert (first.messages[0]["content"], second.messages[0]["content"]) == ("be kind", "be brief")
    # the rows of one table go through one template: an empty cell makes a chat as well, a row without it does not
    assert [prompt.messages for prompt in others] == 5 * [[USER]]
    assert [isinstance(prompt.text, str) for prompt in others] == [False, False, False, False, True]


def test_a_system_prompt_may_be_a_field_too_or_only_that(tmp_path):
    row = {"prompt": "Hi", "system": "be kind"}
    (both,) = read(tmp_path, row, fields=("system",))
    assert both.messages == [SYSTEM, USER] and both.fields == {"system": "be kind"}
    (renamed,) = read(tmp_path, row, columns={"house_rules": "system"})
    assert renamed.text == "Hi" and renamed.fields == {"house_rules": "be kind"}
    (mapped,) = read(tmp_path, {"prompt": "Hi", "persona": "be kind"}, columns={"system": "persona"})
    assert mapped.messages == [SYSTEM, USER] and mapped.fields == {}


def test_a_prompt_column_comes_before_messages(tmp_path):
    (prompt,) = read(tmp_path, {"prompt": "Hi", "messages": [USER, REPLY]})
    assert prompt.text == "Hi" and prompt.fields == {"messages": [USER, REPLY]}


@pytest.mark.parametrize("row", [
    {"prompt": "Hi", "completion": "Ho", "system": "be kind"},
    {"messages": [USER, REPLY], "system": "be kind"},
    {"messages": [SYSTEM, USER, REPLY]},
])  # fmt: skip
def test_feedback_takes_system_prompts_in_the_same_way(tmp_path, row):
    (record,) = Demonstrations(DemonstrationsConfig(path=written(tmp_path / "a.jsonl", row)), Context())
    assert record.prompt.messages == [SYSTEM, USER] and record.response == "Ho" and record.prompt.fields == {}


PARTS = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}


@pytest.mark.parametrize(("row", "words"), [
    ({"prompt": [SYSTEM, USER], "system": "be kind"}, "a system message in the prompt and another in the column `system`; expected one of them; mend the row"),
    ({"prompt": "Hi", "system": 5}, "system is a number; expected text; mend the row"),
    ({"prompt": "Hi", "system": [SYSTEM]}, r"system is a list of 1 \(system\); expected text"),
    ({"prompt": [USER, PARTS]}, r"text.1.content: got a list of 1 parts, expected text; join the texts of the parts \(images and sound are not read\)"),
    ({"prompt": [{"role": "user", "content": None}]}, "text.0.content: Input should be a valid string"),
    ({"prompt": [], "system": "be kind"}, "a prompt must not be empty"),
    ({"prompt": "", "system": "be kind"}, "a prompt must not be empty"),
    ({"messages": []}, "a prompt must not be empty"),
    ({"messages": [REPLY]}, "a prompt must not be empty"),
    ({"messages": "Hi"}, 'messages is "Hi"; expected a list'),
    ({"answer": "42"}, "no column 'prompt', only 'answer'"),
])  # fmt: skip
def test_prompts_that_are_none(tmp_path, row, words):
    with pytest.raises(DataError, match=rf"a.jsonl:2: .*{words}"):
        read(tmp_path, {"prompt": "Hi"}, row)
    assert len(read(tmp_path, {"prompt": "Hi"}, row, on_bad_record="skip")) == 1
