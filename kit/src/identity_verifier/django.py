"""The guard for Django: a middleware for everything, a decorator for views with demands of their own. Both sync and async.

MIDDLEWARE = ["identity_verifier.django.Middleware", ...]
IDENTITY_VERIFIER = {"issuer": "https://auth.example", "audience": "https://api.example"}
IDENTITY_PUBLIC_PATHS = ["/health"]

@guard(role="analyst", tenant="header")
def reports(request):
    return JsonResponse({"for": request.caller.subject})
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from identity_verifier.demands import Demand, TenantFrom, Words, demand
from identity_verifier.refusals import Refused, answer
from identity_verifier.verifier import Verifier

View = TypeVar("View", bound=Callable[..., Any])


@functools.cache
def the_verifier() -> Verifier:
    """The verifier of this process: `settings.IDENTITY_VERIFIER` itself, or one made of those keywords."""
    given = settings.IDENTITY_VERIFIER
    return given if isinstance(given, Verifier) else Verifier(**given)


class Middleware:
    """Lets nothing through without a good token, but for the exact paths of `settings.IDENTITY_PUBLIC_PATHS`."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        self._public = frozenset(getattr(settings, "IDENTITY_PUBLIC_PATHS", ()))
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Serve one request."""
        if self._is_async:
            return self._serve(request)
        if request.path not in self._public:
            try:
                request.caller = _verify(request, Demand())
            except Refused as refused:
                return refusal(request, refused)
        return self._get_response(request)

    async def _serve(self, request: HttpRequest) -> Any:
        if request.path not in self._public:
            try:
                request.caller = await _averify(request, Demand())
            except Refused as refused:
                return refusal(request, refused)
        return await self._get_response(request)


def guard(
    *, role: Words = None, scope: Words = None, tenant: TenantFrom = None, fresh: bool = False
) -> Callable[[View], View]:
    """Decorate a view: it is not called without a good token that meets the demand, with or without the middleware."""
    needed = demand(the_verifier(), role=role, scope=scope, tenant=tenant, fresh=fresh)

    def decorate(view: View) -> View:
        if iscoroutinefunction(view):

            @functools.wraps(view)
            async def guarded_async(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                try:
                    request.caller = await _averify(request, needed)
                except Refused as refused:
                    return refusal(request, refused)
                return await view(request, *args, **kwargs)

            return guarded_async  # type: ignore[return-value]

        @functools.wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            try:
                request.caller = _verify(request, needed)
            except Refused as refused:
                return refusal(request, refused)
            return view(request, *args, **kwargs)

        return guarded  # type: ignore[return-value]

    return decorate


def refusal(request: HttpRequest, refused: Refused) -> HttpResponse:
    """A refusal as a response."""
    said = answer(refused, request_id=request.headers.get("X-Request-Id"), where=f"{request.method} {request.path}")
    return HttpResponse(said.body, status=said.status, headers=dict(said.headers))


def _verify(request: HttpRequest, needed: Demand) -> Any:
    options = needed.options(request.headers.get("X-Tenant-Id"))
    return the_verifier().verify(request.headers.get("Authorization"), **options)


async def _averify(request: HttpRequest, needed: Demand) -> Any:
    options = needed.options(request.headers.get("X-Tenant-Id"))
    return await the_verifier().averify(request.headers.get("Authorization"), **options)
