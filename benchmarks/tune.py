"""`python -m benchmarks.tune`: the settings of other methods that do not carry over from models of billions of weights,
chosen for the packaged model on facts that no report is about.

These are the bound and learning rate of fine-tuning (a bound is in the units of a model's weights), MEMIT's lambda
(beside which the keys of a narrower model weigh less), and KN's threshold. Each is chosen on error injection, for the
largest harmonic mean of rewrite success (ES, the share of edits after which the new object is likelier than the old
one) and neighborhood success (NS, the share of neighborhood prompts after which it is not), at four blocks spread over
the depth; of equal means the first of the grid is taken, which stands nearest to what was published.

The facts are of relations that the default run does not use, so that no number of its report is one that a setting was
chosen for. Writes benchmarks/tuned.json as it goes, and goes on from there; about twenty minutes of one core.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import compare
from benchmarks.methods import moments_of
from pipeline.compute.fetch import opened
from pipeline.edit import methods
from pipeline.edit.protocol import Editor, Resources
from pipeline.lm.forward import proven
from pipeline.lm.memory import budget
from pipeline.lm.model import LanguageModel
from pipeline.progress import say
from pipeline.settings.params import Params
from pipeline.tables import write_json

RESULTS = Path("benchmarks/tuned.json")
RELATIONS, PER_RELATION = ("P17", "P27", "P30", "P140", "P159", "P407"), 1
BLOCKS = (3, 10, 17, 24)
PROBLEM = "error_injection"
# What a method is tried with; the keys that are not named are those of presets/default.yaml. A second grid is tried
# under the best of the first.
GRIDS: dict[str, list[list[dict[str, Any]]]] = {
    "ft_1": [
        [{"learning_rate": 5e-4, "max_change": bound} for bound in (1e-3, 2e-3, 4e-3, 8e-3)],
        [{"learning_rate": rate} for rate in (1e-3, 2e-3)],
    ],
    "ft_5": [
        [{"learning_rate": 5e-4, "max_change": bound} for bound in (2.5e-4, 5e-4, 1e-3, 2e-3)],
        [{"learning_rate": rate} for rate in (1e-3,)],
    ],
    "memit": [[{"covariance_weight": weight} for weight in (15000.0, 1500.0, 150.0, 15.0)]],
    "kn": [[{"window": "all", "threshold": share} for share in (0.2, 0.1, 0.3, 0.5)]],
}


@dataclass(frozen=True)
class Tried:
    """Settings and what they did: es is a share of edits, ns of neighborhood prompts after edits."""

    method: str
    settings: dict[str, Any]
    es: float
    ns: float
    mean: float = field(init=False)  # harmonic, of ES and NS

    def __post_init__(self) -> None:
        total = self.es + self.ns
        object.__setattr__(self, "mean", round(2 * self.es * self.ns / total, 4) if total else 0.0)


def work_of(lm: LanguageModel, params: Params) -> Iterator[compare.Case]:
    """Error injection on the first known facts of each relation."""
    for relation in RELATIONS:
        facts = params.facts.model_copy(update={"relations": (relation,)})
        known, sd = compare.known_facts(lm, params.model_copy(update={"facts": facts}), PER_RELATION)
        for fact in known:
            say(f"{relation}: {fact.text} | {fact.target_true} -> {fact.target_false}")
            yield from compare.cases(lm, params, fact, sd, [PROBLEM])


class Trials:
    """The edits of all cases at BLOCKS under one setting after the other; those of RESULTS are not made again."""

    def __init__(self, lm: LanguageModel, params: Params, work: list[compare.Case], resources: Resources):
        self.lm, self.params, self.work, self.resources = lm, params, work, resources
        facts = [case.request.fact_id for case in work]
        self.of = {"problem": PROBLEM, "model": lm.name, "facts": facts, "blocks": list(BLOCKS)}
        known = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        same = all(known.get(key) == value for key, value in self.of.items())
        rows = known["tried"] if same else []
        self.done = [Tried(*(row[key] for key in ("method", "settings", "es", "ns"))) for row in rows]

    def run(self, method: str, changed: dict[str, Any]) -> Tried:
        """The method with some keys of its section changed."""
        for one in self.done:
            if (one.method, one.settings) == (method, changed):
                return one
        settings = methods.SETTINGS[method](**self.params.for_problem(method, PROBLEM) | changed)
        editor: Editor = methods.METHODS[method].editor(settings, self.resources)
        memory, success, kept = budget(None, self.lm.device, gradient=True), [], []
        for case in self.work:
            after = case.measurement.after(editor.edit(self.lm, case.request, BLOCKS, memory))
            likelier = after[..., 0] > after[..., 1]  # (blocks, questions): the new object, of the new and the old one
            kinds = np.array([question.kind for question in case.measurement.asked])
            success.append(likelier[:, kinds == "rewrite"].mean())
            kept.append((~likelier[:, kinds == "neighborhood"]).mean())
        one = Tried(method, dict(changed), round(float(np.mean(success)), 4), round(float(np.mean(kept)), 4))
        self.done.append(one)
        self.write({})
        say(f"{method} {dict(changed)}: ES {one.es:.2f} NS {one.ns:.2f} mean {one.mean:.3f}")
        return one

    def write(self, chosen: dict[str, Tried]) -> None:
        best = {method: vars(one) for method, one in chosen.items()}
        write_json(self.of | {"chosen": best, "tried": [vars(one) for one in self.done]}, RESULTS)


def main() -> None:
    torch.set_num_threads(1)
    params = methods.load("presets/default.yaml")
    assert not set(RELATIONS) & set(params.facts.relations or RELATIONS)
    lm = proven(opened(params))
    trials, best = Trials(lm, params, list(work_of(lm, params)), moments_of(lm, params)), {}
    for method, grids in GRIDS.items():
        chosen: dict[str, Any] = {}
        tried: list[Tried] = []
        for grid in grids:
            tried += [trials.run(method, chosen | changed) for changed in grid]
            best[method] = max(tried, key=lambda one: one.mean)
            chosen = best[method].settings
    # FT+L is FT-1 with an early stop.
    best["ft_l"] = trials.run("ft_l", best["ft_1"].settings)
    trials.write(best)
    for method, one in best.items():
        print(f"{method}: {one.settings}: ES {one.es}, NS {one.ns}")


if __name__ == "__main__":
    main()
