"""reports/report.md: the sentences, tables and figures of the page, and nothing of the tables' texts as markup."""

import re
from pathlib import Path

import pytest

from pipeline.report import markdown
from pipeline.report import page as report
from pipeline.tables import write_csv
from tests.report.made import Made, Page


@pytest.fixture(scope="module")
def reports(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with report.md, regressions.csv and figures/."""
    folder: Path = tmp_path_factory.mktemp("reports")
    write_csv(made.regressions, folder / "regressions.csv")
    pictures = report.save(made.document.plots, folder / "figures", 50)
    (folder / "report.md").write_text(markdown.render(made.document, pictures, folder), encoding="utf-8")
    return folder


def test_it_says_what_the_page_says(made: Made, reports: Path) -> None:
    text = (reports / "report.md").read_text("utf-8")
    plain = re.sub(r"\s+", " ", re.sub(r"\\(.)", r"\1", text.replace("**", "")))
    page = re.sub(r"\s+", " ", Page(made.page).text)
    for section in made.document.all:
        assert f"\n## {section.title}\n" in text
        for said in (*section.paragraphs, *section.points):
            told = re.sub(r"\s+", " ", said.replace("**", ""))
            assert told in plain
            assert told in page
        for table in section.tables:
            for row in table.rows:
                assert f"| {' | '.join(row)} |" in plain
    assert [path for path in re.findall(r"!\[.*?\]\((.*?)\)", text) if not (reports / path).is_file()] == []
    assert len(re.findall(r"!\[", text)) == len(made.document.plots) == 5
    assert "Data: [regressions.csv](regressions.csv)." in text
    assert "reports/layers.csv has the numbers." in text


def test_its_tables_are_whole_and_its_links_lead_somewhere(made: Made, reports: Path) -> None:
    text = (reports / "report.md").read_text("utf-8")
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(blocks) == sum(len(section.tables) for section in made.document.all)
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    anchors = {markdown.slug(title) for title in re.findall(r"^## (.*)$", text, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#(.*?)\)", text)) == anchors
    headings = re.findall(r"^#+ .*$", text, flags=re.MULTILINE)
    assert len(headings) == len(set(headings))


def test_no_name_is_markup(reports: Path) -> None:
    text = (reports / "report.md").read_text("utf-8")
    assert "<" not in text.replace("\\<", "")
    assert markdown._text("a|b <b> [x](y) `c` $d$\n# e") == r"a\|b \<b\> \[x\](y) \`c\` \$d\$ \# e"
