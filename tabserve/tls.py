"""Whether the files of TLS can be used: BentoML starts without a word where they cannot, and answers nobody."""

import ssl

from tabserve.settings import BadSettingError


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
