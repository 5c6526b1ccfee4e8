"""The share of targets that are function words, and which words are."""

import pandas as pd
import pytest

from pipeline.analysis.targets import function_word_targets
from pipeline.words import content, is_function_word


def rows(problem: str, fact_id: str, target: str, status: str = "ok") -> list[dict[str, object]]:
    """A fact's rows at two layers and of two prompts."""
    same = {"problem": problem, "fact_id": fact_id, "target": target, "status": status}
    return [same | {"layer": layer, "prompt_index": i} for layer in (0, 1) for i in (0, 1)]


def test_facts_are_counted_once_and_those_dropped_not_at_all() -> None:
    edits = pd.DataFrame(
        rows("tracing_reversal", "a", "the")
        + rows("tracing_reversal", "b", "a")
        + rows("tracing_reversal", "c", "the", "failed: a reason")
        + rows("tracing_reversal", "d", "Paris")
        + rows("tracing_reversal", "e", "a", "dropped: under noise the model still says target_true")
        + rows("fact_erasure", "a", "Theodora")
    )
    table = function_word_targets(edits).set_index("problem")
    assert list(table.index) == ["tracing_reversal", "fact_erasure"]
    assert table.loc["tracing_reversal"].to_dict() == {
        "facts": 4, "function_words": 3, "share": 0.75, "examples": "the, a",
    }  # fmt: skip
    assert table.loc["fact_erasure", ["facts", "function_words", "examples"]].tolist() == [1, 0, ""]
    assert function_word_targets(edits.iloc[:0]).empty


@pytest.mark.parametrize("word", ["the", "A", "The", " of", "its", "not", "being"])
def test_function_words(word: str) -> None:
    assert is_function_word(word)


@pytest.mark.parametrize("word", ["Paris", "US", "IT", "guitar", "then-new", "", "theory", "German"])
def test_other_words(word: str) -> None:
    assert not is_function_word(word)


@pytest.mark.parametrize(
    ("text", "left"), [("the United States", "United States"), ("of the", "of the"), ("Paris", "Paris"), ("", "")]
)
def test_content_begins_at_the_first_other_word(text: str, left: str) -> None:
    assert content(text) == left
