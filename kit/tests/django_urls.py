"""The routes of the Django service; imported anew for each verifier."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import path

from identity_verifier.django import guard


def shown(request: HttpRequest) -> JsonResponse:
    caller: Any = request.caller  # type: ignore[attr-defined]
    return JsonResponse({"subject": caller.subject, "roles": sorted(caller.roles), "tenant": caller.tenant})


@guard(role="analyst", tenant="header")
def reports(request: HttpRequest) -> JsonResponse:
    return shown(request)


@guard(tenant="optional")
def plain(request: HttpRequest) -> JsonResponse:
    return shown(request)


@guard(scope=["read", "write"])
async def scoped(request: HttpRequest) -> JsonResponse:
    return shown(request)


@guard(fresh=True)
def fresh(request: HttpRequest) -> JsonResponse:
    return shown(request)


def health(_request: HttpRequest) -> JsonResponse:
    return JsonResponse({})


urlpatterns = [
    path("reports", reports),
    path("plain", plain),
    path("scoped", scoped),
    path("fresh", fresh),
    path("health", health),
    path("only-the-middleware", shown),
]
