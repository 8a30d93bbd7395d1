"""Who may ask: API keys for callers, a separate token for administrators.

Without keys configured anyone who reaches the port may ask for recommendations; without a token nobody may administer.
"""

from __future__ import annotations

from hmac import compare_digest

from starlette.datastructures import Headers

from service.errors import Forbidden, Unauthorized
from service.settings import AccessSettings


class Access:
    """Checks a request's credentials: `Authorization: Bearer <secret>`, or `X-API-Key: <secret>`."""

    def __init__(self, settings: AccessSettings) -> None:
        self._keys = [key.get_secret_value().encode() for key in settings.api_keys]
        self._admin = settings.admin_token.get_secret_value().encode() if settings.admin_token else None

    def check(self, headers: Headers) -> None:
        """Return if the caller may ask. Raises Unauthorized."""
        if not self._keys:
            return
        offered = _offered(headers)
        # Every key is compared, so that the time taken tells nothing about which one came close.
        if not sum([compare_digest(one, key) for one in offered for key in self._keys]):
            raise Unauthorized("send one of the service's API keys as `Authorization: Bearer KEY` or `X-API-Key: KEY`")

    def check_admin(self, headers: Headers) -> None:
        """Return if the caller may administer. Raises Forbidden if nobody may, Unauthorized if not this one."""
        if self._admin is None:
            raise Forbidden("administration is off: start the service with SCOTER_ACCESS__ADMIN_TOKEN to allow it")
        if not sum([compare_digest(one, self._admin) for one in _offered(headers)]):
            raise Unauthorized("send the service's admin token as `Authorization: Bearer TOKEN`")


def _offered(headers: Headers) -> list[bytes]:
    """Both, if there are two: a gateway may put a token of its own beside the caller's key. An empty one is none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    offered = [headers.get("x-api-key", ""), secret.strip() if scheme.lower() == "bearer" else ""]
    return [one.encode("latin-1") for one in offered if one]
