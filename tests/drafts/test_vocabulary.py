"""A draft can propose its head's tokens and those of its prompt."""

import pytest
import torch

from fspad_bench.core.loop import generate
from fspad_bench.core.protocols import Context, Limit
from fspad_bench.core.sampling import Sampler
from fspad_bench.decoders.eagle import Eagle
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.util.errors import BenchError

BASE_IDS = torch.tensor([1, 4, 5])
SIZE = 9


def test_the_tokens_of_a_text_join():
    prompted = Vocabulary(BASE_IDS, SIZE, prompted=True)
    fixed = Vocabulary(BASE_IDS, SIZE, prompted=False)
    assert prompted.new_ids([8, 4, 0, 0, 8, 5]) == {0, 8}
    assert fixed.new_ids([8, 0]) == set()
    text = torch.tensor([[8, 4, 0], [0, 8, 5]])
    assert prompted.of(text).tolist() == [1, 4, 5, 0, 8]
    assert fixed.of(text).tolist() == [1, 4, 5]


def test_an_index_is_the_inverse_of_a_vocabulary():
    ids = torch.cat([BASE_IDS, torch.tensor([0, 8])])
    index = Vocabulary(BASE_IDS, SIZE, prompted=True).index(ids)
    assert index.tolist() == [3, 0, -1, -1, 1, 2, -1, -1, 4]


@pytest.mark.parametrize("prompted", [True, False])
def test_tokens_that_only_come_later_are_not_covered(prompted):
    ids = torch.tensor([[2, 3, 8, 1], [7, 1, 1, 6]])
    rows = torch.tensor([[True, True, False], [True, True, False]])
    # a base id; another row's token; the first token; what follows the last row
    choice = torch.tensor([4, 6, 7, 6])
    covered = Vocabulary(BASE_IDS, SIZE, prompted=prompted).covers(choice, ids, rows)
    assert covered.tolist() == [True, False, prompted, False]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("options", [{"tree": "fixed"}, {"verify": "rejection"}], ids=str)
def test_a_prompts_tokens_are_drafted_while_it_is_answered(tiny, heads, options, temperature):
    """The head lacks every third token: one can be in a tree if, and only if, the text has it."""
    drafted = set()

    class Recorder(Eagle):
        def propose(self, context, budget):
            tree = super().propose(context, budget)
            drafted.update(tree.tokens[1:])
            return tree

    drafter = Recorder(tiny, head=str(heads["eagle"]), **options)
    for prompt in ([1, 3, 2, 6, 3], [4, 5, 12]):
        drafted.clear()
        generation = generate(tiny, drafter, Sampler(temperature), prompt, Limit(60))
        of_text = {token for token in [*prompt, *generation.tokens] if not token % 3}
        joined = [token for token in drafter.draft.ids.tolist() if not token % 3]
        assert {token for token in prompt if not token % 3} <= set(joined) <= of_text
        assert joined == sorted(joined)
        assert {token for token in drafted if not token % 3} <= of_text
    assert drafted


def test_the_logits_of_joined_tokens_are_the_target_heads(tiny, heads):
    draft = Eagle(tiny, head=str(heads["eagle"])).draft
    prompt = [1, 3, 2, 6]
    with tiny.session(len(prompt)) as session:
        draft.begin(Context([*prompt, 9], 4, Sampler()), session.prefill(prompt))
    with torch.inference_mode():
        out = draft.absorb()
        whole = torch.nn.functional.linear(out.h_logit, tiny.lm_head.weight).float()
        torch.testing.assert_close(draft.logits(out), whole[:, draft.ids])
    assert draft.ids[-3:].tolist() == [3, 6, 9]


def test_the_vocabulary_can_be_the_heads_alone(tiny, heads):
    drafter = Eagle(tiny, head=str(heads["eagle"]), vocabulary="head")
    generate(tiny, drafter, Sampler(), [3, 6, 9], Limit(5))
    assert drafter.draft.ids.tolist() == [i for i in range(97) if i % 3]
    with pytest.raises(BenchError, match="unknown vocabulary 'hed'"):
        Eagle(tiny, vocabulary="hed")
