"""Rows as columns of numbers, by PostgreSQL's COPY and by SQLite's cursor alike."""

import numpy as np
import pytest
from django.db import connection
from django.db.models import Value
from django.db.utils import ConnectionHandler

from config.settings import env
from labeling.columns import Seconds, code_of, columns_of, places_of, read_columns
from labeling.models import Preference, Rater
from tests.factories import PreferenceFactory

COUNTED = """
    WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < %s)
    SELECT n, n - 3, CASE WHEN n %% 2 = 0 THEN NULL ELSE n * 0.5 END, n %% 3 = 0 FROM counted
"""
KINDS = {"n": "i8", "less": "i4", "half": "f8", "third": "?"}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, db):
    if request.param == "sqlite":
        yield connection
        return
    url = request.getfixturevalue("postgresql_url")
    options = {"server_side_binding": True, "prepare_threshold": 3}  # as in config/settings.py
    handler = ConnectionHandler({"default": env.db_url_config(url) | {"OPTIONS": options}})
    yield handler["default"]
    handler["default"].close()


@pytest.mark.parametrize("n", [3, 20_000, 45_001])
def test_numbers_arrive_as_they_are_and_null_as_nan(database, n):
    found = columns_of(database, COUNTED, [n], KINDS)

    found = found[np.argsort(found["n"])]
    assert {name: kind.str.lstrip("<|") for name, (kind, *_) in found.dtype.fields.items()} == {
        "n": "i8", "less": "i4", "half": "f8", "third": "b1",
    }  # fmt: skip
    assert found["n"].tolist() == list(range(1, n + 1))
    assert found["less"].tolist() == list(range(-2, n - 2))
    assert np.isnan(found["half"]).tolist() == [k % 2 == 0 for k in range(1, n + 1)]
    assert found["half"][::2].tolist() == [k / 2 for k in range(1, n + 1, 2)]
    assert found["third"].tolist() == [k % 3 == 0 for k in range(1, n + 1)]


def test_nothing_is_an_empty_array_of_these_columns(database):
    found = columns_of(database, f"{COUNTED} WHERE n < 0", [1], KINDS)

    assert len(found) == 0
    assert list(found.dtype.names) == list(KINDS)


def test_texts_become_codes_and_moments_seconds(db):
    rater = PreferenceFactory(choice="b", created_at="2026-01-01T00:00:00.250Z").rater
    PreferenceFactory(choice="tie", created_at="1970-01-01T00:00:00Z")
    rows = Preference.objects.values_list(
        code_of("choice", {"a": 0, "b": 1}), Seconds("created_at"), Value(7), "rater_id"
    )

    found = read_columns(rows, {"choice": "i2", "at": "f8", "seven": "i4", "rater": "i8"})

    found = found[np.argsort(found["rater"])]
    assert found["choice"].tolist() == [1, -1]
    assert found["at"] == pytest.approx([1_767_225_600.25, 0], abs=0.001)
    assert found["seven"].tolist() == [7, 7]
    assert found["rater"].tolist() == [rater.pk, Rater.objects.latest("pk").pk]


def test_places_of_keys_that_are_there_and_of_others():
    place, known = places_of(np.array([2, 5, 9]), np.array([5, 9, 1, 10, 2]))

    assert known.tolist() == [True, True, False, False, True]
    assert place[known].tolist() == [1, 2, 0]
    assert not places_of(np.array([], dtype=int), np.array([5]))[1].any()
