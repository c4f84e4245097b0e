"""Whether a request failed because TLS did."""

import ssl


def failed_handshake(exc: BaseException) -> bool:
    """Return whether an error was caused by a failed TLS handshake.

    That means a wrong scheme or certificate authority, and only these exact classes do: a time-out
    over TLS is caused by an `SSLWantReadError`, a cut by an `SSLEOFError`.
    """
    seen = exc.__cause__ or exc.__context__
    while seen is not None:
        if type(seen) in (ssl.SSLError, ssl.SSLCertVerificationError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
