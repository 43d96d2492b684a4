"""What a server tells of its model: which words are another model's, and which are not."""

import time

from judges.ml.answers import told_by_answer, told_by_list

LISTED = {"id": "tiny", "owned_by": "vllm", "root": "/models/one", "meta": {"n_params": 7}}


def test_another_model_is_told_by_what_belongs_to_it_alone():
    same = told_by_list(LISTED)

    assert len(same) == 1
    assert told_by_list(None) == ()
    for setting in ({"max_model_len": 9}, {"meta": {"n_params": 7, "n_ctx": 4096}}):
        assert told_by_list(LISTED | setting) == same
    for other in ({"root": "/models/two"}, {"meta": {"n_params": 8}}, {"id": "large"}):
        assert told_by_list(LISTED | other) != same


def test_the_moment_of_a_request_is_no_date_of_a_model():
    assert told_by_list(LISTED | {"created": int(time.time())}) == told_by_list(LISTED)
    first, second = ({"created": 1_700_000_000}, {"created": 1_710_000_000})
    assert told_by_list(LISTED | first) != told_by_list(LISTED | second)


def test_an_answer_tells_by_its_model_and_fingerprint_and_repeats_nothing():
    told = told_by_answer({"model": "gpt-x-2025", "system_fingerprint": "fp_secret"})

    assert told_by_answer({"choices": []}) == set()
    assert told == told_by_answer({"system_fingerprint": "fp_secret", "model": "gpt-x-2025"})
    assert told != told_by_answer({"model": "gpt-x-2025", "system_fingerprint": "fp_other"})
    assert "secret" not in str(told)
