"""API keys: `ts_<id>_<secret>`, of which a file holds the ids and salted hashes.

    keys:
    - id: 5b0c9d41f2aa
      name: shop
      scopes: [predict, feedback]
      created: '2026-11-26T11:40:12+00:00'
      expires: '2027-02-24T11:40:12+00:00'
      salt: 0f6a…                          # 16 bytes, hex
      hash: 91c3…                          # BLAKE2b of the secret, keyed with the salt, 32 bytes, hex

The hash is last, so that of a file that was cut off no key is read without its expiry.

A secret is 256 random bits: nobody guesses one from its hash, however fast that is. A slow hash is for passwords, and
would cost more than a prediction.
"""

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from tabserve.access.callers import SCOPES, Caller

_PREFIX = b"ts"

_HASH_BYTES = 32
_SALT_BYTES = 16
_SECRET_BYTES = 32
_ID_BYTES = 6  # told, not secret: long enough that no two keys of a file get the same

# Stands in logs; and is no address, whose requests are counted too.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,63}$")]


class BadKeysError(ValueError):
    """A file of keys, or a change of it, that cannot be used; the message says what was expected, came, and to do."""


class ApiKey(BaseModel):
    """One key, without its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
    name: Name
    scopes: tuple[str, ...] = Field(min_length=1)
    created: AwareDatetime
    expires: AwareDatetime | None = None
    salt: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] = Field(repr=False)
    hash: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(repr=False)

    @field_validator("scopes")
    @classmethod
    def _are_known(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(scopes) - set(SCOPES)):
            raise ValueError(f"{', '.join(unknown)} is no scope; expected some of {', '.join(SCOPES)}")
        return tuple(scope for scope in SCOPES if scope in scopes)

    @property
    def is_expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)

    @property
    def caller(self) -> Caller:
        return Caller(self.name, frozenset(self.scopes), self.expires.timestamp() if self.expires else None)


class KeyFile(BaseModel):
    """The keys of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...] = ()

    @field_validator("keys")
    @classmethod
    def _are_distinct(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len({key.id for key in keys}) < len(keys):
            raise ValueError("two keys have the same id")
        return keys

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Reads YAML, or JSON, which is YAML.

        Raises:
            BadKeysError: for what is no file of keys.
        """
        try:
            return cls.model_validate(yaml.safe_load(content))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            raise BadKeysError(f"it is no YAML{f', see line {mark.line + 1}' if mark else ''}") from None
        except ValidationError as error:
            raise BadKeysError("; ".join(map(_fault, error.errors(include_url=False, include_input=False)))) from None

    def as_yaml(self) -> str:
        return "# Written by `tabserve keys`.\n" + yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def created(self, name: str, scopes: tuple[str, ...], lasts: timedelta | None = None) -> tuple[Self, ApiKey, str]:
        """The keys with one more, that key, and what its holder has to show, which is nowhere else.

        Raises:
            BadKeysError: for a name or scopes that cannot be.
        """
        secret, salt = secrets.token_urlsafe(_SECRET_BYTES), secrets.token_bytes(_SALT_BYTES)
        now = datetime.now(UTC).replace(microsecond=0)
        try:
            key = ApiKey(
                id=secrets.token_hex(_ID_BYTES),
                name=name,
                scopes=scopes,
                salt=salt.hex(),
                hash=_hash(secret.encode(), salt).hex(),
                created=now,
                expires=now + lasts if lasts else None,
            )
        except ValidationError as error:
            raise BadKeysError("; ".join(map(_fault, error.errors(include_url=False, include_input=False)))) from None
        return self.model_copy(update={"keys": (*self.keys, key)}), key, f"{_PREFIX.decode()}_{key.id}_{secret}"

    def revoked(self, name_or_id: str) -> tuple[Self, ApiKey]:
        """The keys without one, and that key.

        Raises:
            BadKeysError: where there is none, or where several have the name.
        """
        found = [key for key in self.keys if name_or_id in (key.id, key.name)]
        if not found:
            raise BadKeysError(f"no key has the name or the id {name_or_id!r}, see `tabserve keys list`")
        if len(found) > 1:
            ids = ", ".join(key.id for key in found)
            raise BadKeysError(f"{len(found)} keys have the name {name_or_id!r}: say which, by its id ({ids})")
        return self.model_copy(update={"keys": tuple(key for key in self.keys if key is not found[0])}), found[0]


class KeyRing:
    """The keys of a file as a request asks for them: by id, with one comparison."""

    def __init__(self, file: KeyFile) -> None:
        self._by_id = {
            key.id.encode(): (bytes.fromhex(key.salt), bytes.fromhex(key.hash), key.caller) for key in file.keys
        }
        # What an unknown id is compared with, so that it takes as long as a known one.
        self._nobodys = (secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_HASH_BYTES), None)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """As KeyFile.parse."""
        return cls(KeyFile.parse(content))

    def caller(self, shown: bytes) -> Caller | None:
        """Whose key it is, expired or not; None for what is no key of ours."""
        prefix, _, rest = shown.partition(b"_")
        its_id, _, secret = rest.partition(b"_")
        if prefix != _PREFIX or not secret:
            return None
        salt, expected, caller = self._by_id.get(its_id, self._nobodys)
        return caller if hmac.compare_digest(_hash(secret, salt), expected) else None


def lasting(text: str) -> timedelta:
    """How long a key lasts, such as 90d or 12h.

    Raises:
        ValueError: for another text.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,4})([dh])", text)
    if found is None:
        raise ValueError(f"expected days or hours, such as 90d or 12h, got {text!r}")
    return timedelta(**{{"d": "days", "h": "hours"}[found[2]]: int(found[1])})


def _hash(secret: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(secret, key=salt, digest_size=_HASH_BYTES).digest()


def _fault(error: Any) -> str:
    """What pydantic found, without what stood there."""
    where = ".".join(map(str, error["loc"])) or "the file"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"
