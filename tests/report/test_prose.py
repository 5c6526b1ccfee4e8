"""What README.md and docs/statistics.md say of the reference run by hand is what its committed tables say."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from pipeline.settings.fields import PROBLEMS
from tests.conftest import ROOT

REFERENCE = ROOT / "reports" / "reference"
METHODS = ("rome", "memit", "ft_1", "ft_5")
OTHERS = PROBLEMS[:4]  # than fact forcing
PAPER_MEASURE, LAST_SUBJECT = "trace_mlp_w5_fraction", "trace_mlp_w5_last_subject"

README = " ".join((ROOT / "README.md").read_text("utf-8").split())
STATISTICS = " ".join((ROOT / "docs" / "statistics.md").read_text("utf-8").split())


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(REFERENCE / f"{name}.csv")


@pytest.fixture(scope="module")
def rewrite() -> pd.DataFrame:
    """The regressions of the rewrite score on the paper's measure, by method and problem."""
    found = table("regressions").query("score == 'rewrite' and trace_measure == 'fraction'")
    assert len(found) == len(METHODS) * len(PROBLEMS)
    return found.set_index(["method", "problem"])


@pytest.fixture(scope="module")
def layers() -> pd.DataFrame:
    """What a choice of layer scores, rewrite score, by method, problem, localizer and choice."""
    found = table("layers").query("score == 'rewrite'")
    return found.set_index(["method", "problem", "localizer", "choice"]).sort_index()


def span(values: Any, digits: int = 3) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def ends(row: pd.Series, of: str, digits: int = 3, times: float = 1) -> str:
    return f"{times * row[f'{of}_low']:.{digits}f} to {times * row[f'{of}_high']:.{digits}f}"


def shown(row: pd.Series, of: str) -> int:
    """1 or -1: the sign of what an interval leaves no doubt about; 0 where it holds 0."""
    return int(row[f"{of}_low"] > 0) - int(row[f"{of}_high"] < 0)


def cost(layers: pd.DataFrame, method: str, problem: str, choice: str, localizer: str = PAPER_MEASURE) -> pd.Series:
    """What the traced layer loses against a choice, in points, its interval too."""
    return 100 * layers.loc[(method, problem, localizer, choice), ["regret", "regret_low", "regret_high"]].astype(float)


def test_no_slope_within_a_fact_is_above_0_and_one_below(rewrite: pd.DataFrame) -> None:
    signs = {index: shown(row, "within") for index, row in rewrite.iterrows()}
    assert {index: sign for index, sign in signs.items() if sign} == {("ft_1", "tracing_reversal"): -1}
    assert "of twenty intervals of the slope one leaves 0 out, below it: FT-1's tracing reversal" in STATISTICS
    assert rewrite["within_holm"].min() > 0.2


def test_what_rome_and_memit_leave_to_the_trace(rewrite: pd.DataFrame) -> None:
    bounds = {method: rewrite.loc[method, "gain_bound"] for method in ("rome", "memit")}
    rome, memit = bounds["rome"].drop("fact_erasure"), bounds["memit"].drop("fact_amplification")
    assert (
        f"for ROME by {span(rome)} of the variance, in fact erasure by {bounds['rome']['fact_erasure']:.3f}"
        in STATISTICS
    )
    assert (
        f"for MEMIT by {span(memit)}, in fact amplification by {bounds['memit']['fact_amplification']:.3f}"
        in STATISTICS
    )
    for method in bounds:
        signs = {problem: shown(rewrite.loc[(method, problem)], "gain") for problem in PROBLEMS}
        assert {problem for problem, sign in signs.items() if sign > 0} <= {"fact_forcing"}
        assert f"{rewrite.loc[(method, 'fact_forcing'), 'gain']:.3f}" == "0.005"
    assert "above 0 by its interval in fact forcing alone, with half a point" in README


def test_what_fine_tuning_adds(rewrite: pd.DataFrame) -> None:
    row, five = rewrite.loc[("ft_1", "fact_forcing")], rewrite.loc["ft_5"].loc[list(OTHERS)]
    assert (
        f"FT-1 has {100 * row['gain']:.1f} points of variance ({ends(row, 'gain', 1, 100)}) in fact forcing" in README
    )
    assert (
        f"By FT-1 in fact forcing the trace adds {row['gain']:.3f} ({ends(row, 'gain')}), on held-out facts "
        f"{row['cv_gain']:.3f} ({ends(row, 'cv_gain')}), and the corrected p is {row['permutation_holm']:.2f}; the "
        f"slope within a fact is {row['within_slope']:.3f} ({ends(row, 'within')})" in STATISTICS
    )
    assert f"FT-5's {span(100 * five['gain'], 1)} points in the other four problems" in README
    assert all(shown(each, "gain") > 0 for _, each in five.iterrows())
    assert five["cv_gain"].max() < 0.01
    other = rewrite.loc[("ft_1", "error_injection")]
    assert (
        f"FT-1's error injection ({other['gain']:.3f}, {ends(other, 'gain')}) and four of FT-5's problems "
        f"({span(five['gain'])}) have intervals above 0 too" in STATISTICS
    )
    those = pd.concat([five, other.to_frame().T])
    assert f"(p {span(those['permutation_pvalue'], 2)} before any correction)" in STATISTICS
    assert f"on held-out facts it adds {span(those['cv_gain'])}." in STATISTICS


def test_which_rows_of_all_have_a_low_corrected_p() -> None:
    every = table("regressions")
    low = every[every["permutation_holm"] < 0.05]
    assert len(low) == 12
    assert len(every) == 240
    assert set(low["method"]) <= {"ft_1", "ft_5"}
    assert "all twelve rows of the 240 whose corrected p is below 0.05 are fine-tuning's" in README
    least = every["permutation_holm"].min()
    assert (low["permutation_holm"] == least).all()
    assert f"Holm's correction over the table's 240 tests makes {least:.2f} of it" in STATISTICS
    assert "Twelve rows have that p, all of fine-tuning" in STATISTICS
    rome = every.query("method == 'rome' and score == 'rewrite'")["permutation_holm"].min()
    assert f"ROME's lowest is {rome:.2f} among rewrite scores" in STATISTICS


def test_what_the_traced_layer_costs(layers: pd.DataFrame) -> None:
    fixed = [cost(layers, method, problem, "fixed")["regret"] for method in ("rome", "memit") for problem in PROBLEMS]
    assert (
        f"Editing at the traced layer costs by these two {span(fixed, 1)} points against one fixed layer" in STATISTICS
    )
    for method in ("rome", "memit"):
        assert not any(shown(cost(layers, method, problem, "random"), "regret") for problem in OTHERS)
    rome, memit = (cost(layers, method, "fact_forcing", "random") for method in ("rome", "memit"))
    assert (
        f"and {rome['regret']:.1f} points (ROME, {ends(rome, 'regret', 1)}) and {memit['regret']:.1f} (MEMIT, "
        f"{ends(memit, 'regret', 1)}) in fact forcing" in STATISTICS
    )
    one = [cost(layers, "ft_1", problem, "random") for problem in PROBLEMS]
    assert all(shown(each, "regret") < 0 for each in one)
    gains = span([-each["regret"] for each in one], 1)
    losses = span([cost(layers, "ft_1", problem, "fixed")["regret"] for problem in PROBLEMS], 1)
    assert f"beats a random one by {gains} points in all five problems, and loses {losses} to block 0" in STATISTICS
    assert {layers.loc[("ft_1", problem, PAPER_MEASURE, "fixed"), "layer"] for problem in PROBLEMS} == {0}
    five = {problem: cost(layers, "ft_5", problem, "random") for problem in PROBLEMS}
    signs = {problem: shown(each, "regret") for problem, each in five.items()}
    assert signs == dict(zip(PROBLEMS, (-1, 0, 0, -1, 1), strict=True))
    assert (
        f"FT-5 fails less in the second half: {-five['error_injection']['regret']:.1f} and "
        f"{-five['fact_amplification']['regret']:.1f} points better than a random layer" in STATISTICS
    )


def test_what_the_trace_at_the_last_subject_token_costs(layers: pd.DataFrame) -> None:
    own = {problem: cost(layers, "rome", problem, "fixed", LAST_SUBJECT) for problem in PROBLEMS}
    told = [f"{own[problem]['regret']:.1f} ({ends(own[problem], 'regret', 1)})" for problem in PROBLEMS]
    assert (
        f"loses by ROME {told[0].replace(' (', ' points (')} for error injection, {told[1]}, {told[2]}, {told[3]} and, "
        f"in fact forcing, {told[4]}, and beats a random layer in three of five problems" in STATISTICS
    )
    memit = [f"{cost(layers, 'memit', problem, 'fixed', LAST_SUBJECT)['regret']:.1f}" for problem in PROBLEMS]
    assert f"by MEMIT {', '.join(memit[:4])} and {memit[4]}" in STATISTICS
    better = {
        method: {
            problem
            for problem in PROBLEMS
            if shown(cost(layers, method, problem, "random", LAST_SUBJECT), "regret") < 0
        }
        for method in METHODS
    }
    assert len(better["rome"]) == 3
    assert better["memit"] == better["rome"]
    assert better["ft_1"] == set(PROBLEMS)
    assert better["ft_5"] == set(OTHERS)
    dealt = layers.xs((LAST_SUBJECT, "dealt"), level=("localizer", "choice"))["permutation_pvalue"]
    assert f"(row `dealt`: p from {span(dealt, 2)} by the four methods, twenty tests" in STATISTICS
    assert len(dealt) == 20
    bounds = table("regressions").query(
        "score == 'rewrite' and trace_measure == 'last_subject' and problem == 'fact_erasure'"
    )
    rome, other = (bounds.loc[bounds["method"] == method, "gain_bound"].item() for method in ("rome", "memit"))
    assert f"the scores of fact erasure allow up to {rome:.2f} by ROME and {other:.2f} by MEMIT" in STATISTICS
    peaks = table("trace_peaks").query("module == 'mlp' and window == 5").assign(late=lambda rows: rows["layer"] >= 15)
    facts = peaks.groupby(["tokens", "late"])["facts"].sum()
    assert f"for {facts['any', True]} of 110 facts peaks in the second half" in STATISTICS
    assert f"It peaks in the first half for {facts['last_subject', False]} facts." in STATISTICS


@pytest.fixture(scope="module")
def gpt_j() -> pd.DataFrame:
    """The paper's table of the rewrite score, by method and problem."""
    found = pd.read_csv(ROOT / "data" / "paper" / "hase2023_r2.csv").query("score == 'rewrite'")
    names = found["method"].str.lower().str.replace("-", "_")
    return found.assign(method=names).set_index(["method", "problem"])


def test_what_differs_from_gpt_j(rewrite: pd.DataFrame, gpt_j: pd.DataFrame) -> None:
    own, paper = rewrite.loc["rome"], gpt_j.loc["rome"]
    lower = ["error_injection", "fact_erasure", "fact_amplification"]
    here, there = (span(of.loc[lower, "r2_layer"]) for of in (own, paper))
    assert (own["r2_layer"] < paper["r2_layer"]).sum() == 3
    assert f"fact erasure and fact amplification* ({here} against {there})" in STATISTICS
    assert f"Kept here, R² is {span(own.loc[lower, 'r2_layer_all'])} with one such block in thirty" in STATISTICS
    depths = table("robustness").query("variation == 'edited layers' and method == 'rome'").set_index("problem")
    assert set(depths.loc[lower, "n_facts"]) == {50}
    assert f"and {span(depths.loc[lower, 'r2_layer_all'])} at the paper's nine relative depths (50 facts" in STATISTICS
    for problem, words in (
        ("tracing_reversal", "It is higher for tracing reversal*"), ("fact_forcing", "And for fact forcing*"),
    ):  # fmt: skip
        assert (
            f"{words} ({own.loc[problem, 'r2_layer']:.3f} against {paper.loc[problem, 'r2_layer']:.3f})" in STATISTICS
        )
    tuned = [(method, problem) for method in ("ft_1", "ft_5") for problem in PROBLEMS]
    less = rewrite.loc[tuned, "r2_layer"] - gpt_j.loc[tuned, "r2_layer"]
    assert (less < 0).sum() == 8
    assert less.idxmin() == ("ft_5", "fact_forcing")
    assert "lower in eight of ten rows*, FT-5's in fact forcing by most (0.101 against 0.634)" in STATISTICS
    assert f"{rewrite.loc[less.idxmin(), 'r2_layer']:.3f}" == "0.101"
    assert f"{gpt_j.loc[less.idxmin(), 'r2_layer']:.3f}" == "0.634"
    assert f"explains {span(own['r2_trace'])} of ROME's scores here and {span(paper['r2_trace'])} there" in STATISTICS
    row = ("ft_1", "fact_forcing")
    alone = [f"{of.loc[row, 'r2_trace']:.3f}" for of in (rewrite, gpt_j)]
    assert f"Of FT-1's in fact forcing it explains {alone[0]} here and {alone[1]} there" in STATISTICS
    both = [f"{gpt_j.loc[(method, 'fact_forcing'), 'r2_both']:.3f}" for method in ("ft_1", "ft_5")]
    only = [f"{gpt_j.loc[(method, 'fact_forcing'), 'r2_layer']:.3f}" for method in ("ft_1", "ft_5")]
    assert f"(FT-1 {only[0]} to {both[0]}, FT-5 {only[1]} to {both[1]})" in STATISTICS


def test_what_the_maps_show() -> None:
    peaks = table("aie_peaks").query("window == 5").set_index(["module", "token_role"])
    last = peaks.loc[("mlp", "last_subject")]
    assert (
        f"{last['effect']:.3f} of probability around block {last['layer']:.0f}, where chance would show "
        f"{last['by_chance']:.3f}, and attention little ({peaks.loc[('attn', 'last_subject'), 'effect']:.3f})" in README
    )
    late, first = peaks.loc[("attn", "last_token")], peaks.loc[("mlp", "first_subject")]
    assert f"at the last token ({late['effect']:.3f} around block {late['layer']:.0f})" in README
    assert f"as its last does ({first['effect']:.3f} around block {first['layer']:.0f})" in README
    severed = (
        table("aie_severed").query("token_role == 'last_subject' and layer == @last['layer']").set_index("severed")
    )
    taken = (100 * severed["taken"] / severed["intact"]).round()
    assert f"severing the MLPs takes away {taken['mlp']:.0f} % of what the state after block" in README
    assert f"severing attention {taken['attn']:.0f} %" in README


def test_what_the_counterfact_table_shows() -> None:
    own = table("counterfact").query("chosen == 'best on other facts'").set_index("method")
    published = pd.read_csv(ROOT / "data" / "paper" / "counterfact_published.csv").query("model == 'GPT-2 XL'")
    there = published.set_index("method")[["PS", "NS"]] / 100
    for score in ("PS", "PM", "NS"):
        assert own.loc[["rome", "memit"], score].min() > own.loc[["ft", "ft_l"], score].max()
    assert all(own.loc["kn", f"{score}_low"] < 0.5 < own.loc["kn", f"{score}_high"] for score in ("ES", "PS", "NS"))
    assert f"(PS {own.loc['ft_l', 'PS']:.3f}, there {there.loc['ft_l', 'PS']:.3f})" in README
    assert (
        f"(NS {own.loc['ft', 'NS']:.3f} and {own.loc['ft_l', 'NS']:.3f}, there {there.loc['ft', 'NS']:.3f} and "
        f"{there.loc['ft_l', 'NS']:.3f})" in README
    )


def test_what_many_edits_at_once_do() -> None:
    own = table("scaling").set_index(["method", "n_edits"])
    fall = {method: own.loc[(method, 1), "S"] - own.loc[(method, 100), "S"] for method in ("memit", "rome", "ft")}
    assert fall["memit"] < fall["rome"] < fall["ft"]
    assert f"MEMIT's S falls least from 1 edit to 100 (by {fall['memit']:.3f})" in README
    rome = [own.loc[("rome", edits), "NS"] for edits in (1, 100)]
    assert f"further ({fall['rome']:.3f}), with its specificity (NS, from {rome[0]:.3f} to {rome[1]:.3f})" in README
    tuned = [own.loc[("ft", edits), "ES"] for edits in (1, 100)]
    assert f"(ES from {tuned[0]:.3f} to {tuned[1]:.3f})" in README
    assert own.loc[("ft", 100), "NS"] > own.loc[("ft", 1), "NS"]


def test_what_other_settings_change() -> None:
    own, count = table("robustness"), table("robustness_count").iloc[0]
    assert own["n_facts"].max() == 50
    tested = own.dropna(subset=["permutation_pvalue"])
    low = tested[tested["permutation_pvalue"] <= 0.05]
    slopes, costs = ([shown(row, of) for _, row in tested.iterrows()] for of in ("within", "regret"))
    assert f"of {len(tested)} regressions" in README
    assert (
        f"above 0 by its interval in {slopes.count(1)} and below in {slopes.count(-1)}, where chance would give about "
        f"{0.025 * len(tested):.0f} of each" in README
    )
    assert costs.count(-1) == 0
    assert f"the fixed one; in {costs.count(1)} it is shown to lose" in README
    tuned = low["method"].isin(["ft_1", "ft_5"]).sum()
    assert (
        f"{len(low)} of the {count['tests']:.0f} have p below 0.05 where {count['expected']:.0f} would by chance, "
        f"{tuned} of them fine-tuning's" in README
    )
    assert (
        f"of {count['joint_tests']:.0f} on the same facts {count['joint_rejected']:.0f} have, and traces dealt out "
        f"together reach {count['joint_high']:.0f} in one of twenty dealings (p {count['joint_pvalue']:.3f})" in README
    )
    assert count["rejected_holm"] == 0


def test_what_becomes_of_the_old_place() -> None:
    own = table("override").query("method == 'rome' and object == 'new' and edited == 'all'")
    assert own["n_facts"].max() == 20
    shares = ["mean", "low", "high", "chance", "excess_low", "excess_high", "others"]
    percent = own.set_index(["case", "quantity"])[shares].mul(100)
    new, old = percent.loc[("apart", "peak_at_edited")], percent.loc[("apart", "peak_at_old")]
    told = f"{new['low']:.0f} to {new['high']:.0f}; a place at random: {new['chance']:.0f} %"
    assert f"to the edited block in {new['mean']:.0f} % of edits ({told})" in README
    assert f"and to the old place in {old['mean']:.0f} % ({old['low']:.0f} to {old['high']:.0f})" in README
    assert new["excess_low"] > 0
    assert old["excess_low"] < 0 < old["excess_high"]
    kept = percent.loc[("above", "kept_unedited")]
    assert kept["excess_high"] < 0
    facts = own.query("case == 'above' and quantity == 'kept_unedited'")["n_facts"].item()
    assert f"where the old place is above it ({facts} facts), much of it passes through there" in README
    assert f"put back, {kept['mean']:.0f} % of the edit is left ({kept['low']:.0f} to {kept['high']:.0f})" in README
    assert f"of other windows above {kept['chance']:.0f} %, of other facts' old places {kept['others']:.0f} %" in README
