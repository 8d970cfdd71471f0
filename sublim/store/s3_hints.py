"""What to do about an error of an S3 server or of boto3, by the code or the class of the error."""

from typing import NamedTuple

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

_CLOCK = "this machine's clock and the server's differ: set the time (with NTP), then run again"
_SESSION = "the session has expired: sign in again, or renew AWS_SESSION_TOKEN and the two keys that came with it"
_TOKEN = "AWS_SESSION_TOKEN is not one of these keys: renew all three together, or unset it"
_KEY = "the server does not know the key: check AWS_ACCESS_KEY_ID, and with {endpoint} that it is the key's own server"
_SECRET = "AWS_SECRET_ACCESS_KEY is not the one of AWS_ACCESS_KEY_ID: copy both again"
RIGHTS = "check AWS_ACCESS_KEY_ID and that its owner may list, get, put and delete objects there"
_ACCOUNT = "the account may not do this: ask whoever runs the server"
_REGION = "the bucket is in another region: set {region}"
_BUSY = "run again when it is back, with fewer workers if it was asked too often"
_FULL = "its quota or disk is full: make room or raise the quota, then run again"
_DAMAGED = "what arrived is not what was sent: run again, and if it persists look for a proxy that changes requests"
_BUCKET = "this is not a valid bucket name: correct it"
_OTHER = "this is no S3 server, or not the right path: check {endpoint}"
_UNABLE = "the server lacks this operation (conditional writes are needed): use a newer one, or check {endpoint}"
_ENCRYPTION = "the key that encrypts the bucket cannot be used: ask whoever runs the server"
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_SIGN_IN = "the profile is not signed in, or no longer: sign in again (`aws sso login` or `aws login`)"
_SOURCE = "the source of the profile's credentials fails: try `aws sts get-caller-identity`, or set the keys"
_TRUST = "set AWS_CA_BUNDLE to your certificate authority's file, or check whether {endpoint} is http or https"
_PROXY = "the proxy does not answer: check HTTPS_PROXY and HTTP_PROXY, or name the server in NO_PROXY"
_NETWORK = "check the network and {endpoint}, then run again"

_CODES: dict[str, tuple[str, ...]] = {
    _CLOCK: ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"),
    _SESSION: ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"),
    _TOKEN: ("InvalidToken", "InvalidSecurity"),
    _KEY: ("InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException", "NotSignedUp"),
    _SECRET: ("SignatureDoesNotMatch", "InvalidSignatureException"),
    RIGHTS: ("AccessDenied", "AccessDeniedException", "Forbidden", "UnauthorizedAccess", "401", "403"),
    _ACCOUNT: ("AllAccessDisabled", "AccountProblem", "InvalidPayer", "UserSuspended", "OptInRequired"),
    _REGION: (
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "InvalidRegion",
        "301",
    ),
    _BUSY: ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429"),
    _FULL: ("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "507"),
    _DAMAGED: (
        "BadDigest",
        "InvalidDigest",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
    ),
    _BUCKET: ("InvalidBucketName",),
    _OTHER: ("MethodNotAllowed", "NoSuchEndpoint", "404", "405"),
    _UNABLE: ("NotImplemented", "501"),
    _ENCRYPTION: ("KMS.DisabledException", "KMS.NotFoundException", "KMS.KMSInvalidStateException"),
}
CODES = {code: hint for hint, codes in _CODES.items() for code in codes}
PASSING = ("RequestTimeout", *_CODES[_BUSY])
"""Codes of temporary failures, whatever HTTP status they come with."""


class ErrorMeaning(NamedTuple):
    """What a class of boto3's errors means for the user."""

    hint: str
    lasting: bool
    """Whether trying again is useless until somebody changes something."""


_CLASSES: dict[type[Exception], ErrorMeaning] = {
    exceptions.NoCredentialsError: ErrorMeaning(_CREDENTIALS, True),
    exceptions.PartialCredentialsError: ErrorMeaning(_CREDENTIALS, True),
    exceptions.ProfileNotFound: ErrorMeaning("the files in ~/.aws have no such profile: correct AWS_PROFILE", True),
    exceptions.ConfigParseError: ErrorMeaning("a file in ~/.aws is damaged: correct it, or set AWS_CONFIG_FILE", True),
    exceptions.SSOError: ErrorMeaning(_SIGN_IN, True),
    exceptions.LoginError: ErrorMeaning(_SIGN_IN, True),
    exceptions.TokenRetrievalError: ErrorMeaning(_SIGN_IN, True),
    exceptions.NoAuthTokenError: ErrorMeaning(_SIGN_IN, True),
    exceptions.CredentialRetrievalError: ErrorMeaning(_SOURCE, False),
    exceptions.MetadataRetrievalError: ErrorMeaning(_SOURCE, False),
    exceptions.UnknownCredentialError: ErrorMeaning(_SOURCE, True),
    exceptions.InvalidConfigError: ErrorMeaning(_SOURCE, True),
    exceptions.RefreshWithMFAUnsupportedError: ErrorMeaning(_SOURCE, True),
    exceptions.MissingDependencyException: ErrorMeaning(
        "install what the profile needs: pip install 'botocore[crt]'", True
    ),
    exceptions.NoRegionError: ErrorMeaning("set {region}", True),
    exceptions.InvalidRegionError: ErrorMeaning("there is no such region: correct {region}", True),
    exceptions.ParamValidationError: ErrorMeaning(_BUCKET, True),
    exceptions.InvalidRetryConfigurationError: ErrorMeaning("correct AWS_MAX_ATTEMPTS and AWS_RETRY_MODE", True),
    exceptions.InvalidChecksumConfigError: ErrorMeaning("correct the AWS_..._CHECKSUM_... variables", True),
    exceptions.InvalidProxiesConfigError: ErrorMeaning(_PROXY, True),
    exceptions.SSLError: ErrorMeaning(_TRUST, False),
    exceptions.ProxyConnectionError: ErrorMeaning(_PROXY, False),
    exceptions.FlexibleChecksumError: ErrorMeaning(_DAMAGED, False),
    ResponseParserError: ErrorMeaning(_OTHER, True),
}


def explain_error(error: BaseException, *, endpoint: str, region: str) -> ErrorMeaning:
    """What an error that is not the server's answer means; `endpoint` and `region` are names of settings."""
    found = next((_CLASSES[kind] for kind in type(error).__mro__ if kind in _CLASSES), ErrorMeaning(_NETWORK, False))
    return found._replace(hint=found.hint.format(endpoint=endpoint, region=region))


def advice(error: ClientError, *, endpoint: str, region: str) -> str | None:
    """What to do about a server's refusal; None for an unknown code."""
    hint = CODES.get(code_of(error))
    return hint and hint.format(endpoint=endpoint, region=region)


def code_of(error: ClientError) -> str:
    """The code of a server's refusal, such as AccessDenied."""
    return str(error.response.get("Error", {}).get("Code", ""))


NO_ANSWER = (BotoCoreError, ResponseParserError)
"""What boto3 raises when there is no answer from the server, or none that it understands."""
