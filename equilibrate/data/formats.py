"""Formats of data sets: each turns a row into a `Record`, and is recognised by columns and values.

A new one is a function here and its line in `FORMATS`; what stands higher is asked first.
"""

from __future__ import annotations

from equilibrate.data.evaluation_sets import EVALUATION_SETS
from equilibrate.data.records import (
    PROMPTS,
    Format,
    Kind,
    OfNoUse,
    Record,
    Row,
    answered,
    asked,
    checked,
    conversation,
    first_of,
    flag,
    has,
    is_transcript,
    label_of,
    labelled,
    number,
    parsed,
    prompt_of,
    response_of,
    text,
    texts,
    transcript,
    with_system,
)
from equilibrate.data.rows import prompt_key, shown
from equilibrate.errors import DataError
from equilibrate.types import Conversation, Message


def _pku(row: Row) -> Record:
    responses = (text(row, "response_0"), text(row, "response_1"))
    preferred = number(row, "preferred_response_id")
    if preferred is None and has(row, "chosen"):
        if row["chosen"] not in responses:
            raise DataError(f"chosen ({shown(row['chosen'])}) must be one of the two responses")
        preferred = responses.index(row["chosen"])
    return Record(
        kind=Kind.PAIR,
        messages=prompt_of(row),
        responses=responses,
        is_safe=(flag(row, "is_response_0_safe"), flag(row, "is_response_1_safe")),
        better=number(row, "better_response_id"),
        safer=number(row, "safer_response_id"),
        preferred=preferred,
        label=label_of(row, "category"),
    )


def _compared(row: Row, messages: Conversation, chosen: str, rejected: str) -> Record:
    return Record(
        kind=Kind.PAIR,
        messages=messages,
        responses=(chosen, rejected),
        is_safe=(flag(row, "is_chosen_safe"), flag(row, "is_rejected_safe")),
        better=0,
        label=label_of(row, "category"),
    )


def _hh(row: Row) -> Record:
    sides = []
    for name in ("chosen", "rejected"):
        if not is_transcript(row.get(name)):
            raise DataError(
                f"{name} ({shown(row.get(name))}) must be turns of Human: and Assistant:"
            )
        sides.append(answered(transcript(row[name], name), name))
    (messages, chosen), (other, rejected) = sides
    if messages != other:
        raise DataError("chosen and rejected must be alike up to their last answers")
    return _compared(row, messages, chosen, rejected)


def _preference(row: Row) -> Record:
    (before, chosen), (other, rejected) = (
        response_of(row, name) for name in ("chosen", "rejected")
    )
    if before != other:
        raise DataError("chosen and rejected must be alike up to their last answers")
    prompt = _input(row) if set(PROMPTS) & set(row) else ()
    if not before:
        messages = prompt or prompt_of(row)
    else:
        messages = with_system(row, before)
        if prompt and prompt_key(prompt) not in prompt_key(messages):
            raise DataError(
                f"prompt ({shown(prompt[-1].content)}) must be what chosen answers "
                f"({shown(before[-1].content)})"
            )
    return _compared(row, messages, chosen, rejected)


def _ultrafeedback(row: Row) -> Record:
    if not isinstance(row.get("chosen"), (list, tuple)):
        raise DataError(f"chosen ({shown(row.get('chosen'))}) must be a list of turns")
    return _preference(row)


def _llama_factory(row: Row) -> Record:
    turns = asked(conversation(row.get("conversations"), "conversations"), "conversations")
    chosen, rejected = (response_of(row, name)[1] for name in ("chosen", "rejected"))
    return _compared(row, with_system(row, turns), chosen, rejected)


_VERDICTS = {"model_a": 0, "model_b": 1, "tie": None, "tie (bothbad)": None}


def _winner(row: Row) -> int | None:
    if "winner" in row:
        if row["winner"] not in _VERDICTS:
            raise DataError(
                f"winner ({shown(row['winner'])}) must be one of {', '.join(_VERDICTS)}"
            )
        return _VERDICTS[row["winner"]]
    won = [flag(row, name, needed=True) for name in ("winner_model_a", "winner_model_b")]
    if sum(map(bool, (*won, flag(row, "winner_tie")))) != 1:
        raise DataError("one of winner_model_a, winner_model_b and winner_tie must be 1")
    return won.index(True) if True in won else None


def _arena(row: Row) -> Record:
    if "conversation_a" in row:
        ways = [conversation(row.get(f"conversation_{side}"), "conversation") for side in "ab"]
        asks = [turn.content for turn in ways[0] if turn.role == "user"]
        answers = [[answered(way, "conversation")[1]] for way in ways]
    else:
        asks = texts(row, "prompt")
        answers = [texts(row, name) for name in ("response_a", "response_b")]
    better = _winner(row)
    if len(asks) != 1:
        raise OfNoUse("several turns, after which the two models no longer answer the same")
    return Record(
        kind=Kind.PAIR,
        messages=(Message(role="user", content=asks[0]),),
        responses=(answers[0][-1], answers[1][-1]),
        is_safe=(None, None),
        better=better,
    )


def _unpaired(row: Row) -> Record:
    return labelled(row, "completion", is_good=flag(row, "label", needed=True))


def _beavertails(row: Row) -> Record:
    harms = row.get("category", "")
    if isinstance(harms, str) and harms.lstrip().startswith("{"):
        harms = parsed(harms, "category")
    if isinstance(harms, dict):
        harms = ", ".join(name for name, found in harms.items() if found)
    return labelled(
        row,
        first_of(row, ("response", "completion")),
        is_safe=(flag(row, "is_safe", needed=True),),
        label=harms if isinstance(harms, str) else "",
    )


def _turns(row: Row, name: str) -> Record:
    turns = with_system(row, conversation(row.get(name), name))
    if turns and turns[-1].role == "assistant":
        messages, answer = answered(turns, name)
        return Record(kind=Kind.ANSWER, messages=asked(messages, name), responses=(answer,),
                      is_safe=(None,), label=label_of(row, "category"))  # fmt: skip
    return Record(kind=Kind.PROMPT, messages=asked(turns, name), label=label_of(row, "category"))


def _messages(row: Row) -> Record:
    return _turns(row, "messages")


def _sharegpt(row: Row) -> Record:
    return _turns(row, "conversations")


def _wildchat(row: Row) -> Record:
    return _turns(row, "conversation")


def _input(row: Row) -> Conversation:
    """An instruction, behind a blank line what it is about, and before it earlier turns."""
    turns = prompt_of(row)
    about = next((name for name in ("input", "context") if has(row, name)), "")
    if about:
        whole = f"{turns[-1].content}\n\n{text(row, about)}"
        turns = (*turns[:-1], Message(role="user", content=whole))
    if not has(row, "history"):
        return turns
    history = row["history"]
    history = parsed(history, "history") if isinstance(history, str) else history
    if not isinstance(history, list) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history
    ):
        raise DataError(f"history ({shown(history)}) must be a list of questions with answers")
    earlier = [
        Message(role="assistant" if place else "user", content=checked(said, "history"))
        for pair in history
        for place, said in enumerate(pair)
    ]
    return (*turns[:-1], *earlier, turns[-1])


def _answer(row: Row, name: str, messages: Conversation) -> Record:
    before, answer = response_of(row, name)
    return Record(
        kind=Kind.ANSWER,
        messages=before or messages,
        responses=(answer,),
        is_safe=(None,),
        label=label_of(row, "category"),
    )


def _alpaca(row: Row) -> Record:
    return _answer(row, "output", _input(row))


def _dolly(row: Row) -> Record:
    return _answer(row, "response", _input(row))


def _answers(row: Row) -> Record:
    # An empty prompt is that of plain text, which stands in `response`.
    messages = prompt_of(row, may_be_empty=True)
    return _answer(row, first_of(row, ("response", "completion")), messages)


def _questions(row: Row) -> Record:
    return Record(
        kind=Kind.PROMPT, messages=prompt_of(row, "question"), label=label_of(row, "topic")
    )


_ANSWER_LIKE = ("response", "answer", "completion", "output", "chosen", "rejected", "reply",
                "solution", "target")  # fmt: skip


def _prompt(row: Row) -> Record:
    left = [name for name in row if name.lower().startswith(_ANSWER_LIKE) and has(row, name)]
    if left:
        raise DataError(
            f"{left[0]} ({shown(row[left[0]])}) looks like an answer, and its columns are of no "
            "known format; name them, as in data.columns: "
            f"{{prompt: {first_of(row, PROMPTS)}, response: {left[0]}}}"
        )
    return Record(kind=Kind.PROMPT, messages=prompt_of(row), label=label_of(row, "category", "cat"))


FORMATS: dict[str, Format] = {
    "pku": Format(
        about="PKU-SafeRLHF, both generations",
        needs=("prompt", "response_0", "response_1"),
        read=_pku,
    ),
    "hh": Format(
        about="HH-RLHF transcripts", needs=("chosen", "rejected"), read=_hh, by_values=True
    ),
    "ultrafeedback": Format(
        about="UltraFeedback, binarized",
        needs=("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
        read=_ultrafeedback,
        by_values=True,
    ),
    "arena": Format(
        about="pairs of a chatbot arena",
        needs=("response_a|conversation_a", "response_b|conversation_b", "winner_model_a|winner"),
        read=_arena,
    ),
    "llama_factory": Format(
        about="conversations with chosen and rejected (LLaMA-Factory)",
        needs=("conversations", "chosen", "rejected"),
        read=_llama_factory,
    ),
    "preference": Format(
        about="pairs, plain or as conversations (TRL), also under system prompts",
        needs=("chosen", "rejected"),
        read=_preference,
    ),
    "unpaired": Format(
        about="single answers, wanted or not (TRL)",
        needs=("prompt", "completion", "label"),
        read=_unpaired,
    ),
    "beavertails": Format(
        about="single answers, safe or not (BeaverTails)",
        needs=("prompt", "response|completion", "is_safe"),
        read=_beavertails,
    ),
    **EVALUATION_SETS,
    "messages": Format(about="conversations", needs=("messages",), read=_messages),
    "sharegpt": Format(about="conversations (ShareGPT)", needs=("conversations",), read=_sharegpt),
    "wildchat": Format(about="conversations (WildChat)", needs=("conversation",), read=_wildchat),
    "alpaca": Format(
        about="instructions and outputs (Alpaca)", needs=("instruction", "output"), read=_alpaca
    ),
    "dolly": Format(
        about="instructions, contexts and responses (Dolly)",
        needs=("instruction", "context", "response"),
        read=_dolly,
    ),
    "answers": Format(
        about="prompts and answers (TRL)",
        needs=("prompt|instruction|question", "response|completion"),
        read=_answers,
    ),
    "questions": Format(
        about="questions by topic, from one JSON object",
        needs=("topic", "question"),
        read=_questions,
    ),
    "prompts": Format(about="prompts", needs=("prompt|instruction|question",), read=_prompt),
}
