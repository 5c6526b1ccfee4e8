"""English function words: articles, prepositions, pronouns, auxiliaries, conjunctions, determiners, particles.

A greedy continuation often begins with one ("... plays the" -> "guitar"). As an editing target such a word says
nothing of the fact, so `edit.reversal_target: first_content_word` passes over them and the report counts them. Closed
classes only: a word that can carry an answer (a noun, name, number, full verb, adjective) is not here.

And what people call an editing method.
"""

from __future__ import annotations

_WORDS = """
    a an the
    this that these those such
    some any no every each either neither both all another other
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves themselves who whom whose which what where when why how there here
    is are was were be been being am has have had having do does did doing
    will would shall should can could may might must
    and or but nor so yet if because although though while whereas unless until since than as whether
    of in on at by for with from to into onto about over under after before between among through during against
    without within across along around near off out up down upon toward towards per via like
    not also only just very too then now again ever never still already
"""
FUNCTION_WORDS = frozenset(_WORDS.split())


def is_function_word(word: str) -> bool:
    """Whether `word` is one of FUNCTION_WORDS, at the beginning of a sentence too; US and IT are none."""
    word = word.strip()
    return word.lower() in FUNCTION_WORDS and (len(word) == 1 or not word.isupper())


def content(text: str) -> str:
    """`text` from its first word on that is no function word; all of it where there is no other."""
    rest = text.strip()
    while rest:
        word, _, after = rest.partition(" ")
        if not is_function_word(word):
            return rest
        rest = after.strip()
    return text.strip()


def method_label(name: str) -> str:
    """An editing method as papers write it: rome is ROME, ft_l is FT+L, ft_1 is FT-1."""
    label = name.upper()
    return label.removesuffix("_L").replace("_", "-") + "+L" if label.endswith("_L") else label.replace("_", "-")
