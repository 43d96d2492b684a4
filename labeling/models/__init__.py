"""The tables, a file for each subject; Django and everybody else find them here."""

from labeling.models.answers import (
    Assignment,
    Preference,
    PreferenceQuerySet,
    Ranking,
    Rating,
    RepeatAnswer,
)
from labeling.models.comparisons import (
    Choice,
    Comparison,
    ComparisonQuerySet,
    Decision,
    Flag,
    JudgeRequest,
    random_key,
)
from labeling.models.history import Change, ReadOnly
from labeling.models.jobs import AgreementReport, ImportJob, Leaderboard, Worker
from labeling.models.notices import Notice
from labeling.models.programs import ApiToken, Delivery, IdempotentRequest, Webhook
from labeling.models.projects import Invitation, Membership, Project, default_tags
from labeling.models.raters import Rater
from labeling.models.sign_ins import SignInFailure
from labeling.models.texts import (
    Messages,
    Prompt,
    Response,
    ResponseSet,
    content_hash,
    message_text,
)

__all__ = [
    "AgreementReport",
    "ApiToken",
    "Assignment",
    "Change",
    "Choice",
    "Comparison",
    "ComparisonQuerySet",
    "Decision",
    "Delivery",
    "Flag",
    "IdempotentRequest",
    "ImportJob",
    "Invitation",
    "JudgeRequest",
    "Leaderboard",
    "Membership",
    "Messages",
    "Notice",
    "Preference",
    "PreferenceQuerySet",
    "Project",
    "Prompt",
    "Ranking",
    "Rater",
    "Rating",
    "ReadOnly",
    "RepeatAnswer",
    "Response",
    "ResponseSet",
    "SignInFailure",
    "Webhook",
    "Worker",
    "content_hash",
    "default_tags",
    "message_text",
    "random_key",
]
