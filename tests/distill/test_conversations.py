"""Conversations: of every kind, the target's own words throughout, with the answers where they say."""

import pytest
import torch
from doubles import answer_all, driven

from fspad_bench.core.loop import Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.distill import conversations as talk
from fspad_bench.distill.conversations import TEMPERATURES, Talk, Talks
from fspad_bench.distill.topics import KINDS, QUESTION, TEXT
from fspad_bench.engine.batch import answer_streams
from fspad_bench.models.chat import Chat, user

QUOTING = {name for name, kind in KINDS.items() if kind.material and not kind.texts}
READING = {name for name, kind in KINDS.items() if kind.texts}


def outcome(target, stream, rows=16):
    return next(answer_streams(target, [stream], rows=rows))


@pytest.fixture
def rows(tiny, short):
    return outcome(tiny, Talks(tiny, seed=(1, 2)).free(60))


def test_all_kinds_and_temperatures_come_up(rows):
    assert {row["kind"] for row in rows} == set(KINDS)
    assert {row["temperature"] for row in rows} == set(TEMPERATURES)
    greedy = sum(row["temperature"] == 0 for row in rows)
    assert 0.35 * len(rows) < greedy < 0.8 * len(rows)


def test_greedy_answers_are_what_the_target_says(tiny, rows):
    checked = 0
    for row in rows:
        if row["temperature"] == 0:
            start, end = row["answers"][-1]
            limit = Limit(end - start, tiny.stop_ids)
            said = generate(tiny, Vanilla(tiny), Sampler(), row["tokens"][:start], limit).tokens
            assert row["tokens"][start:end] == said
            checked += 1
    assert checked > 10


def test_answers_stand_where_the_spans_say(tiny, rows):
    """Behind an assistant's header, and nothing but an end of turn or the row's own end behind them."""
    header = tiny.tokenizer("a:")["input_ids"]
    two_turns = 0
    for row in rows:
        two_turns += len(row["answers"]) > 1
        for start, end in row["answers"]:
            assert row["tokens"][start - 2 : start] == header
            assert 96 not in row["tokens"][start : end - 1]
        assert row["answers"][-1][1] == len(row["tokens"])
    assert two_turns > 3


def test_a_second_turn_stands_on_the_first(tiny, rows):
    row = next(row for row in rows if len(row["answers"]) == 2)
    text = tiny.tokenizer.decode(row["tokens"])
    assert text.count("u:") >= 2
    (_, first), (second, _) = row["answers"]
    assert first < second


def test_material_is_text_of_other_conversations(tiny, rows):
    texts = [
        " ".join(
            tiny.tokenizer.decode(
                row["tokens"][slice(*row["answers"][0])], skip_special_tokens=True
            ).split()
        )
        for row in rows
        if row["kind"] in talk.MATERIAL
    ]
    about = [tiny.tokenizer.decode(row["tokens"]) for row in rows if row["kind"] in QUOTING]
    assert len(about) > 2
    for message in about:
        assert any(text and text in message for text in texts)
        assert TEXT not in message
        assert QUESTION not in message


def test_texts_of_its_own_are_what_the_target_writes_unasked(tiny, short, monkeypatch):
    """They begin as their kind says, stand in no template, and no two conversations share one."""
    asked = []

    def reply(wave):
        asked.append(wave.requests)
        return answer_all(tiny, wave.requests, rows=16, seed=wave.seed)

    rows = driven(Talks(tiny, seed=(1, 2)).free(60), reply)
    reading = [row for row in rows if row["kind"] in READING]
    assert {row["kind"] for row in reading} == READING
    begun = {
        tuple(tiny.tokenizer(text)["input_ids"]) for name in READING for text in KINDS[name].texts
    }
    assert {tuple(request.prompt) for request in asked[0]} <= begun
    told = [tiny.tokenizer.decode(row["tokens"][: row["answers"][0][0]]) for row in reading]
    assert len(set(told)) == len(told)
    for row, message in zip(reading, told, strict=True):
        kind = KINDS[row["kind"]]
        assert TEXT not in message
        assert any(
            " ".join(text.split()).replace("—", "?") in message for text in kind.texts
        )  # not in ASCII


def test_who_has_nothing_to_say_unasked_is_asked_about_nothing(tiny, short, monkeypatch):
    """Its articles would be their openings; all else goes on."""
    begun = {
        tuple(tiny.tokenizer(text)["input_ids"]) for name in READING for text in KINDS[name].texts
    }

    def silent(wave):
        made = answer_all(tiny, wave.requests, rows=16, seed=wave.seed)
        return [
            [96] if tuple(r.prompt) in begun else said
            for r, said in zip(wave.requests, made, strict=True)
        ]

    monkeypatch.setattr(talk, "SHORTEST_TEXT", 12)
    rows = driven(Talks(tiny, seed=(1, 2)).free(60), silent)
    assert {row["kind"] for row in rows} == set(KINDS) - READING


def test_a_question_without_room_is_not_asked(tiny, short, monkeypatch):
    asked = []
    short_of_it = (
        min(len(Chat(tiny.tokenizer, tiny.stop_ids).user_prefix([])), 40)
        + talk.QUESTION_LENGTH
        + 12
    )
    monkeypatch.setattr(type(tiny), "max_length", property(lambda self: short_of_it))
    talks = [Talk("chat", 0.0, opening="x" * count) for count in (5, 12, 13, 60)]
    driven(
        Talks(tiny, seed=(1,)).ask(talks),
        lambda wave: asked.extend(wave.requests) or [[] for _ in wave.requests],
    )
    assert len(asked) == 2
    assert all(len(request.prompt) + request.length <= short_of_it for request in asked)


def test_over_a_text_the_user_asks_in_words_of_its_own(tiny, rows):
    endings = {
        name: [opening.rpartition(TEXT)[2] for opening in KINDS[name].openings] for name in READING
    }
    for row in (row for row in rows if row["kind"] in READING):
        message = tiny.tokenizer.decode(row["tokens"][: row["answers"][0][0]]).removesuffix(
            "<|end|>a:"
        )
        whole = any(message.endswith(ending) for ending in endings[row["kind"]])
        assert whole != KINDS[row["kind"]].asks


def test_nobody_who_learns_quotes_a_conversation_that_is_held_out(tiny, short, monkeypatch):
    monkeypatch.setattr(talk, "HELD_OUT_EVERY", 4)
    rows = outcome(tiny, Talks(tiny, seed=(1, 2)).free(60))
    quotes, sides = 0, {True: [], False: []}
    for row in rows:
        if row["kind"] in talk.MATERIAL:
            words = tiny.tokenizer.decode(
                row["tokens"][slice(*row["answers"][0])], skip_special_tokens=True
            )
            sides[row["held_out"]].append(" ".join(words.split()))
    for row in (row for row in rows if row["kind"] in QUOTING):
        message = tiny.tokenizer.decode(row["tokens"])
        assert any(text and text in message for text in sides[row["held_out"]])
        others = set(sides[not row["held_out"]]) - set(sides[row["held_out"]])
        assert not any(len(text) > 12 and text in message for text in others)
        quotes += row["held_out"]
    assert quotes > 0


def test_the_seed_decides_and_the_rows_do_not(tiny, short):
    def made(seed, rows):
        return outcome(tiny, Talks(tiny, seed=seed).free(12), rows=rows)

    assert made((1, 0), 3) == made((1, 0), 40)
    assert made((1, 0), 3) != made((1, 1), 3)


def test_given_questions_are_answered_anew_turn_by_turn(tiny, short):
    scripts = [
        [
            {"role": "system", "content": "be brief"},
            user("Hi"),
            {"role": "assistant", "content": "No."},
            user("Why"),
        ],
        [user("One")],
    ]
    rows = outcome(tiny, Talks(tiny, seed=(1,)).again(scripts), rows=4)
    texts = [tiny.tokenizer.decode(row["tokens"]) for row in rows]
    assert [len(row["answers"]) for row in rows] == [2, 1]
    assert texts[0].startswith("s:be brief<|end|>u:Hi<|end|>a:")
    assert "No." not in texts[0]
    assert "u:Why<|end|>a:" in texts[0]
    assert not any("held_out" in row for row in rows)  # which ones, training decides


def test_what_does_not_fit_the_context_is_left_out(tiny, short, monkeypatch):
    monkeypatch.setattr(type(tiny), "max_length", property(lambda self: 300))
    rows = outcome(tiny, Talks(tiny, seed=(1,)).again([[user("x" * 60)], [user("x")]]), rows=4)
    assert len(rows) == 1


def test_an_empty_answer_ends_a_conversation(tiny, short):
    def silent(wave):
        return [[96] for _ in wave.requests]

    assert driven(Talks(tiny, seed=(1,)).free(10), silent) == []
    assert driven(Talks(tiny, seed=(1,)).again([[user("a"), user("b")]]), silent) == []


def test_openings_are_what_the_user_begins_with(tiny, short):
    rows = outcome(tiny, Talks(tiny, seed=(5,)).free(40))
    prefix = Chat(tiny.tokenizer, tiny.stop_ids).user_prefix([])
    for row in rows:
        if not KINDS[row["kind"]].material:
            said = tiny.tokenizer.decode(row["tokens"][len(prefix) :])
            openings = [
                opening.strip().replace("ü", "?") for opening in KINDS[row["kind"]].openings
            ]  # not in ASCII
            assert any(said.startswith(opening) for opening in openings)


def test_shares_sum_to_one():
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1)
    assert torch.tensor([kind.share for kind in KINDS.values()]).min() > 0
