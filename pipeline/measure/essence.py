"""Whether an edit leaves alone what a subject is: the perplexity of what the model had to say of it before the edit.

Hase et al. 2023, "Does Localization Inform Editing?", and their published code: five texts that begin "{subject} is a"
are sampled from the unedited model, 100 tokens long at most with the prompt, each token among the five likeliest; the
perplexity is the mean of the texts' own. It is taken here over the sampled tokens given the prompt: the published code
counts the prompt's tokens too, which no model chose, and goes on where the model would end. The score that
`pipeline.analysis.scores.essence` makes of it, 1 - clip(ppl' - ppl, 0, 5) / 5, is in units of perplexity, so the draw
matters: texts drawn among all tokens are more perplexing, and the same harm counts for more of the five.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import UserError, quoted
from pipeline.facts.fact import Fact
from pipeline.lm.generate import continuations
from pipeline.lm.model import LanguageModel
from pipeline.lm.prompts import tokenize
from pipeline.measure.likelihood import Likelihood
from pipeline.seeds import derive

TEXTS = 5  # sampled of a subject
LENGTH = 100  # tokens of a text at most, those of the prompt among them
TOP_K = 5  # the likeliest tokens, among which each is drawn


class Essence(Likelihood):
    """Continuations of one prompt, and what edits make of their perplexity.

    prompt: token ids. texts: token ids of its continuations, each of one token at least.
    """

    def __init__(self, lm: LanguageModel, prompt: Sequence[int], texts: Sequence[Sequence[int]]):
        super().__init__(lm, [[*prompt, *text] for text in texts], len(prompt))
        self.lengths = [len(text) for text in texts]

    @classmethod
    def sampled(
        cls, lm: LanguageModel, fact: Fact, seed: int, *, texts: int = TEXTS, length: int = LENGTH, top_k: int = TOP_K
    ) -> Essence:
        """Texts about the fact's subject, of the unedited model; each has a seed of its own, from seed, fact and place.

        texts: how many; length: tokens of one at most, the prompt's among them; top_k: drawn among so many of the
        likeliest tokens, 0 for all. Raises UserError where the prompt leaves no token to sample.
        """
        prompt = tokenize(lm.tokenizer, f"{fact.subject} is a", add_bos=lm.add_bos).ids
        if len(prompt) >= length:
            raise UserError(
                f"fact {fact.fact_id}: the prompt {quoted(f'{fact.subject} is a')} has {len(prompt)} tokens, but texts "
                f"about a subject have {length} at most, the prompt's among them; a shorter subject is needed"
            )
        seeds = [derive(seed, "essence", fact.fact_id, str(i)) for i in range(texts)]
        drawn = continuations(lm, [prompt] * texts, length - len(prompt), temperature=1.0, seeds=seeds, top_k=top_k)
        return cls(lm, prompt, drawn)

    def reduce(self, losses: Tensor) -> Tensor:
        """The perplexity (R,): exp of a text's mean loss, mean over the texts; losses are (R, n)."""
        return torch.stack([text.mean(1).exp() for text in losses.split(self.lengths, 1)]).mean(0)
