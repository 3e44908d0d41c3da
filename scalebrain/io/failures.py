"""What the exception of a file system or an object store means, in words with a way out."""

import errno
import re

from scalebrain.errors import StoreError

__all__ = ["NO_BUCKET", "NO_SPACE", "REMOTE", "explain", "without_paths"]

#: How a url that is no path begins.
REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://")
#: Numbers of the errors of a disk that is full.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)

#: Text of an exception that says that there is no bucket.
NO_BUCKET = re.compile(
    r"NoSuchBucket|ContainerNotFound|(bucket|container) does not exist", re.IGNORECASE
)
# What the text of a library's exception means; the first that fits.
_MEANINGS = (
    (
        NO_BUCKET,
        (
            "there is no such bucket. Create it, or check its name and the endpoint "
            "(AWS_ENDPOINT_URL for S3)."
        ),
    ),
    (
        re.compile(r"169\.254\.|metadata\.google|NoCredentials|session\.get_credentials"),
        (
            "no credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE (GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME), or run "
            "where a role gives them; AWS_SKIP_SIGNATURE=true for a public bucket."
        ),
    ),
    (
        re.compile(
            r"Permission|Unauthenticated|AccessDenied|Forbidden|InvalidAccessKeyId"
            r"|SignatureDoesNotMatch|ExpiredToken|InvalidToken|status code: 40[13]"
        ),
        (
            "access denied. Check that the credentials in use are those of this bucket, not "
            "expired, and allowed to list, read, write and delete there."
        ),
    ),
    (
        re.compile(r"PermanentRedirect|AuthorizationHeaderMalformed|status code: 30\d"),
        ("the bucket lies in another region. Set AWS_REGION to it."),
    ),
    (
        re.compile(r"SlowDown|InternalError|ServiceUnavailable|status code: (429|5(?!01)\d\d)"),
        (
            "the object store went on failing for a minute. Run the same command again later: it "
            "goes on."
        ),
    ),
    (
        re.compile(r"HTTP error|connect|timed? ?out", re.IGNORECASE),
        (
            "the object store cannot be reached. Check the network and the endpoint "
            "(AWS_ENDPOINT_URL for S3), then run the same command again: it goes on."
        ),
    ),
)


def explain(url: str, error: BaseException) -> StoreError:
    """Error of ours for one of a library, made of fixed text alone."""
    number = error.errno if isinstance(error, OSError) else None
    if number in NO_SPACE:
        return StoreError(
            f"{url}: no space left on the disk, or its quota is used up. Free space and run the "
            "same command again: it goes on.",
            code="interrupted",
        )
    if not REMOTE.match(url):
        return _explain_local(url, error)
    kind = type(error).__name__
    text = f"{kind} {without_paths(error)}"
    for pattern, meaning in _MEANINGS:
        if pattern.search(text):
            return StoreError(f"{url}: {meaning}")
    return StoreError(f"{url}: the storage failed ({kind}). Check the url and its settings.")


def without_paths(error: BaseException) -> str:
    """Text of an exception without the keys that it was about: those can say anything."""
    text = str(error).split("Debug source", 1)[0]
    return re.sub(r"(https?://[^/\s]*)\S*|(?<=at location )\S+", r"\1", text)


def _explain_local(url: str, error: BaseException) -> StoreError:
    if isinstance(error, OSError) and error.errno in _NO_ACCESS:
        return StoreError(
            f"{url}: permission denied ({error.strerror}). Check who owns the folder and whether "
            "the disk is mounted for writing.",
            code="unreadable",
        )
    reason = (
        error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    )
    return StoreError(f"{url}: cannot be read or written: {reason}. Check the path.")
