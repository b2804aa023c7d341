"""Why an object store cannot be read or written, as a rule and a remedy.

The client libraries name requests, keys and ids of requests; what a user can change is the bucket, the credentials, the
endpoint and the network. Their texts are not passed on: an unknown server may write anything into its answer.
"""

from __future__ import annotations

import os
import re

from bft_ray.errors import first_line
from bft_ray.places.addresses import redact

ANSWER_S = 60.0  # longest wait for the first answer; some clients would try for a quarter of an hour
_CODE = re.compile(r"AWS Error ([A-Z_]+)")
_REFUSED = {
    "ACCESS_DENIED",
    "EXPIRED_TOKEN",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "MISSING_AUTHENTICATION_TOKEN",
    "REQUEST_EXPIRED",
    "REQUEST_TIME_TOO_SKEWED",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNRECOGNIZED_CLIENT",
}
_AT = re.compile(r"for key '([^']*)' in bucket '([^']*)'|in bucket '([^']*)'")
_NODES = "in the environment of this command and of every node"


def why_not(error: BaseException, uri: str) -> tuple[str, str]:
    """Rule ("a URI ...", to follow "must be") and remedy for an error of a store.

    Args:
        error: of pyarrow, or TimeoutError where there was no answer within `ANSWER_S`.
        uri: what was asked for.
    """
    text = str(error)
    code = found[1] if (found := _CODE.search(text)) else ""
    bucket = uri.partition("://")[2].partition("/")[0]
    if isinstance(error, FileNotFoundError):
        return f"a URI at which something is: {redact(first_line(error))}", "Check the address."
    if code == "NO_SUCH_BUCKET":
        return f"a URI in a bucket that exists: there is no `{bucket}`", "Make that bucket, or name another one."
    if code in _REFUSED:
        rule = f"a URI that these credentials may use: the store answers {code}"
        remedy = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE, or the role of the machine)"
        return rule, f"{remedy} {_NODES}, and the rights that the bucket gives them."
    if code == "NETWORK_CONNECTION" or isinstance(error, TimeoutError):
        what = f"no answer within {ANSWER_S:g} s" if isinstance(error, TimeoutError) else "no connection"
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        where = f" at {redact(endpoint)}" if endpoint and uri.startswith("s3") else ""
        remedy = f"Check AWS_ENDPOINT_URL {_NODES}, and the network." if uri.startswith("s3") else "Check the network."
        return f"a URI of a store that answers: {what}{where}", remedy
    if code:
        return f"a URI that this store serves: it answers {code}", "Check the address, and AWS_DEFAULT_REGION."
    return f"a URI of a store that can be used: {redact(first_line(error))}", "Check the address and the credentials."


def store_failure(error: BaseException) -> str | None:
    """What a command says of an error that a store has caused while it ran; None for any other error."""
    one: BaseException | None = error
    for _ in range(20):
        if one is None:
            return None
        if isinstance(one, OSError) and _CODE.search(str(one)):
            at = _AT.search(str(one))
            uri = f"s3://{at[2] or at[3]}/{at[1] or ''}" if at else "s3://..."
            rule, remedy = why_not(one, uri)
            return f"the object store failed: {uri} must be {rule}. {remedy}"
        one = one.__cause__ or one.__context__
    return None
