"""Where two responses differ, word by word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.differences import MAX_WORDS, TooLong, word_difference


def test_words_that_one_text_alone_has_are_marked():
    left, right = word_difference("The cat  sat\ndown.", "The dog sat down.")
    assert left == [(False, "The "), (True, "cat  "), (False, "sat\ndown.")]
    assert right == [(False, "The "), (True, "dog "), (False, "sat down.")]


@given(st.text(alphabet="ab \n*é", max_size=60), st.text(alphabet="ab \n*é", max_size=60))
def test_no_letter_is_lost_and_what_is_not_marked_is_the_same_on_both_sides(left, right):
    parts = word_difference(left, right)
    for text, side in zip((left, right), parts, strict=True):
        assert "".join(part for _alone, part in side).strip() == text.strip()
    same_left, same_right = (
        "".join(part for alone, part in side if not alone).split() for side in parts
    )
    assert same_left == same_right


def test_a_text_that_would_take_too_long_is_refused():
    with pytest.raises(TooLong):
        word_difference("word " * (MAX_WORDS + 1), "word")
