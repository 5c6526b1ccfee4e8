"""What a run answers to "does localization inform editing?", in sentences made of its regressions' numbers."""

import pandas as pd

from pipeline.analysis.trust import MIN_FACTS_SHOWN, shown
from pipeline.report.plots import facts_phrase, listed, words
from pipeline.words import method_label

VARIANT = ["method", "trace_module", "trace_window", "trace_measure"]


def headline(regressions: pd.DataFrame) -> pd.DataFrame:
    """The regressions that the answer rests on: first method and trace variant, rewrite score if there is
    one."""
    first = regressions.iloc[0]
    score = "rewrite" if (regressions["score"] == "rewrite").any() else first["score"]
    rows = regressions[(regressions[VARIANT] == first[VARIANT]).all(axis=1)]
    return rows[rows["score"] == score]


def answer(regressions: pd.DataFrame, model_name: str, confidence: float, permutations: int) -> str:
    """What this run answers to "does localization inform editing?", in sentences made of its numbers.

    Found is what a test corrected by Holm over the whole table rejects; nothing is said by a number that is withheld.
    permutations: dealings of each test, of which so many tests may be too few to find anything, which is said then.
    """
    rows = headline(regressions)
    defined = rows.dropna(subset=["r2_layer", "r2_diff", "chance"])
    method, score = method_label(str(rows["method"].iloc[0])), words(str(rows["score"].iloc[0]))
    if defined.empty:
        most = facts_phrase(int(rows["n_facts"].max()))
        return (
            f"This run cannot answer the question: with {most}, or scores or layers that do not vary, "
            f"no regression of the {score} score is defined."
        )
    problems = listed([words(problem) for problem in defined["problem"]])
    start = (
        f"In {model_name}, edited with {method} on {_range(defined['n_facts'], '{:.0f}')} facts, the edited layer "
        f"alone explains {_range(defined['r2_layer'] * 100, '{:.0f}')}% of the variance of the {score} score "
        f"({problems}). "
        f"Knowing each fact's tracing effect as well adds {_range(defined['r2_diff'] * 100, '{:.1f}')} "
        "points, where a trace dealt to facts at random would add "
        f"{_range(defined['chance'] * 100, '{:.1f}')}."
    )
    printed = pd.DataFrame([shown(row) for row in defined.to_dict("records")])
    tests = int(regressions["permutation_pvalue"].notna().sum())
    sentences = [_said_of_facts(printed, 1 - confidence, tests, permutations), _said_of_layers(printed, 1 - confidence)]
    bounds = printed["gain_bound"].dropna().astype(float)
    if len(bounds):
        sentences.append(
            "For facts of these relations, a gain over chance above "
            f"{_range(bounds.clip(lower=0) * 100, '{:.1f}')} points is ruled out at {confidence:.0%}."
        )
    told = [sentence for sentence in sentences if sentence]
    if not told:
        return f"{start} With fewer than {MIN_FACTS_SHOWN} facts, or none alike in relation, this decides nothing."
    return " ".join([start, *told])


def _said_of_facts(printed: pd.DataFrame, level: float, tests: int, permutations: int) -> str:
    """Whether the trace of a fact goes with its scores at all, among facts of one relation; "" where untested.

    The least p of dealings is 1 / (1 + permutations); Holm multiplies the least of all by the number of tests.
    """
    tested = printed.dropna(subset=["permutation_holm"])
    if tested.empty:
        return ""
    found = tested[tested["permutation_holm"].astype(float) <= level]
    if found.empty:
        least, floor = tested["permutation_holm"].astype(float).min(), min(tests / (1 + permutations), 1.0)
        blind = (
            f": of {tests} tests by {permutations} dealings none can have a corrected p below {floor:.2g}, so that "
            "nothing could be found"
            if floor > level
            else ""
        )
        return (
            "Among facts of one relation, that is not shown to be more than chance for any problem (smallest "
            f"corrected p {least:.2g}), which is no proof that it is chance{blind}."
        )
    names = listed([words(problem) for problem in found["problem"]])
    return f"Among facts of one relation, that is more than chance for {names}; this may be that some facts are easier."


def _said_of_layers(printed: pd.DataFrame, level: float) -> str:
    """Whether a fact edits better at the layers where it traces higher; "" where untested."""
    tested = printed.dropna(subset=["within_holm"])
    if tested.empty:
        return ""
    found = tested[tested["within_holm"].astype(float) <= level]
    if found.empty:
        return "Within a fact, edits are not shown to go better, or worse, at the layers where it traces higher."
    parts = []
    for word, group in (("better", found[found["within_slope"] > 0]), ("worse", found[found["within_slope"] <= 0])):
        if len(group):
            parts.append(f"{word} for {listed([words(problem) for problem in group['problem']])}")
    told = " and ".join(parts)
    return f"Within a fact, edits go, at the layers where it traces higher than its relation does, {told}."


def _range(values: "pd.Series[float]", form: str) -> str:
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"
