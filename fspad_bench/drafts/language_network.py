"""A draft model of our own making: some of the target's layers, trained to do without the others.

It is a causal language model of the target's kind: N of its decoder layers and its final norm,
which are trained, between its embedding and its LM head, which are not. So its file holds the
layers alone, and fits the target that it was made for.

- Training starts with copies of the target's layers, evenly spread, the first and the last among
  them (`DraftModel(model="self")` leaves layers out as well, untrained).
- It reads tokens alone, nothing that the target computed. A drafted token is then like any other,
  and all levels of a draft are one function: there is nothing to unroll.
- The layers are transformers' own, of whatever architecture the target has.
- `as_target` gives it an engine, so that it decodes as any other language model does, over the rows
  of the LM head that its draft vocabulary names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from fspad_bench.drafts.head import Head, load_head, shipped
from fspad_bench.drafts.hub_heads import head_folder, is_trained
from fspad_bench.drafts.network import DraftOutput, HeadNetwork
from fspad_bench.drafts.shape import Shape
from fspad_bench.drafts.vocabulary import Vocabulary
from fspad_bench.engine.architecture import rope_types
from fspad_bench.engine.stock import take_buffers
from fspad_bench.engine.target import TransformersTarget
from fspad_bench.util.errors import BenchError

SHIPPED = "shipped"
LAYERS = 2  # unless another number is asked for

Rotary = Callable[..., tuple[Tensor, Tensor]]
"""(x, positions, and the type of a layer where types have embeddings of their own) -> cos, sin."""


class LanguageNetwork(HeadNetwork):
    """e_0 .. e_{i+1} -> N decoder layers -> norm -> h_i; the LM head reads token i + 2 off h_i.

    Rows are counted as in other networks.
    """

    architecture = "draft_model"
    reads_states = False

    def __init__(
        self,
        shape: Shape,
        layers: Sequence[nn.Module],
        norm: nn.Module,
        rotary: Rotary,
        types: Sequence[str] = (),
    ) -> None:
        """`types`: those of the layers, where each has rotary embeddings of its own."""
        super().__init__(shape)
        self.types = types
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.rotary = rotary  # a function, so that no precision but its own touches its frequencies

    @classmethod
    def shape_for(cls, config: PreTrainedConfig) -> Shape:
        """Return the shape that is trained for a target. Raises BenchError where it has one layer.

        `LAYERS` layers, or one where the target has two.
        """
        count = config.num_hidden_layers
        if count < 2:
            raise BenchError(
                "a draft model has fewer layers than its target, and this one has a single layer",
                "train another decoder for it",
            )
        return replace(Shape.of_target(config), layers=min(LAYERS, count - 1))

    @classmethod
    def build(cls, shape: Shape, target: TransformersTarget) -> LanguageNetwork:
        """Return copies of the target's layers and of its final norm.

        Raises ValueError for more layers than it has.
        """
        base = target.model.base_model
        if not 0 < shape.layers <= len(base.layers):
            raise ValueError(f"its shape states {shape.layers} of {len(base.layers)} layers")
        chosen = spread_layers(shape.layers, len(base.layers))
        layers = [copy.deepcopy(base.layers[i]) for i in chosen]
        every = rope_types(target.config)
        types = [every[i] for i in chosen] if every else []
        network = cls(shape, layers, copy.deepcopy(base.norm), base.rotary_emb.forward, types)
        return network.requires_grad_(True)

    def forward(self, e: Tensor, states: Tensor, rows: Tensor) -> DraftOutput:
        h = self.hidden(e, states)[rows]
        return DraftOutput(h, h)

    def unrolled(self, e: Tensor, states: Tensor, steps: int) -> list[DraftOutput]:
        """Return the same outputs for each level: a drafted token is read like one of the text."""
        h = self.hidden(e, states)
        return [DraftOutput(h, h)] * steps

    def hidden(self, e: Tensor, states: Tensor) -> Tensor:
        """Return h of the rows `[B, L, d]`; states are the embeddings before e, shifted by one."""
        x = torch.cat([states, e[..., -1:, :]], dim=-2)
        positions = torch.arange(x.shape[-2], device=x.device)[None]
        own = [[kind] for kind in self.types] or [[]] * len(self.layers)
        for layer, kind in zip(self.layers, own, strict=True):
            rope = self.rotary(x, positions, *kind)
            x = layer(x, position_ids=positions, position_embeddings=rope)
        return self.norm(x)[..., 1:, :]


def spread_layers(count: int, layers: int) -> list[int]:
    """Return `count` of a target's layers, evenly spread from the first to the last."""
    return [round(i * (layers - 1) / max(1, count - 1)) for i in range(count)]


def trained_model(name: str, target: TransformersTarget) -> Head | None:
    """Return the trained draft model that a user named: its folder, its repository on the hub as
    OWNER/NAME or OWNER/NAME@REVISION, or `shipped`.

    None where the name is that of any other language model. Raises BenchError for a head of another
    kind or target.
    """
    if name != SHIPPED:
        if not is_trained(name):
            return None
        return load_head(head_folder(name), target, LanguageNetwork)
    folder = shipped(LanguageNetwork.architecture, target.name)
    if not folder.is_dir():
        raise BenchError(
            f"no draft model is shipped for target '{target.name}'",
            f"`fspad-bench train --decoder draft_model --target {target.name}` makes one",
        )
    return load_head(folder, target, LanguageNetwork)


def vocabulary_of(head: Head, target: TransformersTarget) -> Vocabulary:
    """Return the draft vocabulary; a text's tokens join it unless it was trained without them."""
    recipe = head.facts.get("recipe")
    alone = isinstance(recipe, dict) and recipe.get("vocabulary") == "head"
    return Vocabulary(head.vocabulary, target.config.vocab_size, prompted=not alone)


def as_target(head: Head, target: TransformersTarget) -> TransformersTarget:
    """Return a trained draft model as an engine runs it; its logits are over the draft vocabulary.

    The embedding is the target's own, not a copy.
    """
    count = head.network.shape.layers
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = count
    config.tie_word_embeddings = False
    if getattr(config, "layer_types", None):
        chosen = spread_layers(count, target.config.num_hidden_layers)
        config.layer_types = [config.layer_types[i] for i in chosen]
    with torch.device("meta"):
        model = type(target.model)(config)
        model.lm_head = nn.Linear(head.network.shape.d, len(head.vocabulary), bias=False)
    base = model.base_model_prefix
    weights = {f"{base}.{name}": weight for name, weight in head.network.state_dict().items()}
    weights[f"{base}.embed_tokens.weight"] = target.embedding.weight.detach()
    weights["lm_head.weight"] = target.lm_head.weight.detach()[head.vocabulary]
    model.load_state_dict(weights, assign=True)
    model.base_model.rotary_emb = target.model.base_model.rotary_emb
    take_buffers(model, target.model)
    title = f"trained, {count} of {target.config.num_hidden_layers} layers"
    model.requires_grad_(False)
    return TransformersTarget(model, target.tokenizer, title, head.identity, head.sha256)
