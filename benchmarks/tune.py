"""`python -m benchmarks.tune`: the bound and the learning rate of bounded fine-tuning for the packaged model.

The published values are of GPT-J and GPT-2 XL, and a bound is in the units of a model's weights. They are chosen, as
in Hase et al. 2023, on error injection, for the largest harmonic mean of rewrite success (ES, the
share of edits after which the new object is likelier than the old one) and neighborhood success (NS, the share of
neighborhood prompts after which it is not), here at four blocks spread over the depth. First the bound is chosen under
the published learning rate, then the learning rate under that bound.

The facts are of relations that the default run does not use, so that no number of its report is one that a setting was
chosen for. Writes benchmarks/tuned.json as it goes, and goes on from there; about ten minutes of one core.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import compare
from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.edit.finetune import FineTune, FineTuneSettings
from pipeline.edit.protocol import Resources
from pipeline.errors import UserError
from pipeline.lm.forward import proven
from pipeline.lm.memory import budget
from pipeline.lm.model import LanguageModel
from pipeline.progress import say
from pipeline.settings.params import Params
from pipeline.tables import write_json

RESULTS = Path("benchmarks/tuned.json")
RELATIONS, PER_RELATION = ("P17", "P27", "P30", "P140", "P159", "P407"), 1
BLOCKS = (3, 10, 17, 24)
PUBLISHED = FineTuneSettings(steps=25, learning_rate=5e-4, max_change=None, window=1, stop_loss=None, noise_copies=10)
METHODS = {"ft_1": PUBLISHED, "ft_5": replace(PUBLISHED, window=5)}
BOUNDS = {"ft_1": (1e-3, 2e-3, 4e-3, 8e-3), "ft_5": (2.5e-4, 5e-4, 1e-3)}
STOP = 1e-2  # FT+L, which is FT-1 with this early stop, takes FT-1's values
RATES = (1e-3,)  # beside the published one


@dataclass(frozen=True)
class Tried:
    """Settings and what they did: es is a share of edits, ns of neighborhood prompts after edits."""

    method: str
    max_change: float
    learning_rate: float
    es: float
    ns: float

    @property
    def mean(self) -> float:
        """Harmonic mean of ES and NS."""
        return 2 * self.es * self.ns / (self.es + self.ns) if self.es + self.ns else 0.0

    def shown(self) -> dict[str, Any]:
        rounded = {name: round(value, 4) for name, value in (("es", self.es), ("ns", self.ns), ("mean", self.mean))}
        return vars(self) | rounded


def no_moment(_layer: int) -> torch.Tensor:
    raise UserError("fine-tuning needs no second moment")


def work_of(lm: LanguageModel, params: Params) -> Iterator[compare.Case]:
    """Error injection on the first known facts of each relation."""
    for relation in RELATIONS:
        facts = params.facts.model_copy(update={"relations": (relation,)})
        known, sd = compare.known_facts(lm, params.model_copy(update={"facts": facts}), PER_RELATION)
        for fact in known:
            say(f"{relation}: {fact.text} | {fact.target_true} -> {fact.target_false}")
            yield from compare.cases(lm, params, fact, sd, ["error_injection"])


class Trials:
    """The edits of all cases at BLOCKS under one setting after the other; those of RESULTS are not made again."""

    def __init__(self, lm: LanguageModel, work: list[compare.Case]):
        self.lm, self.work = lm, work
        self.of = {
            "problem": "error_injection",
            "model": lm.name,
            "facts": [case.request.fact_id for case in work],
            "blocks": list(BLOCKS),
        }
        known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        same = all(known.get(key) == value for key, value in self.of.items())
        self.done = [Tried(*(row[field.name] for field in fields(Tried))) for row in known["tried"]] if same else []

    def run(self, method: str, settings: FineTuneSettings) -> Tried:
        bound, rate = settings.max_change, settings.learning_rate
        assert bound is not None
        for one in self.done:
            if (one.method, one.max_change, one.learning_rate) == (method, bound, rate):
                return one
        editor, memory = FineTune(settings, Resources(no_moment)), budget(None, self.lm.device, gradient=True)
        success, kept = [], []
        for case in self.work:
            after = case.measurement.after(editor.edit(self.lm, case.request, BLOCKS, memory))
            likelier = after[..., 0] > after[..., 1]  # (blocks, questions): the new object, of the new and the old one
            kinds = np.array([question.kind for question in case.measurement.asked])
            success.append(likelier[:, kinds == "rewrite"].mean())
            kept.append((~likelier[:, kinds == "neighborhood"]).mean())
        one = Tried(method, bound, rate, float(np.mean(success)), float(np.mean(kept)))
        self.done.append(one)
        self.write({})
        say(f"{method} max_change {bound:g} lr {rate:g}: ES {one.es:.2f} NS {one.ns:.2f} mean {one.mean:.3f}")
        return one

    def write(self, chosen: dict[str, Tried]) -> None:
        best = {method: one.shown() for method, one in chosen.items()}
        write_json(self.of | {"chosen": best, "tried": [one.shown() for one in self.done]}, RESULTS)


def main() -> None:
    torch.set_num_threads(1)
    params = methods.load("presets/default.yaml")
    assert not set(RELATIONS) & set(params.facts.relations or RELATIONS)
    lm = proven(opened(params))
    trials, best = Trials(lm, list(work_of(lm, params))), {}
    for method, settings in METHODS.items():
        bounds = [trials.run(method, replace(settings, max_change=bound)) for bound in BOUNDS[method]]
        first = max(bounds, key=lambda one: one.mean)
        under = replace(settings, max_change=first.max_change)
        rates = [trials.run(method, replace(under, learning_rate=rate)) for rate in RATES]
        best[method] = max([first, *rates], key=lambda one: one.mean)
    one = best["ft_1"]
    stopping = replace(PUBLISHED, stop_loss=STOP, max_change=one.max_change, learning_rate=one.learning_rate)
    best["ft_l"] = trials.run("ft_l", stopping)
    trials.write(best)
    for method, one in best.items():
        print(f"{method}: max_change {one.max_change:g}, learning_rate {one.learning_rate:g}: ES {one.es}, NS {one.ns}")


if __name__ == "__main__":
    main()
