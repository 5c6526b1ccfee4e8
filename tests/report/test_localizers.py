"""What the page says of cheaper localizers, and that it says nothing where there are none."""

from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.analysis.agreement import AGREEMENT_COLUMNS, agreement_table
from pipeline.analysis.layers import LAYER_COLUMNS, layer_table, traces
from pipeline.report import localizers, sources
from pipeline.tables import write_csv
from tests.analysis.synthetic import make_run
from tests.report.made import PLAN, scored


def tables(n_facts: int = 12) -> tuple[pd.DataFrame, pd.DataFrame]:
    """localizers.csv and layers.csv of a made-up run with two localizers: one near its trace, one of noise."""
    run = make_run(n_facts, 10)
    scores = scored(run)
    traced = traces(scores, ["fraction"])
    (exact,) = traced.values()
    rng = np.random.default_rng(0)
    found = {
        "attribution_patching_w5": exact.assign(value=exact["value"] + rng.normal(0, 0.05, len(exact))),
        "gradient_norm": exact.assign(value=rng.uniform(size=len(exact))),
    }
    relation = run.facts[run.facts["kept"]].set_index("fact_id")["relation"]
    layers = layer_table(scores, ["rewrite", "overall"], traced | found, PLAN, keep_null_layers=False)
    return agreement_table(found, traced, relation, PLAN), layers


def test_the_section_is_made_of_the_numbers() -> None:
    agreement, layers = tables()
    (section,) = localizers.sections(agreement, layers, 0.95)
    best, noise = agreement.to_dict("records")
    assert best["rho"] > noise["rho"]
    assert section.paragraphs[0] == (
        "Of the cheaper localizers, attribution patching w5 comes closest to exact tracing: over layers, the mean rank "
        f"correlation of 12 facts is {best['rho']:.2f}, and {best['rho_dealt']:.2f} with the trace of another fact of "
        f"the same relation; that the own trace fits no better has p = {best['permutation_pvalue']:.4f}."
    )
    agree, where = section.tables
    assert [row[0] for row in agree.rows] == ["attribution patching w5", "gradient norm"]
    assert agree.rows[0][2] == f"{best['rho']:.2f}"  # 12 facts have no interval
    assert agree.rows[0][4] == f"{best['permutation_pvalue']:.4f}"
    assert agree.rows[0][5] == f"{best['hit_1']:.2f} ({best['hit_1_dealt']:.2f})"
    assert "no interval is given" in agree.note
    # Of the rewrite score alone.
    named = ["trace mlp w5 fraction", "attribution patching w5", "gradient norm"]
    assert [row[0] for row in where.rows] == [*named, "fixed layer", "random layer"]
    assert where.head[2] == "error injection"
    at = layers[(layers["score"] == "rewrite") & (layers["problem"] == "error_injection")]
    mean = at.set_index(["localizer", "choice"])["mean"]
    noise_mean = mean["gradient_norm"]
    assert where.rows[2][:3] == ["gradient norm", "ROME", f"{noise_mean['traced']:.3f} ({noise_mean['dealt']:.3f})"]
    assert [row[2] for row in where.rows[3:]] == [f"{noise_mean[choice]:.3f}" for choice in ("fixed", "random")]
    assert all(len(row) == len(table.head) for table in section.tables for row in table.rows)
    (plot,) = section.plots
    assert [label.get_text() for label in plot.figure.axes[0].get_yticklabels()] == [row[0] for row in agree.rows]


def test_many_facts_have_intervals() -> None:
    agreement, layers = tables()
    agreement, layers = agreement.assign(n_facts=40), layers.assign(n_facts=40)
    (section,) = localizers.sections(agreement, layers, 0.9)
    row = agreement.iloc[0]
    assert section.tables[0].rows[0][2] == f"{row['rho']:.2f} ({row['rho_low']:.2f} to {row['rho_high']:.2f})"
    assert "90% interval" in section.tables[0].note
    assert "bars 90% intervals" in section.plots[0].caption


def test_few_facts_have_no_p() -> None:
    agreement, layers = tables()
    (section,) = localizers.sections(agreement.assign(n_facts=9), layers, 0.95)
    assert [row[4] for row in section.tables[0].rows] == ["–", "–"]
    assert section.paragraphs[0].endswith("; of so few facts it may be chance.")


def test_without_localizers_there_is_no_section() -> None:
    _, layers = tables()
    of_tracing = localizers.of_tracing(layers)
    assert set(of_tracing["localizer"]) == {"trace_mlp_w5_fraction"}
    none = pd.DataFrame(columns=list(AGREEMENT_COLUMNS))
    assert localizers.sections(none, of_tracing, 0.95) == []
    assert localizers.sections(none, pd.DataFrame(columns=list(LAYER_COLUMNS)), 0.95) == []


def test_what_was_written_is_read(tmp_path: Path) -> None:
    agreement, _ = tables()
    write_csv(agreement, tmp_path / "localizers.csv")
    found = sources.read_localizers(tmp_path / "localizers.csv")
    pd.testing.assert_frame_equal(found, agreement, rtol=1e-9, check_dtype=False)
    none = pd.DataFrame(columns=list(AGREEMENT_COLUMNS))
    write_csv(none, tmp_path / "none.csv")
    empty = pd.DataFrame(columns=list(LAYER_COLUMNS))
    write_csv(empty, tmp_path / "layers.csv")
    read = sources.read_localizers(tmp_path / "none.csv"), sources.read_layers(tmp_path / "layers.csv")
    assert localizers.sections(*read, 0.95) == []
