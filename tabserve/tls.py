"""TLS as BentoML does not do it: files that are tried at the start, and ciphers of today for TLS 1.2.

BentoML starts without a word where its files cannot be used, and answers nobody.
"""

import ssl

from tabserve.settings import BadSettingError

# Unless somebody asks for others BentoML asks for those of TLS 1.0, which end with a SHA-1: clients that want none of
# them could not ask over TLS 1.2 at all. TLS 1.3 has its own, whatever stands here.
_BENTOMLS_CIPHERS = "TLSv1"
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def use_ciphers_of_today(context: ssl.SSLContext, asked: str | None) -> None:
    """Sets them, where what was asked for is what BentoML asks for by itself."""
    if asked == _BENTOMLS_CIPHERS:
        context.set_ciphers(_CIPHERS)


def check_tls(certfile: str | None, keyfile: str | None, password: str | None = None) -> None:
    """Reads certificate and key as a worker will.

    Raises:
        BadSettingError: where that fails; the message names the files, and never the password.
    """
    if not certfile and not keyfile:
        return
    if not certfile:
        raise BadSettingError(f"there is a key for TLS ({keyfile}) and no certificate: set ssl_certfile too")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile, password=password or "")  # without one it would ask the terminal
    except OSError as error:  # ssl.SSLError is one
        # A reason of OpenSSL's is words such as KEY_VALUES_MISMATCH.
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror
        raise BadSettingError(
            f"the certificate {certfile} with the key {keyfile or certfile} cannot be used for TLS ({reason}): "
            "expected two PEM files that belong together, readable for this user"
        ) from error
