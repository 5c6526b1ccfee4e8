"""Tables of a made-up run, with the columns of the contract: for tests of everything that comes after
editing.

Facts have an easy-or-hard effect shared by all their layers, edits fade towards the last layers, and the
trace is a bump somewhere in the middle whose height and place belong to the fact.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

PROBLEMS = ("error_injection", "tracing_reversal", "fact_erasure", "fact_amplification", "fact_forcing")
ROLES = ("before_subject", "first_subject", "last_subject", "first_subsequent", "further", "last_token")
TOKENS = ("The", " capital$", " of", " Fran", "ce", " is")


@dataclass(frozen=True, kw_only=True)
class Run:
    """facts.parquet, trace.parquet and the edits tables (one below the other)."""

    facts: pd.DataFrame
    trace: pd.DataFrame
    edits: pd.DataFrame


def make_run(n_facts: int = 12, n_layers: int = 30, seed: int = 0, subject: str = "Fran") -> Run:
    """A run of `n_facts` facts, edited at all `n_layers` layers for all five problems."""
    rng = np.random.default_rng(seed)
    ids = [f"capital.{i:03d}" for i in range(n_facts)]
    return Run(facts=_facts(ids, subject), trace=_trace(ids, n_layers, rng), edits=_edits(ids, n_layers, rng))


def _facts(ids: list[str], subject: str) -> pd.DataFrame:
    used = pd.DataFrame(
        {
            "fact_id": ids,
            "relation": ["capital", "continent", "language"] * (len(ids) // 3) + ["capital"] * (len(ids) % 3),
            "subject": [f"{subject}{i}" for i in range(len(ids))],
            "prompt": "The capital of {} is the city of",
            "target_true": "Paris",
            "target_false": "Rome",
            "paraphrases": [
                [f"{subject}{i} has {k} capitals, the first is" for k in range(3)] for i in range(len(ids))
            ],
            "neighborhood": [[f"The capital of Neighbor {k} is the city of" for k in range(5)] for _ in ids],
            "source": "embedded",
            "p_true": np.linspace(0.2, 0.95, len(ids)),
            "greedy_correct": True,
            "kept": True,
            "drop_reason": "",
        }
    )
    dropped = used.iloc[[0] * 40].assign(
        fact_id=[f"dropped.{i}" for i in range(40)],
        kept=False,
        drop_reason=["the model continues otherwise"] * 28 + ["known, but beyond facts.count"] * 12,
    )
    return pd.concat([used, dropped], ignore_index=True)


def _trace(ids: list[str], n_layers: int, rng: np.random.Generator) -> pd.DataFrame:
    layer = np.arange(n_layers)
    tables = []
    for fact_id in ids:
        place, height = rng.uniform(0.2, 0.5) * n_layers, rng.beta(2, 3)
        clean, corrupt = rng.uniform(0.4, 0.95), rng.uniform(0.01, 0.1)
        for i, (token, role) in enumerate(zip(TOKENS, ROLES, strict=True)):
            share = {"last_subject": 1.0, "last_token": 0.4, "first_subject": 0.3}.get(role, 0.05)
            middle = place if role != "last_token" else 0.75 * n_layers
            effect = share * height * (clean - corrupt) * np.exp(-(((layer - middle) / (0.2 * n_layers)) ** 2))
            effect = effect + rng.normal(0, 0.004, n_layers)
            tables.append(
                pd.DataFrame(
                    {
                        "fact_id": fact_id,
                        "module": "mlp",
                        "window": 5,
                        "token_index": i,
                        "token": token,
                        "token_role": role,
                        "layer": layer,
                        "p_clean": clean,
                        "p_corrupt": corrupt,
                        "p_restored": corrupt + effect,
                        "effect": effect,
                        "fraction": np.clip(effect / (clean - corrupt), 0, 1),
                    }
                )
            )
    return pd.concat(tables, ignore_index=True)


def _edits(ids: list[str], n_layers: int, rng: np.random.Generator) -> pd.DataFrame:
    prompts = [
        ("rewrite", 0),
        *(("paraphrase", i) for i in range(3)),
        *(("neighborhood", i) for i in range(5)),
    ]
    layers = np.arange(n_layers)
    tables = []
    for problem in PROBLEMS:
        falls = problem == "fact_erasure"
        weight = {"tracing_reversal": 0.35, "fact_forcing": 0.6}.get(problem, 1.0)
        for fact_id in ids:
            end = rng.normal(0.75, 0.12)
            strength = 1 / (1 + np.exp((layers / n_layers - end) * 12)) * (1 - rng.beta(1, 9, n_layers))
            strength = 1 - weight + weight * strength
            for kind, index in prompts:
                pre = rng.uniform(0.3, 0.9) if problem in ("fact_erasure", "fact_amplification") else rng.beta(1, 20)
                share = strength * {"rewrite": 1.0, "paraphrase": 0.7, "neighborhood": 0.1}[kind]
                share = np.clip(share + rng.normal(0, 0.03, n_layers), 0, 1)
                tables.append(
                    pd.DataFrame(
                        {
                            "fact_id": fact_id,
                            "problem": problem,
                            "method": "rome",
                            "window": 1,
                            "layer": layers,
                            "prompt_kind": kind,
                            "prompt_index": index,
                            "target": "Rome" if problem == "error_injection" else "Paris",
                            "baseline": "Paris" if problem == "error_injection" else "Rome",
                            "p_pre": pre,
                            "p_baseline_pre": 1 - pre,
                            "p_baseline_post": (1 - pre) * (1 - share),
                            "p_post": pre * (1 - share) if falls else pre + (1 - pre) * share,
                            "status": "ok",
                            "acts": True,
                            "denominator": 0.5,
                            "update_norm": 0.1,
                            "text_loss_pre": 3.0,
                            "text_loss_post": 3.01,
                            "update_key": "prompt",
                        }
                    )
                )
    edits = pd.concat(tables, ignore_index=True)
    failed = (edits["fact_id"] == ids[0]) & (edits["layer"] == 3) & (edits["problem"] == "error_injection")
    edits.loc[failed, "status"] = "the loss is not finite"
    edits.loc[
        failed, ["p_post", "p_baseline_post", "denominator", "update_norm", "text_loss_pre", "text_loss_post"]
    ] = np.nan
    return edits
