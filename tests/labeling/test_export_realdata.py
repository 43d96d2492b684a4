"""A real project out and in again: the same counts, and the same votes for the statistics."""

import numpy as np
import pytest

from labeling.export import ExportReport, export_file, export_rows
from labeling.imports.importing import import_file
from labeling.models import Preference
from labeling.votes import votes_of
from tests.factories import ProjectFactory
from tests.real_data import llmfao, write_jsonl

pytestmark = [pytest.mark.realdata, pytest.mark.django_db]


def test_llmfao_comes_back_with_equal_counts_and_equal_votes(shared_data, tmp_path):
    first, second = ProjectFactory(), ProjectFactory()
    import_file(first, write_jsonl(llmfao(shared_data), tmp_path / "in.jsonl"))

    report = export_file(first, tmp_path / "out.jsonl.gz", "jsonl")
    back = import_file(second, tmp_path / "out.jsonl.gz")

    assert (report.rows, report.left_out) == (2139, {})
    assert (back.created, back.rejected, back.rejected_votes) == (2139, 0, 0)
    assert (back.preferences, back.verdicts) == (8931, 2 * 2139)
    assert said(second) == said(first)
    there, again = votes_of(first), votes_of(second)
    assert sorted(zip(there.raters, there.is_judge, strict=True)) == sorted(
        zip(again.raters, again.is_judge, strict=True)
    )
    assert there.n_comparisons == again.n_comparisons
    for name in ("item", "choice", "shown_first", "length_a", "length_b"):
        counts = [
            np.unique(getattr(votes, name), return_counts=True)[1] for votes in (there, again)
        ]
        assert np.array_equal(*counts), name


def said(project) -> list[tuple]:
    """Every answer with what was judged, without keys."""
    return sorted(
        Preference.objects.filter(comparison__project=project).values_list(
            "comparison__content_hash", "rater__kind", "rater__name", "choice", "shown_first"
        )
    )


def test_every_comparison_of_llmfao_is_a_pair_or_is_counted(shared_data, tmp_path):
    project = ProjectFactory()
    import_file(project, write_jsonl(llmfao(shared_data), tmp_path / "in.jsonl"))
    for aggregate in ("majority", "soft", "dawid-skene"):
        report = ExportReport()
        for _block in export_rows(project, "trl", "human", aggregate, report):
            pass
        assert report.rows + sum(report.left_out.values()) == 2139
        assert 1000 < report.rows < 2139
