"""Prompts and the responses to them; equal content, equal hash."""

import hashlib
import json
from typing import Any

from django.db import models

from labeling.models.projects import Project

Messages = list[dict[str, str]]
"""A conversation: [{"role": "user" | "assistant" | "system", "content": text}, …]."""


def content_hash(*parts: Any) -> str:
    """SHA-256 of JSON values: equal content, equal hash."""
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def message_text(messages: Messages) -> str:
    """The words of a conversation, without roles."""
    return "\n\n".join(message["content"] for message in messages)


class Prompt(models.Model):
    """What a model was asked."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="prompts")
    messages = models.JSONField()
    content_hash = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "content_hash"], name="prompt_once_per_project"
            )
        ]

    def __str__(self) -> str:
        return message_text(self.messages)[:80]


class Response(models.Model):
    """What a model answered. `source` names the model and is never shown to raters."""

    prompt = models.ForeignKey(Prompt, models.CASCADE, related_name="responses")
    messages = models.JSONField()
    content_hash = models.CharField(max_length=64)
    source = models.CharField(max_length=200, blank=True)
    # The rater who wrote it as a better answer: a demonstration for supervised fine-tuning.
    author = models.ForeignKey(
        "Rater", models.SET_NULL, null=True, blank=True, related_name="demonstrations"
    )
    n_chars = models.PositiveIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["prompt", "content_hash", "source"],
                name="response_once_per_prompt_and_source",
            )
        ]

    def __str__(self) -> str:
        return message_text(self.messages)[:80]


class ResponseSet(models.Model):
    """K responses to one prompt that are ranked at once; its comparisons are all their pairs."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="response_sets")
    prompt = models.ForeignKey(Prompt, models.CASCADE, related_name="response_sets")
    content_hash = models.CharField(max_length=64)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "content_hash"], name="response_set_once_per_project"
            )
        ]

    def __str__(self) -> str:
        return f"set {self.pk} of responses to {self.prompt}"
