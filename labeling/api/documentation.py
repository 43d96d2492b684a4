"""The API described: as OpenAPI for programs, and as a page for people, drawn from the same."""

import json
from functools import lru_cache
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from labeling.api.access import ANYONE, MEMBER, scope_of

REFUSALS = {
    "400": "Something in the request makes no sense; the body says what.",
    "401": "No token, or one that is unknown, expired or revoked.",
    "403": "The token's scope or the role in the project does not allow this.",
    "404": "No such thing, or a project that the caller cannot open.",
    "409": "It has changed meanwhile, or a request with this key is being answered.",
    "413": "The body is too large.",
    "415": "The body is of another kind than this route reads.",
    "422": "The Idempotency-Key was used for another request.",
    "429": "Too many requests; `Retry-After` says in how many seconds.",
}
NEEDS = {
    ANYONE: "signed in",
    MEMBER: "any role in the project",
    "label": "owner, lead or rater",
    "view": "owner, lead or viewer",
    "lead": "owner or lead",
}
REFUSAL_SCHEMA = {"type": "object", "additionalProperties": True}
MANY = ["Account", "Projects", "People", "Comparisons", "Labeling", "Answers", "Jobs"]
"""The order of the page; what is not named comes after, by the alphabet."""


class BearerScheme(OpenApiAuthenticationExtension):
    target_class = "labeling.api.access.BearerToken"
    name = "token"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "pf_…"}


class Route(AutoSchema):
    """What every operation has beside its own: who may call it, and how it refuses."""

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        operation = super().get_operation(*args, **kwargs)
        if operation is None:
            return None
        needed = self.view.allowed[self.method]
        operation["x-scope"] = str(scope_of(self.method, needed))
        operation["x-role"] = NEEDS[needed]
        # Every list says which pages exist; only some of the routes can answer some of these.
        for status, words in REFUSALS.items():
            if self.method == "GET" and status in ("409", "413", "422"):
                continue
            operation["responses"].setdefault(
                status,
                {
                    "description": words,
                    "content": {"application/json": {"schema": REFUSAL_SCHEMA}},
                },
            )
        if self.method == "POST":
            operation.setdefault("parameters", []).append(
                {
                    "in": "header",
                    "name": "Idempotency-Key",
                    "schema": {"type": "string", "maxLength": 200, "pattern": "^[!-~]*$"},
                    "description": "The same key again within a day: the same answer again.",
                }
            )
        return operation


@lru_cache(maxsize=1)
def openapi() -> dict[str, Any]:
    """The OpenAPI document; drawn once, because it does not change while the process lives."""
    return json.loads(json.dumps(SchemaGenerator().get_schema(request=None, public=True)))


class Schema(APIView):
    allowed = {"GET": ANYONE}

    @extend_schema(exclude=True, responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """The OpenAPI 3 document of all routes."""
        return Response(openapi())


@login_required
@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """Every route on one page."""
    return render(request, "labeling/api_docs.html", {"groups": groups(openapi())})


def groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The document by subject, with everything that the page shows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            shown = _operation(document, path, method, operation)
            found.setdefault(operation["tags"][0], []).append(shown)
    names = sorted(found, key=lambda name: (MANY.index(name) if name in MANY else 99, name))
    return [{"name": name, "operations": found[name]} for name in names]


def _operation(
    document: dict[str, Any], path: str, method: str, operation: dict[str, Any]
) -> dict[str, Any]:
    # Backticks mark code in the docstrings that these words are; here they would only disturb.
    words = operation.get("description", "").replace("`", "")
    summary, _, more = words.partition("\n\n")
    bodies = operation.get("requestBody", {}).get("content", {})
    kind, body = next(iter(bodies.items()), ("", {}))
    answers = [
        {"status": status, "schema": _json_schema(answer), "words": answer.get("description", "")}
        for status, answer in operation["responses"].items()
        if status < "300"
    ]
    schema = _resolved(document, body.get("schema", {}))
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "summary": summary,
        "more": more,
        "scope": operation["x-scope"],
        "role": operation["x-role"],
        "parameters": [
            parameter | {"kind": _kind(document, parameter["schema"])}
            for parameter in operation.get("parameters", [])
            if parameter["in"] == "query"
        ],
        "body_kind": kind,
        "fields": _fields(document, schema),
        "answers": [
            {
                "status": answer["status"],
                "example": _shown(_example(document, answer["schema"])),
            }
            for answer in answers
        ],
        "curl": _curl(document, path, method, kind, schema),
    }


def _curl(
    document: dict[str, Any], path: str, method: str, kind: str, schema: dict[str, Any]
) -> str:
    lines = [f"curl -X {method.upper()} $PREFLOOP{path}", '-H "Authorization: Bearer $TOKEN"']
    if kind == "multipart/form-data":
        lines.append("-F file=@comparisons.jsonl")
    elif kind:
        required = set(schema.get("required", [])) or set(schema.get("properties", {}))
        given = {
            name: _example(document, field)
            for name, field in schema.get("properties", {}).items()
            if name in required
        }
        lines.append('-H "Content-Type: application/json"')
        lines.append(f"-d '{json.dumps(given, ensure_ascii=False)}'")
    return " \\\n  ".join(lines)


def _json_schema(answer: dict[str, Any]) -> dict[str, Any]:
    return answer.get("content", {}).get("application/json", {}).get("schema", {})


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "kind": _kind(document, field),
            "is_required": name in required,
            "words": field.get("description", ""),
        }
        for name, field in schema.get("properties", {}).items()
    ]


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, where it is named by a reference."""
    if len(schema.get("allOf", [])) == 1:
        schema = schema["allOf"][0]
    if "$ref" in schema:
        return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _values(document: dict[str, Any], schema: dict[str, Any]) -> list[Any]:
    """The values that an enumeration takes; [] for anything else."""
    schema = _resolved(document, schema)
    inner = [value for part in schema.get("oneOf", []) for value in _values(document, part)]
    return inner or [value for value in schema.get("enum", []) if value not in ("", None)]


def _kind(document: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a value is, in few words."""
    values = _values(document, schema)
    if values:
        return " | ".join(map(str, values))
    schema = _resolved(document, schema)
    kind = (
        schema.get("format") if schema.get("format") == "date-time" else schema.get("type", "any")
    )
    if kind == "array":
        return f"list of {_kind(document, schema['items'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None and high < 2**31 - 1:
        return f"{kind}, {low:g} to {high:g}"
    return str(kind)


def _example(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> Any:
    """A value that the schema could describe."""
    values = _values(document, schema)
    if values:
        return values[0]
    schema = _resolved(document, schema)
    if "oneOf" in schema or depth > 6:
        return None
    kind = schema.get("type")
    if kind == "array":
        return [_example(document, schema["items"], depth + 1)]
    if kind == "object":
        return {
            name: _example(document, field, depth + 1)
            for name, field in schema.get("properties", {}).items()
        }
    if kind == "string":
        is_time = schema.get("format") == "date-time"
        return "2026-01-31T12:00:00Z" if is_time else "…"
    if "default" in schema:
        return schema["default"]
    return {"integer": 1, "number": 0.5, "boolean": True}.get(str(kind))


def _shown(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False, indent=1)
