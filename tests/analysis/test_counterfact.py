"""CounterFact's measures against values worked out by hand, and what their intervals are of."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pipeline.analysis.counterfact import COUNTERFACT_COLUMNS, MEASURES, counterfact_table, fact_measures, harmonic_mean
from pipeline.analysis.profiles import Resampling, expanded_levels, mean_interval
from pipeline.errors import UserError

PLAN = Resampling(samples=400, permutations=40, confidence=0.9, seed=0)
NAN = float("nan")
LETTERS = {"r": "rewrite", "p": "paraphrase", "n": "neighborhood"}


def edit(fact_id: str, prompts: str, method: str = "rome", layer: int = 2, **other: object) -> pd.DataFrame:
    """An edit's rows; prompts: "r.6-.2 n.1-.3", each a kind, p of the new object and p of the old one."""
    rows: list[dict[str, object]] = []
    for prompt in prompts.split():
        new, old = prompt[1:].split("-")
        kind = LETTERS[prompt[0]]
        index = sum(row["prompt_kind"] == kind for row in rows)
        row = {"fact_id": fact_id, "method": method, "layer": layer, "problem": "error_injection", "window": 1}
        row |= {"prompt_kind": kind, "prompt_index": index, "p_post": float(new), "p_baseline_post": float(old)}
        rows.append(row | {"status": "ok"} | other)
    return pd.DataFrame(rows)


ONE = edit("one", "r.6-.2 p.5-.1 p.1-.4 n.1-.3 n.2-.2 n.5-.1 n.0-.8")
TWO = edit("two", "r.1-.3 p.2-.1 n.1-.2")
THREE = edit("three", "r.9-.0 p.4-.2 p.3-.1 n.4-.2 n.1-.6")


def test_a_fact_by_hand() -> None:
    row = fact_measures(ONE).iloc[0]
    assert (row["ES"], row["PS"], row["NS"]) == (1.0, 0.5, 0.5)  # as probable as the other is no success
    assert row["EM"] == pytest.approx(0.4)
    assert row["PM"] == pytest.approx((0.4 - 0.3) / 2)
    assert row["NM"] == pytest.approx((0.2 + 0 - 0.4 + 0.8) / 4)
    other = fact_measures(TWO).iloc[0]
    assert list(other[["ES", "PS", "NS"]]) == [0, 1, 1]
    assert list(other[["EM", "PM", "NM"]]) == pytest.approx([-0.2, 0.1, 0.1])


def test_means_over_facts_and_s_of_the_means_by_hand() -> None:
    table = counterfact_table(pd.concat([ONE, TWO, THREE]), PLAN)
    assert list(table.columns) == list(COUNTERFACT_COLUMNS)
    row = table.iloc[0]
    assert (row["method"], row["layer"], row["n_facts"]) == ("rome", 2, 3)
    assert list(row[["ES", "PS", "NS"]]) == pytest.approx([2 / 3, 2.5 / 3, 2 / 3])
    assert list(row[["EM", "PM", "NM"]]) == pytest.approx([1.1 / 3, (0.05 + 0.1 + 0.2) / 3, (0.15 + 0.1 + 0.15) / 3])
    assert row["S"] == pytest.approx(3 / (1.5 + 1.2 + 1.5))  # a fact's own S would be 0 for the second one
    assert row[[name for name in table if name[:2] in ("GE", "RS")]].isna().all()


def test_columns_are_as_agreed() -> None:
    assert COUNTERFACT_COLUMNS[:9] == ("method", "layer", "n_facts", "S", "S_low", "S_high", "ES", "ES_low", "ES_high")
    assert COUNTERFACT_COLUMNS[-6:] == ("GE", "GE_low", "GE_high", "RS", "RS_low", "RS_high")
    assert [name for name in COUNTERFACT_COLUMNS if len(name) < 3] == [
        "S", "ES", "EM", "PS", "PM", "NS", "NM", "GE", "RS",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "mean"),
    [((1, 1, 1), 1), ((0.5, 1, 1), 0.75), ((0, 1, 1), 0), ((0.2, 0.3, 0.6), 0.3), ((NAN, 1, 0), NAN)],
)
def test_harmonic_mean(values: tuple[float, ...], mean: float) -> None:
    assert float(harmonic_mean(np.array(values))) == pytest.approx(mean, nan_ok=True)


def test_rows_are_by_method_and_layer_and_of_injected_errors_that_did_not_fail() -> None:
    wrong = "r.9-.0 p.9-.0 n.0-.9"
    edits = pd.concat(
        [
            edit("one", "r.6-.2", "memit", 10),
            edit("two", "r.6-.2", "memit", 2),
            edit("one", "r.6-.2", "ft", 0),
            edit("two", "r.2-.6", "ft", 0),
            edit("three", wrong, "ft", 0, status="failed: a", p_post=NAN),
            edit("one", wrong, "ft", 0, problem="fact_erasure"),
            edit("one", wrong, "kn", 0, problem="fact_erasure"),
        ]
    )
    table = counterfact_table(edits, PLAN)
    assert list(zip(table["method"], table["layer"], table["n_facts"], strict=True)) == [
        ("memit", 2, 1), ("memit", 10, 1), ("ft", 0, 2),
    ]  # fmt: skip
    assert list(table["ES"]) == [1, 1, 0.5]
    assert table[["PS", "NS", "S", "S_low"]].isna().all(axis=None)  # no such prompts
    assert table["ES_low"].notna().to_list() == [False, False, True]  # one fact has no interval
    nothing = counterfact_table(edits[edits["method"] == "kn"], PLAN)
    assert nothing.empty
    assert list(nothing.columns) == list(COUNTERFACT_COLUMNS)


def test_a_fact_without_paraphrases_counts_for_the_rest() -> None:
    row = counterfact_table(pd.concat([ONE, TWO, edit("three", "r.9-.0 n.1-.6")]), PLAN).iloc[0]
    assert row["n_facts"] == 3
    assert row["PS"] == pytest.approx(0.75)
    assert (row["ES"], row["NS"]) == (pytest.approx(2 / 3), pytest.approx(2.5 / 3))
    assert row["S"] == pytest.approx(3 / (1.5 + 1 / 0.75 + 1.2))


def many(n: int = 40) -> pd.DataFrame:
    """Facts whose edits work everywhere or nowhere near: what makes paraphrases succeed spoils the neighborhood."""
    rng = np.random.default_rng(3)
    edits = []
    for i in range(n):
        strong = rng.random() < 0.5
        after, near = ("p.8-.1 p.7-.2", "n.6-.2 n.5-.3") if strong else ("p.1-.5 p.6-.3", "n.1-.7 n.2-.4")
        edits.append(edit(f"f{i:02d}", f"r{rng.random():.3f}-.2 {after} {near}"))
    return pd.concat(edits)


def test_intervals_are_of_resampled_facts() -> None:
    edits = many()
    facts = fact_measures(edits)
    row = counterfact_table(edits, PLAN).iloc[0]
    _, low, high, _ = mean_interval(facts[list(MEASURES)].to_numpy(), PLAN)
    assert list(row[[f"{name}_low" for name in MEASURES]]) == list(low)
    assert list(row[[f"{name}_high" for name in MEASURES]]) == list(high)
    # S anew, of facts drawn one by one with other random numbers.
    rng = np.random.default_rng(1)
    parts = facts[["ES", "PS", "NS"]].to_numpy()
    drawn = [stats.hmean(parts[rng.integers(0, len(parts), len(parts))].mean(0)) for _ in range(4000)]
    wanted = np.quantile(drawn, expanded_levels(len(parts), PLAN.confidence))
    plan = Resampling(samples=4000, permutations=1, confidence=PLAN.confidence, seed=0)
    found = counterfact_table(edits, plan).iloc[0]
    assert [found["S_low"], found["S_high"]] == pytest.approx(wanted, abs=0.01)
    assert found["S_low"] < found["S"] < found["S_high"]
    # Facts keep their measures together: paraphrases against neighborhood, so S varies less than they do.
    assert found["S_high"] - found["S_low"] < 0.8 * (found["NS_high"] - found["NS_low"])


def test_two_windows_of_a_method_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"fact one \(rome, error_injection\) has two rows for layer 2, rewrite prompt 0"
    ):
        counterfact_table(pd.concat([ONE, ONE.assign(window=5)]), PLAN)
