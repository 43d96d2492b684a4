"""Comparisons that judges answer before people do.

Whoever makes comparisons leaves a request here; the app of the judges takes it up, and knows
whether a certificate is in force. So neither has to know the other.
"""

from collections.abc import Sequence

from labeling.models import JudgeRequest, Project


def ask_judges_first(project: Project, comparisons: Sequence[int]) -> JudgeRequest | None:
    """Have the project's judge asked about these, where its answers may stand alone; None where
    people decide everything."""
    if not comparisons or not project.certificate_in_force:
        return None
    return JudgeRequest.objects.create(project=project, comparisons=sorted(comparisons))
