"""Generated conversations are the target's own text throughout, with exact answer spans."""

import pytest
from doubles import answer_all, driven

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.vanilla import Vanilla
from fspad_bench.distill import conversations
from fspad_bench.distill.conversations import TEMPERATURES, ConversationGenerator, Dialogue
from fspad_bench.distill.topics import KINDS, MATERIAL, QUESTION, TEXT
from fspad_bench.engine.batch import answer_streams
from fspad_bench.models.chat import Chat, user

QUOTING = {name for name, kind in KINDS.items() if kind.material and not kind.texts}
READING = {name for name, kind in KINDS.items() if kind.texts}


def generator(target, *seed):
    return ConversationGenerator(target, seed=seed)


def result(target, stream, slots=16):
    return next(answer_streams(target, [stream], slots=slots))


def text_of(target, tokens):
    return target.tokenizer.decode(tokens)


def first_message(target, row):
    return text_of(target, row["tokens"][: row["answers"][0][0]])


def first_answer(target, row):
    tokens = row["tokens"][slice(*row["answers"][0])]
    return " ".join(target.tokenizer.decode(tokens, skip_special_tokens=True).split())


@pytest.fixture(scope="module")
def rows(tiny, shorten):
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        return result(tiny, generator(tiny, 1, 2).generate(60))


@pytest.fixture
def beginnings(tiny):
    """The prompts after which the target writes texts outside the template."""
    texts = [text for name in READING for text in KINDS[name].texts]
    return {tuple(tiny.tokenizer(text)["input_ids"]) for text in texts}


def test_all_kinds_and_temperatures_occur(rows):
    assert {row["kind"] for row in rows} == set(KINDS)
    assert {row["temperature"] for row in rows} == set(TEMPERATURES)
    greedy = sum(row["temperature"] == 0 for row in rows)
    assert 0.35 * len(rows) < greedy < 0.8 * len(rows)


def test_greedy_answers_equal_vanilla(tiny, rows):
    checked = 0
    for row in rows:
        if row["temperature"] == 0:
            start, end = row["answers"][-1]
            limit = Limit(end - start, tiny.stop_ids)
            prompt = row["tokens"][:start]
            generation = generate(tiny, Vanilla(tiny), Sampler(), prompt, limit)
            assert row["tokens"][start:end] == generation.tokens
            checked += 1
    assert checked > 10


def test_spans_follow_the_assistants_header_and_end_with_the_turn(tiny, rows):
    header = tiny.tokenizer("a:")["input_ids"]
    two_turns = 0
    for row in rows:
        two_turns += len(row["answers"]) > 1
        for start, end in row["answers"]:
            assert row["tokens"][start - 2 : start] == header
            assert 96 not in row["tokens"][start : end - 1]
        assert row["answers"][-1][1] == len(row["tokens"])
    assert two_turns > 3


def test_a_second_turn_follows_the_first(tiny, rows):
    row = next(row for row in rows if len(row["answers"]) == 2)
    (_, first_end), (second_start, _) = row["answers"]
    assert text_of(tiny, row["tokens"]).count("u:") >= 2
    assert first_end < second_start


def test_quoted_texts_are_answers_of_other_conversations(tiny, rows):
    answers = [first_answer(tiny, row) for row in rows if row["kind"] in MATERIAL]
    messages = [text_of(tiny, row["tokens"]) for row in rows if row["kind"] in QUOTING]
    assert len(messages) > 2
    for message in messages:
        assert any(answer and answer in message for answer in answers)
        assert TEXT not in message
        assert QUESTION not in message


def test_texts_for_reading_are_written_outside_the_template(tiny, short, beginnings):
    """They begin as their kind says, and no two conversations share one."""
    waves = []

    def reply(wave):
        waves.append(wave.requests)
        return answer_all(tiny, wave.requests, slots=16, seed=wave.seed)

    rows = driven(generator(tiny, 1, 2).generate(60), reply)
    reading = [row for row in rows if row["kind"] in READING]
    assert {row["kind"] for row in reading} == READING
    assert {tuple(request.prompt) for request in waves[0]} <= beginnings
    messages = [first_message(tiny, row) for row in reading]
    assert len(set(messages)) == len(messages)
    for row, message in zip(reading, messages, strict=True):
        assert TEXT not in message
        # the tiny tokenizer knows ASCII only
        texts = [" ".join(text.split()).replace("—", "?") for text in KINDS[row["kind"]].texts]
        assert any(text in message for text in texts)


def test_a_target_that_writes_nothing_unasked_is_not_asked_about_it(
    tiny, short, beginnings, monkeypatch
):
    """Its articles would consist of their openings; all other kinds go on."""

    def silent(wave):
        answers = answer_all(tiny, wave.requests, slots=16, seed=wave.seed)
        return [
            [96] if tuple(request.prompt) in beginnings else answer
            for request, answer in zip(wave.requests, answers, strict=True)
        ]

    monkeypatch.setattr(conversations, "SHORTEST_TEXT", 12)
    rows = driven(generator(tiny, 1, 2).generate(60), silent)
    assert {row["kind"] for row in rows} == set(KINDS) - READING


def test_a_question_without_room_is_not_generated(tiny, short, monkeypatch):
    prefix = len(Chat(tiny.tokenizer, tiny.stop_ids).user_prefix([]))
    max_length = min(prefix, 40) + conversations.QUESTION_LENGTH + 12
    monkeypatch.setattr(type(tiny), "max_length", property(lambda self: max_length))
    requests = []

    def reply(wave):
        requests.extend(wave.requests)
        return [[] for _ in wave.requests]

    dialogues = [Dialogue("chat", 0.0, opening="x" * count) for count in (5, 12, 13, 60)]
    driven(generator(tiny, 1).ask(dialogues), reply)
    assert len(requests) == 2
    assert all(len(request.prompt) + request.length <= max_length for request in requests)


def test_only_kinds_that_ask_complete_the_message_over_a_text(tiny, rows):
    reading = [row for row in rows if row["kind"] in READING]
    for row in reading:
        kind = KINDS[row["kind"]]
        message = first_message(tiny, row).removesuffix("<|end|>a:")
        endings = [opening.rpartition(TEXT)[2] for opening in kind.openings]
        is_whole = any(message.endswith(ending) for ending in endings)
        assert is_whole != kind.asks


def test_learned_conversations_quote_no_held_out_ones(tiny, short, monkeypatch):
    monkeypatch.setattr(conversations, "HELD_OUT_EVERY", 4)
    rows = result(tiny, generator(tiny, 1, 2).generate(60))
    answers = {True: [], False: []}
    for row in rows:
        if row["kind"] in MATERIAL:
            answers[row["held_out"]].append(first_answer(tiny, row))
    held_out_quotes = 0
    for row in (row for row in rows if row["kind"] in QUOTING):
        message = text_of(tiny, row["tokens"])
        own = answers[row["held_out"]]
        others = set(answers[not row["held_out"]]) - set(own)
        assert any(text and text in message for text in own)
        assert not any(len(text) > 12 and text in message for text in others)
        held_out_quotes += row["held_out"]
    assert held_out_quotes > 0


def test_rows_follow_from_the_seed_and_not_from_the_slots(tiny, short):
    def generated(seed, slots):
        return result(tiny, generator(tiny, *seed).generate(12), slots=slots)

    assert generated((1, 0), 3) == generated((1, 0), 40)
    assert generated((1, 0), 3) != generated((1, 1), 3)


def test_given_questions_are_answered_anew_turn_by_turn(tiny, short):
    system = {"role": "system", "content": "be brief"}
    no = {"role": "assistant", "content": "No."}
    scripts = [[system, user("Hi"), no, user("Why")], [user("One")]]
    rows = result(tiny, generator(tiny, 1).regenerate(scripts), slots=4)
    texts = [text_of(tiny, row["tokens"]) for row in rows]
    assert [len(row["answers"]) for row in rows] == [2, 1]
    assert texts[0].startswith("s:be brief<|end|>u:Hi<|end|>a:")
    assert "No." not in texts[0]
    assert "u:Why<|end|>a:" in texts[0]
    # training decides which ones are held out
    assert not any("held_out" in row for row in rows)


def test_a_conversation_that_does_not_fit_the_context_is_left_out(tiny, short, monkeypatch):
    monkeypatch.setattr(type(tiny), "max_length", property(lambda self: 300))
    scripts = [[user("x" * 60)], [user("x")]]
    assert len(result(tiny, generator(tiny, 1).regenerate(scripts), slots=4)) == 1


def test_an_empty_answer_ends_a_conversation(tiny, short):
    def silent(wave):
        return [[96] for _ in wave.requests]

    assert driven(generator(tiny, 1).generate(10), silent) == []
    assert driven(generator(tiny, 1).regenerate([[user("a"), user("b")]]), silent) == []


def test_messages_begin_with_an_opening_of_their_kind(tiny, short):
    rows = result(tiny, generator(tiny, 5).generate(40))
    prefix = Chat(tiny.tokenizer, tiny.stop_ids).user_prefix([])
    for row in rows:
        kind = KINDS[row["kind"]]
        if not kind.material:
            message = text_of(tiny, row["tokens"][len(prefix) :])
            # the tiny tokenizer knows ASCII only
            openings = [opening.strip().replace("ü", "?") for opening in kind.openings]
            assert any(message.startswith(opening) for opening in openings)


def test_shares_sum_to_one():
    shares = [kind.share for kind in KINDS.values()]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
