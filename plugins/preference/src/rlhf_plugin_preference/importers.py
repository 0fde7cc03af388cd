"""Comparisons in the forms that public data sets and annotation tools write them.

Which form a row has is read off its columns (`IMPORTERS`). Everything a form has no use for stays out of the record;
what rewards and metrics may want (language, models, the title of a post) goes along as fields of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rlhf_core.interfaces import Row
from rlhf_core.records import Comparison

Importer = Callable[[Row], Iterator[Comparison]]


def openai(row: Row) -> Iterator[Comparison]:
    """OpenAI's summarize-from-feedback comparisons: ``info, summaries[{text, policy, note}], choice, worker``.

    The prompt is the post or article as Stiennon et al. (2020) show it, open for a summary.
    """
    info, summaries, choice = row.take("info"), row.take_list("summaries"), row.take("choice")
    if choice not in range(len(summaries)):
        raise row.bad(f"choice is {choice!r}", f"the place of one of {len(summaries)} summaries, from 0")
    named = [("SUBREDDIT", f"r/{info['subreddit']}" if info.get("subreddit") else None), ("TITLE", info.get("title")),
             ("POST", info.get("post")), ("ARTICLE", info.get("article"))]  # fmt: skip
    prompt = "".join(f"{name}: {text}\n\n" for name, text in named if text) + "TL;DR:"
    fields = {"id": info.get("id"), "policies": [s.get("policy") for s in summaries], "split": row.data.get("split")}
    notes = "; ".join(str(s["note"]) for s in summaries if s.get("note"))
    yield _comparison(row, prompt, [s["text"] for s in summaries], [int(i != choice) for i in range(len(summaries))],
                      fields, annotator=row.data.get("worker"), comment=notes or None)  # fmt: skip


def ultrafeedback(row: Row) -> Iterator[Comparison]:
    """UltraFeedback, binarized: ``chosen`` and ``rejected`` as whole chats, ``score_chosen``, ``score_rejected``.

    The margin is the difference of the scores; equal scores are a tie.
    """
    chosen, rejected = row.take_list("chosen"), row.take_list("rejected")
    prompt = chosen[:-1] or row.take("prompt")
    margin = float(row.take("score_chosen")) - float(row.take("score_rejected"))
    ranks = [0, int(margin != 0)] if margin >= 0 else [1, 0]
    fields = {"id": row.data.get("prompt_id"), "source": row.data.get("source")}
    texts = [chosen[-1]["content"], rejected[-1]["content"]]
    yield _comparison(row, prompt, texts, ranks, fields, margin=abs(margin) or None)


def openassistant(row: Row) -> Iterator[Comparison]:
    """OpenAssistant message trees: wherever several assistant replies were ranked (0 is best), a ranking of them."""

    def walk(node: dict[str, Any], before: list[dict[str, str]]) -> Iterator[Comparison]:
        role = {"prompter": "user", "assistant": "assistant"}.get(str(node.get("role")))
        if role is None:
            raise row.bad(f"a message of role {node.get('role')!r}", "prompter or assistant")
        path = [*before, {"role": role, "content": node["text"]}]
        replies = [reply for reply in node.get("replies") or () if not reply.get("deleted")]
        ranked = {r["text"]: r["rank"] for r in replies if r.get("role") == "assistant" and r.get("rank") is not None}
        if len(ranked) > 1:
            fields = {"id": node.get("message_id"), "lang": node.get("lang")}
            yield _comparison(row, path, list(ranked), list(ranked.values()), fields)
        for reply in replies:
            yield from walk(reply, path)

    yield from walk(row.take("prompt"), [])


def arena(row: Row) -> Iterator[Comparison]:
    """Votes of a chat arena: ``conversation_a``, ``conversation_b``, ``winner``: model_a, model_b, tie, tie (bothbad).

    The conversations must agree up to their last reply; of those that parted earlier nobody compared two replies to one
    prompt.
    """
    a, b = row.take_list("conversation_a"), row.take_list("conversation_b")
    turns = [[{"role": m["role"], "content": m["content"]} for m in side] for side in (a, b)]
    if not turns[0] or not turns[1] or turns[0][:-1] != turns[1][:-1]:
        raise row.bad("conversations that part before their last replies", "two replies to one conversation")
    ranks = {"model_a": [0, 1], "model_b": [1, 0]}
    winner = str(row.take("winner"))
    if winner not in ranks and not winner.startswith("tie"):
        raise row.bad(f"winner {winner!r}", "model_a, model_b, tie or tie (bothbad)")
    fields = {"id": row.data.get("question_id"), "models": [row.data.get("model_a"), row.data.get("model_b")],
              "language": row.data.get("language")}  # fmt: skip
    both_bad = "both bad" if "bad" in winner else None
    yield _comparison(row, turns[0][:-1], [turns[0][-1]["content"], turns[1][-1]["content"]], ranks.get(winner, [0, 0]),
                      fields, annotator=row.data.get("judge"), comment=both_bad,
                      time=row.data.get("tstamp"))  # fmt: skip


LEFT = ("left", "answer1", "response1", "response_1", "text1", "option1", "a")
RIGHT = ("right", "answer2", "response2", "response_2", "text2", "option2", "b")
PROMPT = ("prompt", "question", "instruction", "text", "input")


def label_studio(row: Row) -> Iterator[Comparison]:
    """A Label Studio export: one comparison per annotation that was not cancelled, of its pairwise choice or ranker.

    Of ``data`` the prompt and the two answers are found by their usual names (`PROMPT`, `LEFT`, `RIGHT`); the items of
    a ranker are ``data.items``, ranked by their ids.
    """
    data = row.take("data")
    prompt = _one_of(row, data, PROMPT)
    for annotation in row.take_list("annotations"):
        if annotation.get("was_cancelled"):
            continue
        worker = annotation.get("completed_by")
        about = {"annotator": worker.get("email", worker.get("id")) if isinstance(worker, dict) else worker,
                 "time": annotation.get("created_at")}  # fmt: skip
        fields = {"lead_time": annotation.get("lead_time"), "gold": annotation.get("ground_truth") or None}
        for result in annotation.get("result") or ():
            value = result.get("value") or {}
            choice = value.get("selected") or (value.get("choices") or [None])[0]
            if value.get("ranker") is not None:
                items = {str(item["id"]): _text_of(item) for item in _one_of(row, data, ("items",))}
                order = _ranked_ids(value["ranker"])
                if unknown := [id for id in order if id not in items]:
                    raise row.bad(f"a ranking of the unknown item {unknown[0]!r}", f"one of {', '.join(items)}")
                texts = [items[id] for id in order]
                yield _comparison(row, prompt, texts, list(range(len(texts))), fields, **about)
            elif result.get("type") == "pairwise" or choice in ("left", "right", "tie", "equal"):
                texts = [_one_of(row, data, LEFT), _one_of(row, data, RIGHT)]
                ranks = {"left": [0, 1], "right": [1, 0]}.get(str(choice), [0, 0])
                yield _comparison(row, prompt, texts, ranks, fields, **about)


def argilla(row: Row) -> Iterator[Comparison]:
    """An Argilla export, flat: ``QUESTION.responses``, ``.users``, ``.status``; one comparison per submitted answer.

    The responses are the columns ``response-1``, ``response_1``, ``response1`` and so on. An answer names the best of
    them, or "tie", or ranks them: ``[{"value": "response-1", "rank": 1}, ...]``.
    """
    name = next(column.removesuffix(".responses") for column in row.data if column.endswith(".responses"))
    plain = {_plain(column): text for column, text in row.data.items() if isinstance(text, str)}
    texts = {column: text for column, text in plain.items() if column.startswith("response") and column[-1].isdigit()}
    if len(texts) < 2:
        raise row.bad(f"the columns {', '.join(row.data)}", "at least response-1 and response-2")
    prompt = _one_of(row, row.data, PROMPT)
    answers = row.data[f"{name}.responses"] or []
    users = row.data.get(f"{name}.responses.users") or [None] * len(answers)
    status = row.data.get(f"{name}.responses.status") or ["submitted"] * len(answers)
    for answer, user, state in zip(answers, users, status, strict=True):
        if state != "submitted" or answer is None:
            continue
        if isinstance(answer, list):
            places = {_plain(item["value"]): int(item["rank"]) for item in answer}
        else:
            best = _plain(answer)
            if best not in texts and best != "tie":
                raise row.bad(f"the answer {answer!r}", f"tie, or one of {', '.join(texts)}")
            places = {column: int(best not in (column, "tie")) for column in texts}
        if set(places) != set(texts):
            raise row.bad(f"a ranking of {', '.join(places)}", f"one of all of {', '.join(texts)}")
        ranks = [places[column] - min(places.values()) for column in texts]
        # who names the best of three says nothing of the other two
        judged = isinstance(answer, list) or len(texts) == 2 or best == "tie"
        yield _comparison(row, prompt, list(texts.values()), ranks, {}, annotator=user, ties_judged=judged)


IMPORTERS: dict[tuple[str, ...], Importer] = {
    ("summaries", "choice"): openai,
    ("chosen", "score_chosen"): ultrafeedback,
    ("message_tree_id", "prompt"): openassistant,
    ("conversation_a", "conversation_b"): arena,
    ("data", "annotations"): label_studio,
    (".responses",): argilla,
}
"""What tells a form: columns it has, or how one of them ends -> what reads it."""


def importer(row: Row) -> Importer | None:
    """What reads a row like this one, or None if it is in none of these forms."""
    for columns, read in IMPORTERS.items():
        if all(c in row.data or (c[0] == "." and any(name.endswith(c) for name in row.data)) for c in columns):
            return read
    return None


def _comparison(
    row: Row, prompt: Any, texts: list[str], ranks: list[int], fields: dict[str, Any], **about: Any
) -> Comparison:
    about = {name: value for name, value in about.items() if value is not None}
    if "annotator" in about:
        about["annotator"] = str(about["annotator"])
    fields = {name: value for name, value in fields.items() if value is not None}
    return Comparison(prompt={"text": prompt, "fields": fields}, responses=tuple(texts), ranks=tuple(ranks), **about)


def _one_of(row: Row, data: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if data.get(name) is not None:
            return data[name]
    raise row.bad(f"only {', '.join(data) or 'nothing'}", f"one of {', '.join(names)}")


def _text_of(item: dict[str, Any]) -> str:
    return str(next((item[name] for name in ("text", "body", "html", "title") if item.get(name)), ""))


def _ranked_ids(ranker: Any) -> list[str]:
    """Ids of a ranker's items, best first: a list, or an object whose (first) bucket is one."""
    if isinstance(ranker, dict):
        ranker = next(iter(ranker.values()), [])
    return [str(id) for id in ranker]


def _plain(name: str) -> str:
    return str(name).lower().replace("-", "").replace("_", "")
