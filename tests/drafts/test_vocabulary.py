"""A draft can say its head's tokens and those of its prompt."""

import pytest
import torch

from fspad_bench.core.loop import Context, Limit, generate
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle import Eagle
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.errors import BenchError

USUAL, SIZE = torch.tensor([1, 4, 5]), 9


def test_the_tokens_of_a_text_join():
    sayable, alone = (Vocabulary(USUAL, SIZE, prompted=prompted) for prompted in (True, False))
    assert sayable.joining([8, 4, 0, 0, 8, 5]) == {0, 8}
    assert alone.joining([8, 0]) == set()
    text = torch.tensor([[8, 4, 0], [0, 8, 5]])
    assert sayable.of(text).tolist() == [1, 4, 5, 0, 8]
    assert alone.of(text).tolist() == [1, 4, 5]


def test_an_index_is_the_inverse_of_a_vocabulary():
    index = Vocabulary(USUAL, SIZE, prompted=True).index(torch.cat([USUAL, torch.tensor([0, 8])]))
    assert index.tolist() == [3, 0, -1, -1, 1, 2, -1, -1, 4]


@pytest.mark.parametrize("prompted", [True, False])
def test_what_comes_only_later_is_not_reached(prompted):
    ids = torch.tensor([[2, 3, 8, 1], [7, 1, 1, 6]])
    rows = torch.tensor([[True, True, False], [True, True, False]])
    choice = torch.tensor(
        [4, 6, 7, 6]
    )  # usual; another row's; the first token; what the last row is followed by
    found = Vocabulary(USUAL, SIZE, prompted=prompted).reached(choice, ids, rows)
    assert found.tolist() == [True, False, prompted, False]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("options", [{"tree": "fixed"}, {"verify": "rejection"}], ids=str)
def test_a_prompts_tokens_are_drafted_while_it_is_answered(tiny, heads, options, temperature):
    """A head without every third token: such a token can be in a tree if, and only if, the prompt has it."""
    drafter, drafted = Eagle(tiny, head=str(heads["eagle"]), **options), set()
    propose = drafter.propose
    drafter.propose = lambda *told: keep(drafted, propose(*told))
    for prompt in ([1, 3, 2, 6, 3], [4, 5, 12]):
        drafted.clear()
        made = generate(tiny, drafter, Sampler(temperature), prompt, Limit(60))
        heard = {token for token in [*prompt, *made.tokens] if not token % 3}
        joined = [token for token in drafter.vocabulary.tolist() if not token % 3]
        assert {token for token in prompt if not token % 3} <= set(joined) <= heard
        assert joined == sorted(joined)
        assert {token for token in drafted if not token % 3} <= heard
    assert drafted


def keep(found, tree):
    found.update(tree.tokens[1:])
    return tree


def test_the_joined_rows_are_the_targets(tiny, heads):
    drafter = Eagle(tiny, head=str(heads["eagle"]))
    prompt = [1, 3, 2, 6]
    scores = tiny.prefill(prompt, 8)
    drafter.begin(Context([*prompt, 9], 4, Sampler()), scores)
    out = drafter.absorb()
    whole = torch.nn.functional.linear(out.h_logit, tiny.lm_head.weight).float()
    torch.testing.assert_close(drafter.logits(out), whole[:, drafter.vocabulary])
    assert drafter.vocabulary[-3:].tolist() == [3, 6, 9]


def test_it_can_be_the_heads_alone(tiny, heads):
    drafter = Eagle(tiny, head=str(heads["eagle"]), vocabulary="head")
    generate(tiny, drafter, Sampler(), [3, 6, 9], Limit(5))
    assert drafter.vocabulary.tolist() == [i for i in range(97) if i % 3]
    with pytest.raises(BenchError, match="unknown vocabulary 'hed'"):
        Eagle(tiny, vocabulary="hed")
