"""What a single value of the configuration must be, as annotated types.

Each complaint is a sentence about its key, and quotes no value: any value may hold a secret.
Conflicts between two keys are not checked here.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from proxy.rules.logins import has_control
from proxy.rules.targets import PathPattern


class PlainWord(str):
    """`yes`, `no`, `on` or `off` as written in the file: a word where there is a choice of words.

    YAML 1.1 reads them as true and false, YAML 1.2 as text; here the key decides.
    """

    __slots__ = ()


class EnvironmentText(str):
    """Text out of an environment variable: untyped, so it may stand for a number or a boolean."""

    __slots__ = ("variable",)
    variable: str

    @classmethod
    def of(cls, variable: str, value: str) -> Self:
        text = cls(value)
        text.variable = variable
        return text


def number(value: object) -> object:
    """Refuse a value that is not written as a number."""
    # pydantic would take true for 1 and "5" for 5.
    if isinstance(value, bool | str) and not isinstance(value, EnvironmentText):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic gathers only this kind
    return value


def _boolean(value: object) -> object:
    if not isinstance(value, bool | EnvironmentText | PlainWord):
        raise ValueError("must be true or false")  # noqa: TRY004 - likewise
    return value


def _file_name(value: object) -> object:
    # pydantic would take "" for the current directory, and what no file can be called for a name.
    if value == "" or (isinstance(value, str) and not _can_be_opened(value)):
        raise ValueError("must be a file name")
    return value


def _can_be_opened(name: str) -> bool:
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # a lone surrogate, which a YAML escape can write
        return False


def _matching(pattern: str, complaint: str) -> AfterValidator:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(complaint)
        return text

    return AfterValidator(check)


def _not_reserved(name: str) -> str:
    if name in {"other", "login", "none"}:
        raise ValueError("must not be other, login or none, which have a meaning of their own")
    return name


_LAST_PORT: Final = 65535
_HOST: Final = r"(?i:[a-z0-9._-]+|\[[0-9a-f:.]+\])"
_ORIGIN = re.compile(rf"(?i:https?)://(?P<user>[^\s/?#@]+@)?{_HOST}(?::[0-9]{{1,5}})?/?", re.ASCII)
_URL = re.compile(
    r"(?ai:https?)://(?:[^\s/?#@:\[\]]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?(?:/[^\s#]*)?"
)
_NODE: Final = rf"{_HOST}(?::[0-9]{{1,5}})?"
_STORE_URL = re.compile(
    r"memory://"
    rf"|rediss?://(?:[^\s/?#]*@)?{_NODE}(?:/[0-9]*)?"
    rf"|redis\+sentinel://(?:[^\s/?#]*@)?{_NODE}(?:,{_NODE})*/[^\s/?#]+(?:/[0-9]+)?",
    re.ASCII,
)


def _has_valid_hosts(url: str) -> bool:
    """True if the ports exist, and only IPv6 addresses are in brackets (RFC 3986 section 3.2.2)."""
    hosts = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    try:
        for address in re.findall(r"\[([^\]]*)\]", hosts):
            ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return all(0 < int(port) <= _LAST_PORT for port in re.findall(r":([0-9]+)(?=,|$)", hosts))


def _origin(text: str) -> str:
    parts = _ORIGIN.fullmatch(text)
    if parts is None or parts["user"] or not _has_valid_hosts(text):
        raise ValueError("must be http(s)://host[:port], without path, query or user")
    return text.removesuffix("/").lower()


def _url(text: str) -> str:
    if _URL.fullmatch(text) is None or not _has_valid_hosts(text):
        raise ValueError("must be an http(s) URL without user")
    return text


def _forward_proxy_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    if _ORIGIN.fullmatch(text) is None or not _has_valid_hosts(text):
        raise ValueError("must be http(s)://[user:password@]host[:port], without path or query")
    return url


def _store_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    where = text.rpartition("@")[2]
    if "?" in where:  # redis-py would obey it: ?ssl_cert_reqs=none
        raise ValueError("must have no query")
    if _STORE_URL.fullmatch(text) is None or not _has_valid_hosts(text):
        raise ValueError(
            "must be memory://, redis://host:port/db, rediss://host:port/db"
            " or redis+sentinel://host:port,host:port/service/db"
        )
    return url


def _secret(secret: SecretStr) -> SecretStr:
    # An environment variable that was filled from a file may end as its line does.
    text = secret.get_secret_value().rstrip("\r\n")
    if not text:
        raise ValueError("must not be empty")
    if has_control(text):
        raise ValueError("must not hold a control character")
    return SecretStr(text)


def _path_pattern(text: str) -> str:
    PathPattern.parse(text)
    return text


def key_hash(text: str) -> str:
    """Return the hash of a key in lower case; raises ValueError if it is not a hash."""
    digits = text.lower().removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{64}", digits) is None:
        raise ValueError("must be sha256: and 64 hexadecimal digits")
    return f"sha256:{digits}"


def is_loopback(host: str) -> bool:
    """True if a host name or an address leads to this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _column_value(value: object) -> object:
    if not isinstance(value, bool | str):
        raise ValueError("must be text, in quotes if need be, or true or false")  # noqa: TRY004
    return value


def _not_empty(items: tuple[Any, ...]) -> tuple[Any, ...]:
    # A minimal length would be counted without the items that are wrong: a second complaint.
    if not items:
        raise ValueError("must not be empty")
    return items


def _all_or_some(methods: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in methods and len(methods) > 1:
        raise ValueError("must be '*' alone or a list of methods")
    return methods


NotEmpty = AfterValidator(_not_empty)
# No number is without a bound: each of these is far above any use, and below what breaks a timer, a
# socket option (TCP_USER_TIMEOUT takes 2,147,483 s) or a parser.
_WEEK: Final = 604_800
Count = Annotated[int, Field(ge=1, le=10_000_000), BeforeValidator(number)]
Reserve = Annotated[int, Field(ge=0, le=10_000_000), BeforeValidator(number)]
HeaderSize = Annotated[int, Field(ge=1, le=1_048_576), BeforeValidator(number)]
BodySize = Annotated[int, Field(ge=1, le=1_073_741_824), BeforeValidator(number)]
TotalSize = Annotated[int, Field(ge=1, le=1_099_511_627_776), BeforeValidator(number)]
Port = Annotated[int, Field(ge=0, le=_LAST_PORT), BeforeValidator(number)]
PositiveSeconds = Annotated[float, Field(gt=0, le=_WEEK), BeforeValidator(number)]
Seconds = Annotated[float, Field(ge=0, le=_WEEK), BeforeValidator(number)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(number)]
Cost = Annotated[float, Field(ge=1, le=1000), BeforeValidator(number)]
Flag = Annotated[bool, BeforeValidator(_boolean)]
Filled = Annotated[str, Field(min_length=1)]
FileName = Annotated[Path, BeforeValidator(_file_name)]

Host = Annotated[str, _matching(r"[^\s/@]+", "must be an address or a host name")]
HeaderName = Annotated[
    str,
    _matching(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "must be the name of a header field"),
    AfterValidator(str.lower),
]
HostName = Annotated[
    str,
    _matching(r"[A-Za-z0-9._-]+", "must be a host name, without a port"),
    AfterValidator(str.lower),
]
Origin = Annotated[str, AfterValidator(_origin)]
Url = Annotated[str, AfterValidator(_url)]
ForwardProxyUrl = Annotated[SecretStr, AfterValidator(_forward_proxy_url)]
StoreUrl = Annotated[SecretStr, AfterValidator(_store_url)]
Secret = Annotated[SecretStr, Field(min_length=1), AfterValidator(_secret)]

Name = Annotated[
    str,
    _matching(r"[A-Za-z0-9._-]{1,64}", "must be 1 to 64 letters, digits, '.', '_' or '-'"),
    AfterValidator(_not_reserved),
]
# RFC 6749 appendix A.1 and section 3.3.
ClientId = Annotated[str, _matching(r"[ -~]+", "must be printable ASCII, and not empty")]
Scope = Annotated[str, _matching(r"[!#-\[\]-~]+", "must be one scope, without spaces or quotes")]
KeyHash = Annotated[str, AfterValidator(key_hash)]

ApiCall = Annotated[str, _matching(r"/(?!/)[!-\"$-~]*", "must be a path, like /api/v2/tokens/me")]
Prefix = Annotated[
    str,
    _matching(
        r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)*",
        "must be empty, or start with a slash and not end with one, like /gc",
    ),
]
Pattern = Annotated[str, AfterValidator(_path_pattern)]
Column = Annotated[
    str,
    _matching(r"[a-z][a-z0-9_]{0,79}", "must be a column: lower-case letters, digits and '_'"),
]
ColumnValue = Annotated[
    Annotated[str, Field(max_length=4_000)] | bool, BeforeValidator(_column_value)
]
Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Methods = Annotated[tuple[Literal["*", Method], ...], NotEmpty, AfterValidator(_all_or_some)]
