"""Localizers against exact tracing: worked out by hand, and what is said where there is nothing to find."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from pipeline.analysis.agreement import AGREEMENT_COLUMNS, agreement_table, by_name, exact
from pipeline.analysis.profiles import Resampling
from tests.analysis.synthetic import make_run

COLUMNS = (  # the contract
    "localizer", "trace", "rho", "rho_low", "rho_high", "rho_dealt", "permutation_pvalue", "hit_1", "hit_1_dealt",
    "hit_2", "hit_2_dealt", "n_facts", "n_layers",
)  # fmt: skip
PLAN = Resampling(samples=200, permutations=199, confidence=0.95, seed=0)


def rows(values: np.ndarray, layers: list[int] | None = None) -> pd.DataFrame:
    """A localizer's table from values (facts, layers)."""
    layers = layers or list(range(values.shape[1]))
    return pd.DataFrame(
        [
            {"fact_id": f"f{f:02d}", "layer": layer, "value": values[f, i]}
            for f in range(len(values))
            for i, layer in enumerate(layers)
        ]
    )


def relations(of: str) -> "pd.Series[str]":
    return pd.Series(list(of), index=[f"f{f:02d}" for f in range(len(of))])


def test_every_number_by_hand() -> None:
    one = np.array([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [1.0, 3.0, 2.0, 0.0]])
    other = np.array([[1.0, 2.0, 4.0, 3.0], [0.0, 0.0, 1.0, 2.0], [5.0, 9.0, 6.0, 1.0]])
    found = agreement_table({"a": rows(one)}, {"t": rows(other)}, relations("rrs"), PLAN)
    assert tuple(found.columns) == AGREEMENT_COLUMNS == COLUMNS
    (row,) = found.to_dict("records")

    def rho(f: int, g: int) -> float:
        return float(spearmanr(one[f], other[g]).statistic)

    assert row["rho"] == pytest.approx((rho(0, 0) + rho(1, 1) + rho(2, 2)) / 3)
    # The third fact is alone in its relation: it gets the traces of both others.
    assert row["rho_dealt"] == pytest.approx((rho(0, 1) + rho(1, 0) + (rho(2, 0) + rho(2, 1)) / 2) / 3)
    # Largest at 3, 0 and 1; of the traces at 2, 3 and 1.
    assert [row["hit_1"], row["hit_2"]] == pytest.approx([2 / 3, 2 / 3])
    assert row["hit_1_dealt"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert row["hit_2_dealt"] == pytest.approx((1 + 1 + 1) / 3)
    assert (row["n_facts"], row["n_layers"]) == (3, 4)
    assert np.isnan(row["permutation_pvalue"])  # two ways to deal are too few
    assert row["rho_low"] <= row["rho"] <= row["rho_high"]


def test_only_layers_of_both_count_and_a_fact_without_ranks_is_left_out() -> None:
    values = np.random.default_rng(0).normal(size=(5, 4))
    flat, missing = values.copy(), values.copy()
    flat[0] = 0.5 + 1e-15 * np.arange(4)  # alike but for rounding
    missing[1, 2] = np.nan
    cases = {"same": rows(values[:, 1:], [1, 2, 3]), "flat": rows(flat), "missing": rows(missing)}
    found = agreement_table(cases, {"t": rows(values)}, relations("rrrrr"), PLAN).set_index("localizer")
    assert found["n_facts"].to_dict() == {"same": 5, "flat": 4, "missing": 4}
    assert found["n_layers"].to_dict() == {"same": 3, "flat": 4, "missing": 4}
    assert found["rho"].to_list() == pytest.approx([1, 1, 1])
    assert found["hit_1"].to_list() == [1, 1, 1]


def test_too_little_has_no_row() -> None:
    values = rows(np.random.default_rng(0).normal(size=(1, 4)))
    assert agreement_table({"a": values}, {"t": values}, relations("r"), PLAN).empty
    assert tuple(agreement_table({}, {"t": values}, relations("r"), PLAN).columns) == AGREEMENT_COLUMNS


def test_a_scale_of_its_own_changes_no_rank() -> None:
    values = np.random.default_rng(0).normal(size=(6, 8))
    scaled = rows(values * np.logspace(-20, 10, 6)[:, None])
    found = agreement_table({"a": scaled}, {"t": rows(values)}, relations("rrrsss"), PLAN)
    assert found["rho"].to_list() == pytest.approx([1])


def test_the_common_shape_alone_is_no_agreement_by_fact() -> None:
    """All facts share a bump, and a localizer knows just that: high rho, as high dealt, and p-values as chance has."""
    pvalues = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shape = np.exp(-(((np.arange(20) - 6) / 4) ** 2))
        tables = [rows(shape + rng.normal(0, 0.1, (12, 20))) for _ in range(2)]
        (row,) = agreement_table({"a": tables[0]}, {"t": tables[1]}, relations("rrrrssssuuuu"), PLAN).to_dict("records")
        pvalues.append(row["permutation_pvalue"])
        assert row["rho"] > 0.6
        assert abs(row["rho"] - row["rho_dealt"]) < 0.1
    assert 0.35 < np.mean(pvalues) < 0.65
    assert np.mean(np.array(pvalues) <= 0.05) <= 0.15


def test_what_is_of_the_fact_itself_is_found_also_where_it_disagrees() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(size=(12, 20))
    both = {"with": rows(own + rng.normal(0, 0.3, own.shape)), "against": rows(-own)}
    found = agreement_table(both, {"t": rows(own)}, relations("rrrrrrssssss"), PLAN).set_index("localizer")
    assert found.loc["with", "permutation_pvalue"] == pytest.approx(1 / 200)
    assert found.loc["with", "rho"] > 0.8
    assert found.loc["against", "rho"] == pytest.approx(-1)
    assert found.loc["against", "permutation_pvalue"] == 1


def test_tables_of_a_run() -> None:
    run = make_run(6, 10)
    traced = exact(run.trace, ["fraction", "effect"])
    assert list(traced) == ["trace_mlp_w5_fraction", "trace_mlp_w5_effect"]
    table = pd.concat([rows_.assign(localizer=name) for name, rows_ in traced.items()], ignore_index=True)
    again = by_name(table)
    assert list(again) == list(traced)
    kept = run.facts[run.facts["kept"]].set_index("fact_id")["relation"]
    found = agreement_table(again, traced, kept, PLAN)
    assert len(found) == 4
    assert found.loc[[0, 3], "rho"].to_list() == pytest.approx([1, 1])
    assert found["n_layers"].unique() == [10]
