"""The section on average indirect effects, on made-up traces whose effects are known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.analysis import aie as analysis
from pipeline.analysis.profiles import Resampling
from pipeline.errors import UserError
from pipeline.report import aie
from pipeline.report.extras import EXTRAS
from pipeline.report.section import Section
from pipeline.tables import write_csv

PLAN = Resampling(samples=100, permutations=200, confidence=0.9, seed=0)
BLOCKS, PEAK = 12, 4
TOKENS = ("before_subject", *analysis.ROLES)
HEIGHTS = {"hidden": 0.4, "mlp": 0.3, "attn": 0.05}


def made_maps(
    n_facts: int, severed: tuple[str, ...] = ("mlp", "attn"), windows: tuple[int, ...] = (5, 10)
) -> pd.DataFrame:
    """Effects with a bump around block PEAK at the last subject token; severing the MLPs takes half of it there, and
    severing attention nothing.
    """
    rng, layer = np.random.default_rng(0), np.arange(BLOCKS)
    bump = np.exp(-((layer - PEAK) ** 2) / 8)
    variants = [("hidden", 1, "none"), *((module, w, "none") for w in windows for module in ("mlp", "attn"))]
    variants += [("hidden", 1, name) for name in severed]
    columns = []
    for fact in range(n_facts):
        noise = 0.02 * rng.normal(size=BLOCKS)
        tokens = TOKENS if fact else tuple(role for role in TOKENS if role != "middle_subject")
        for module, window, held in variants:
            for token, role in enumerate(tokens):
                high = HEIGHTS[module] * {"last_subject": 1, "last_token": 0.5, "before_subject": 0}.get(role, 0.1)
                effect = (high * bump if held != "mlp" else high / 2 * bump) + (noise if high else 0)
                columns.append((f"f{fact:03d}", module, window, held, token, role, effect))
    frame = pd.DataFrame(
        columns, columns=["fact_id", "module", "window", "severed", "token_index", "token_role", "effect"]
    )
    frame["layer"] = [list(layer)] * len(frame)
    frame = frame.explode(["layer", "effect"], ignore_index=True).astype({"layer": int, "effect": float})
    return frame.assign(token="x", p_clean=0.7, p_corrupt=0.2, p_restored=0.2 + frame["effect"])


def drawn(folder: Path, maps: pd.DataFrame) -> Section:
    for name, table in analysis.TABLES.items():
        write_csv(table(maps, PLAN), folder / name)
    return aie.section(folder, folder, 0.95)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Section:
    return drawn(tmp_path_factory.mktemp("few"), made_maps(10))


def test_the_paragraphs_are_made_from_the_numbers(few: Section) -> None:
    total, peak, held = few.paragraphs
    assert "from 0.700 to 0.200, an average total effect (ATE) of 0.500: means over 10 facts" in total
    assert "of which it lowers 10." in total
    assert f"the MLPs of 5 layers bring back the most around layer {PEAK}, 0.29" in peak
    assert "the largest of 12 means on these same 10 facts, which flatters it" in peak
    assert "Were there nothing to find" in peak
    assert f"The hidden state after layer {PEAK} brings back 0.393 there" in held
    assert "with its MLP severed 0.193 (0.200, 51% of it, is lost)" in held
    assert "and with its attention severed 0.393 (0.000, 0% of it, is lost)" in held
    assert "Were that module to take no part, nothing would be lost." in held


def test_intervals_are_told_of_enough_facts_alone(few: Section, tmp_path: Path) -> None:
    many = drawn(tmp_path, made_maps(40))
    assert "the interval is of 90%" in many.paragraphs[0]  # that of the tables, not of today's settings
    assert "of 0.500 (0.500 to 0.500)" in many.paragraphs[0]
    assert "(0.200 (0.200 to 0.200), 50% of it, is lost)" in many.paragraphs[2]
    assert "interval" not in few.paragraphs[0]
    for section, said in ((few, "no bands"), (many, "bands 90% intervals from resampled facts")):
        assert all(said in plot.caption for plot in section.plots[1:])
    bands = [len(plot.figure.axes[0].collections) for plot in many.plots[1:]]
    assert bands == [5, 3]


def test_the_heatmaps_show_the_means(few: Section) -> None:
    axes = [ax for ax in few.plots[0].figure.axes if ax.get_title()]
    assert len(few.plots[0].figure.axes) == len(axes) + 2  # an empty place, and the scale
    assert [ax.get_title() for ax in axes] == [
        "hidden state, 1 layer", "MLP, 5 layers", "attention, 5 layers", "MLP, 10 layers", "attention, 10 layers",
    ]  # fmt: skip
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(aie._ROLES.values())
    maps = made_maps(10)
    means = analysis.aie_table(maps, PLAN).query("severed == 'none'")
    for ax, (_, group) in zip(axes, means.groupby(["module", "window"], sort=False), strict=True):
        expected = group.pivot(index="token_role", columns="layer", values="effect").reindex(analysis.ROLES)
        shown = ax.collections[0].get_array()
        assert shown is not None
        assert np.asarray(shown).reshape(expected.shape) == pytest.approx(expected.to_numpy(), rel=1e-6)
    caption = few.plots[0].caption
    assert "first subject token 10 facts, middle subject tokens 9 facts" in caption
    assert "averaged first, then facts" in caption


def test_the_lines_are_those_of_the_tables(few: Section) -> None:
    maps = made_maps(10)
    lines = {line.get_label(): line.get_ydata() for line in few.plots[2].figure.axes[0].lines}
    means = maps[(maps["module"] == "hidden") & (maps["token_role"] == "last_subject")]
    by = means.groupby(["severed", "layer"])["effect"].mean()
    for label, name in (("hidden state restored", "none"), ("MLP severed", "mlp"), ("attention severed", "attn")):
        assert lines[label] == pytest.approx(by[name].to_numpy(), rel=1e-6)
    titles = [ax.get_title() for ax in few.plots[1].figure.axes]
    assert titles == ["last subject token", "last token"]


def test_the_table_has_both_tokens_and_the_published_numbers(few: Section) -> None:
    (table,) = few.tables
    assert [(row[0], row[1], row[2]) for row in table.rows][:5] == [
        ("last subject token", "hidden state", "1"), ("last subject token", "MLP", "5"),
        ("last subject token", "attention", "5"), ("last subject token", "MLP", "10"),
        ("last subject token", "attention", "10"),
    ]  # fmt: skip
    assert len(table.rows) == 10
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert "ATE 0.186" in table.note


def test_a_run_without_severed_models_draws_none_of_them(tmp_path: Path) -> None:
    section = drawn(tmp_path, made_maps(3, severed=(), windows=(1,)))
    assert [plot.name for plot in section.plots] == ["aie_heatmaps", "aie_lines"]
    assert len(section.paragraphs) == 2
    for plot in section.plots:
        for path in plot.save(tmp_path, 60):
            assert path.stat().st_size > 2000


def test_one_fact_alone_makes_a_section(tmp_path: Path) -> None:
    section = drawn(tmp_path, made_maps(1))
    assert "one fact leaves no other to choose it on" in section.paragraphs[1]
    assert "means over 1 fact," in section.paragraphs[0]


def test_what_is_missing_or_broken_is_said(tmp_path: Path) -> None:
    drawn(tmp_path, made_maps(3))
    (tmp_path / "ate.csv").write_text("p_clean\n0.5\n")
    with pytest.raises(UserError, match=r"ate\.csv: has no column p_corrupt; delete it and run make maps again"):
        aie.section(tmp_path, tmp_path, 0.95)
    (tmp_path / "aie.csv").unlink()
    with pytest.raises(UserError, match=r"aie\.csv: no such file; run make maps, which makes it"):
        aie.section(tmp_path, tmp_path, 0.95)


def test_the_page_knows_it() -> None:
    assert [extra.draw for extra in EXTRAS if extra.name == "maps"] == [aie.section]
