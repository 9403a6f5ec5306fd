"""Every error the stand-in answers, in the vendor's two shapes: the API's and the login server's.

Values only. The API's shape is its `ErrorBody`, and a 429 has been uniform since 2021-11-10
(https://developer.genesys.cloud/forum/t/normalized-platform-api-429-responses/12028). The login
server's is that of RFC 6749 section 5.2 with the vendor's `description` beside
`error_description`; it throttles with a 400
(https://github.com/MyPureCloud/terraform-provider-genesyscloud/pull/1004).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

_BEARER = {"WWW-Authenticate": 'Bearer realm="simulator"'}
_BASIC = {"WWW-Authenticate": 'Basic realm="simulator"'}


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiError:
    """An error of the API, short of the id of the request it answers."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, context_id: str) -> dict[str, object]:
        return {
            "message": self.message,
            "code": self.code,
            "status": self.status,
            "contextId": context_id,
            "details": [],
            "errors": [],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginError:
    """An error of the token endpoint."""

    status: int
    error: str
    description: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, object]:
        return {
            "error": self.error,
            "description": self.description,
            "error_description": self.description,
        }


NO_CREDENTIALS = ApiError(
    status=401,
    code="authentication.required",
    message="No authentication bearer token specified in authorization header.",
    headers=_BEARER,
)
BAD_CREDENTIALS = ApiError(
    status=401, code="bad.credentials", message="Invalid login credentials.", headers=_BEARER
)
CREDENTIALS_EXPIRED = ApiError(
    status=401,
    code="credentials.expired",
    message="The authentication token has expired.",
    headers=_BEARER,
)
NOT_FOUND = ApiError(status=404, code="not.found", message="The requested resource was not found.")
METHOD_NOT_ALLOWED = ApiError(
    status=405,
    code="method.not.allowed",
    message="The requested method is not supported by this resource.",
)
BAD_JSON = ApiError(
    status=400,
    code="bad.request",
    message="The request could not be understood by the server due to malformed syntax.",
)
TOO_LARGE = ApiError(
    status=413, code="request.entity.too.large", message="The request is over the size limit."
)
LOGIN_THROTTLED = LoginError(
    status=400,
    error="invalid_request",
    description="rate limit exceeded; too many token requests for this client",
)


def missing_permissions(*names: str) -> ApiError:
    message = (
        "Unable to perform the requested action. "
        f"You are missing the following permission(s): {', '.join(names)}"
    )
    return ApiError(status=403, code="missing.permissions", message=message)


def rate_limited(seconds: int) -> ApiError:
    return ApiError(
        status=429,
        code="too.many.requests.retry.after",
        message=f"Rate limit exceeded the maximum. Retry the request in [{seconds}] seconds",
        headers={"Retry-After": str(seconds)},
    )


def invalid_client(description: str, *, by_header: bool) -> LoginError:
    """Refuse a client: 401 and a challenge if it used the Authorization field, else 400."""
    return LoginError(
        status=401 if by_header else 400,
        error="invalid_client",
        description=description,
        headers=_BASIC if by_header else {},
    )


def invalid_login(description: str, *, error: str = "invalid_request") -> LoginError:
    return LoginError(status=400, error=error, description=description)
