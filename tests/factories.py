"""Rows for tests: every factory makes a valid one with what it needs."""

from functools import cache

import factory
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from factory.django import DjangoModelFactory

from labeling import models
from labeling.tokens import make_token


@cache
def hashed(password: str) -> str:
    """The real hash, made once: it is slow by design, and every test has people."""
    return make_password(password)


class UserFactory(DjangoModelFactory):
    class Meta:
        model = get_user_model()
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"person-{n}")
    password = factory.LazyFunction(lambda: hashed("correct horse"))


class ProjectFactory(DjangoModelFactory):
    class Meta:
        model = models.Project

    slug = factory.Sequence(lambda n: f"project-{n}")
    name = factory.Sequence(lambda n: f"Project {n}")
    # Chance stays out of tests that do not ask for it.
    audit_share = 0.0
    check_share = 0.0
    repeat_share = 0.0


class MembershipFactory(DjangoModelFactory):
    class Meta:
        model = models.Membership

    project = factory.SubFactory(ProjectFactory)
    user = factory.SubFactory(UserFactory)
    role = models.Membership.Role.LEAD


class PromptFactory(DjangoModelFactory):
    class Meta:
        model = models.Prompt

    project = factory.SubFactory(ProjectFactory)
    messages = factory.Sequence(lambda n: [{"role": "user", "content": f"Question {n}?"}])
    content_hash = factory.LazyAttribute(lambda o: models.content_hash(o.messages))


class ResponseFactory(DjangoModelFactory):
    class Meta:
        model = models.Response

    prompt = factory.SubFactory(PromptFactory)
    messages = factory.Sequence(lambda n: [{"role": "assistant", "content": f"Answer {n}."}])
    content_hash = factory.LazyAttribute(lambda o: models.content_hash(o.messages))
    n_chars = factory.LazyAttribute(lambda o: len(models.message_text(o.messages)))


class ComparisonFactory(DjangoModelFactory):
    class Meta:
        model = models.Comparison

    project = factory.SubFactory(ProjectFactory)
    prompt = factory.SubFactory(PromptFactory, project=factory.SelfAttribute("..project"))
    response_a = factory.SubFactory(ResponseFactory, prompt=factory.SelfAttribute("..prompt"))
    response_b = factory.SubFactory(ResponseFactory, prompt=factory.SelfAttribute("..prompt"))
    content_hash = factory.LazyAttribute(
        lambda o: models.content_hash(
            o.prompt.content_hash, o.response_a.content_hash, o.response_b.content_hash
        )
    )
    labels_wanted = 1
    open_places = factory.SelfAttribute("labels_wanted")


class RaterFactory(DjangoModelFactory):
    class Meta:
        model = models.Rater

    project = factory.SubFactory(ProjectFactory)
    name = factory.Sequence(lambda n: f"rater-{n}")


class PreferenceFactory(DjangoModelFactory):
    class Meta:
        model = models.Preference

    comparison = factory.SubFactory(ComparisonFactory)
    rater = factory.SubFactory(RaterFactory, project=factory.SelfAttribute("..comparison.project"))
    choice = models.Choice.A


def bearer(user, *scopes: str, days: int = 1) -> dict[str, str]:
    """Headers of a program with a token of this person; all scopes unless named."""
    _token, secret = make_token(user, "test", list(scopes) or models.ApiToken.Scope.values, days)
    return {"Authorization": f"Bearer {secret}"}
