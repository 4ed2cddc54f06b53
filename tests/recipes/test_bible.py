"""Rewriting: it is learnt beyond copying, verses do not meddle, words make verses again."""

from __future__ import annotations

import pytest

from retrograde.cli.recipes import RECIPES, compiled_step
from retrograde.metrics import bleu
from retrograde.recipes import bible
from retrograde.recipes.task import Saved
from tests.recipes import small


@pytest.fixture(scope="module")
def saved() -> Saved:
    """A model that has learnt some of the small verses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bible.data_set, "load", small.verses)
        values = small.settings(
            "bible", steps=120, width=24, batch=12, merges=100, warmup=10, learning_rate=0.02,
            test_verses=9,
        )  # fmt: skip
        training = RECIPES["bible"].build(values)
    step = compiled_step(training, values)
    for number in range(values["steps"]):
        step(**training.batches.at(number))
    return Saved(step.model, values, training.meta["noted"])


def test_rewriting_is_learnt_beyond_copying(saved: Saved) -> None:
    found = bible.Bible().evaluate(saved)
    copying = found.baselines["copying"]
    assert found.figures["BLEU"] > copying["BLEU"] + 10
    assert found.figures["word edits"] < 0.8 * copying["word edits"]
    verses = small.verses().test
    pairs = [(bible.words_of(v.kjv), bible.words_of(v.web)) for v in verses]
    assert copying["BLEU"] == bleu(*map(list, zip(*pairs, strict=True)))


def test_a_verse_does_not_depend_on_the_others(saved: Saved) -> None:
    verses = [bible.words_of(v.kjv) for v in small.verses().test[:4]]
    together = bible.rewritten(saved, verses, 2)
    assert together == [bible.rewritten(saved, [verse], 2)[0] for verse in verses]
    assert len({tuple(words) for words in together}) > 1


def test_words_make_the_verse_again() -> None:
    for verse, count in (
        ("And God said, Let there be light: and there was light.", 14),
        ('He said to her, "Your father-in-law isn\'t here; go!"', 14),
        ('"Who?" he asked (in Baal-zephon). "I," he said, "am Yahweh."', 23),
        ('which is good."', 5),
    ):
        words = bible.words_of(verse)
        assert len(words) == count and bible.text_of(words) == verse
