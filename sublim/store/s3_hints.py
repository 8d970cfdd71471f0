"""What to do about an error of an S3 server or of boto3, by the code or the class of the error (see s3_hints.yaml)."""

from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from pydantic import TypeAdapter

from sublim.core.config import Config
from sublim.files.text_files import parse_yaml


class ErrorMeaning(Config):
    """What some errors mean for the user."""

    hint: str
    """What to do; the names of the settings go where `{endpoint}` and `{region}` stand."""
    of: tuple[str, ...]
    """Codes of servers' answers, and names of classes of boto3's errors."""
    lasting: bool = True
    """Whether trying again is useless until somebody changes something."""


_MEANINGS = TypeAdapter(list[ErrorMeaning]).validate_python(
    parse_yaml(Path(__file__).with_suffix(".yaml").read_bytes())
)
KNOWN = {name: meaning for meaning in _MEANINGS for name in meaning.of}
RIGHTS = KNOWN["AccessDenied"].hint
PASSING = [name for name, meaning in KNOWN.items() if not meaning.lasting]
"""Codes of temporary failures, whatever HTTP status they come with."""


def explain_error(error: BaseException, *, endpoint: str, region: str) -> ErrorMeaning:
    """What an error that is not the server's answer means; `endpoint` and `region` are names of settings."""
    found = next(KNOWN[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in KNOWN)
    return found.model_copy(update={"hint": found.hint.format(endpoint=endpoint, region=region)})


def advice(error: ClientError, *, endpoint: str, region: str) -> str | None:
    """What to do about a server's refusal; None for an unknown code."""
    found = KNOWN.get(code_of(error))
    return found and found.hint.format(endpoint=endpoint, region=region)


def code_of(error: ClientError) -> str:
    """The code of a server's refusal, such as AccessDenied."""
    return str(error.response.get("Error", {}).get("Code", ""))


NO_ANSWER = (BotoCoreError, ResponseParserError)
"""What boto3 raises when there is no answer from the server, or none that it understands."""
