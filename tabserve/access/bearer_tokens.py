"""Bearer tokens of an issuer elsewhere: JSON Web Tokens, signed with RS256 or ES256 by a key of its JWKS.

A token has to say until when it holds (`exp`), by whom (`iss`) and for whom it was made (`aud`); it may say from when
(`nbf`), for which subject (`sub`), and with `scope`, words with spaces between them, or `scp`, a list, what it opens.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tabserve.access.callers import SCOPES, Caller
from tabserve.access.reloaded import Reloaded

LEAST_RSA_BITS = 2048  # NIST SP 800-131A; RFC 7518, section 3.3
LEEWAY_SECONDS = 10  # by which clocks may differ before a token that was just made is refused
MOST_BYTES = 8192  # of a token
MOST_VERIFIED = 4096  # tokens that are remembered; one takes 500 bytes
LAST_SECOND = 253_402_300_799  # of the year 9999, since 1970
SUBJECT_CHARACTERS = 64  # that stand in a log

VerifyingKeys = Mapping[str | None, tuple[str, Any]]
"""Algorithm and public key, by the key's name."""


def parse_jwks(content: bytes) -> VerifyingKeys:
    """The public keys of a JWKS with which an issuer may sign; others in it are left alone.

    Raises:
        ValueError: where there are none.
    """
    try:
        found = json.loads(content)["keys"]
        usable = {key.get("kid"): verifying for key in found if (verifying := _verifying_key(key)) is not None}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError('it is no JWKS, expected {"keys": [...]}') from None
    if not usable:
        raise ValueError(f"no key in it can verify RS256 (RSA of {LEAST_RSA_BITS} bits or more) or ES256 (P-256)")
    return usable


def _verifying_key(described: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Algorithm and key of what stands in a JWKS; the kind of key decides on the algorithm, and not a token."""
    if described.get("use", "sig") != "sig" or described.get("kty") not in ("RSA", "EC"):
        return None
    algorithm = {"RSA": "RS256", "EC": "ES256"}[described["kty"]]
    if described.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(dict(described), algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size >= LEAST_RSA_BITS:
        return algorithm, key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return algorithm, key
    return None  # a private key among them is none to verify with, and should not be there


class BearerTokens:
    """Whose tokens are whose.

    Args:
        keys: of the issuer.
        audience: us, as tokens name us.
    """

    def __init__(self, keys: Reloaded[VerifyingKeys], *, audience: str, issuer: str) -> None:
        self._keys = keys
        self._audience = audience
        self._issuer = issuer
        # By hash: a token in a dump of the memory would open the service. Verifying takes 30 to 90 µs.
        self._verified: OrderedDict[bytes, Caller] = OrderedDict()
        self._verified_by: VerifyingKeys = keys.now

    def caller(self, shown: bytes) -> Caller | None:
        """Whose token it is, expired or not; None for what is no token for us, or is not valid yet."""
        if len(shown) > MOST_BYTES:
            return None
        keys = self._keys.now
        if keys is not self._verified_by:  # a key may have been withdrawn
            self._verified.clear()
            self._verified_by = keys
        digest = hashlib.blake2b(shown, digest_size=16).digest()
        caller = self._verified.get(digest)
        if caller is None:
            caller = self._verify(shown, keys)
            if caller is None:
                return None
            self._verified[digest] = caller
            if len(self._verified) > MOST_VERIFIED:
                self._verified.popitem(last=False)
        return caller

    def _verify(self, shown: bytes, keys: VerifyingKeys) -> Caller | None:
        try:
            name = jwt.get_unverified_header(shown).get("kid")
            if name not in keys:
                self._keys.ask()
                return None
            algorithm, key = keys[name]
            claims = jwt.decode(
                shown,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_SECONDS,
                # What expired is told so, to who held it.
                options={"require": ["exp", "iss", "aud"], "verify_exp": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):  # the last three: whatever a stranger sends
            return None
        return _caller(claims)


def _caller(claims: Mapping[str, Any]) -> Caller | None:
    expires, subject = claims["exp"], claims.get("sub") or claims.get("client_id") or "nobody"
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not 0 <= expires <= LAST_SECOND:
        return None
    said = claims.get("scope", claims.get("scp", ""))
    scopes = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
    # Marked, so that a token's subject never counts as a key of that name.
    shown = "".join(one if one.isprintable() else "?" for one in str(subject)[:SUBJECT_CHARACTERS])
    return Caller(f"token:{shown}", frozenset(scope for scope in SCOPES if scope in scopes), float(expires))
