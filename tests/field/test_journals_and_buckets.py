"""A journal of a search that came back damaged is refused by its line; a bucket's refusal by the code it gives."""

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from botocore import exceptions
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    ProfileNotFound,
    ProxyConnectionError,
    SSLError,
    SSOTokenLoadError,
    UnauthorizedSSOTokenError,
)
from botocore.parsers import ResponseParserError
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sublim.core.errors import StoreRefused, StoreUnreachable, UserError
from sublim.search.config import FloatRange, Journal, Range, StudyConfig
from sublim.search.opening import open_search
from sublim.search.storage import open_storage
from sublim.search.study import Asked, Measured, work
from sublim.store.s3 import Bucket
from sublim.store.s3_hints import KNOWN

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0a" * 32 + b"\nsize 75000000\n"


def study(path: Path, trials: int) -> StudyConfig:
    space: dict[str, Range] = {"lr": FloatRange(low=1e-5, high=1e-3, log=True)}
    return StudyConfig(
        name="s", storage=Journal(path=path), objectives=("loss",), space=space, settings={"a": 1}, trials=trials
    )


def searched(path: Path, trials: int) -> int:
    search = open_search(study(path, trials))
    work(search, lambda asked: Measured([1.0], {}), seconds=20, poll=0.1)
    return sum(record.state == "complete" for record in search.records())


def test_damaged_journal_is_refused_by_line_and_a_torn_end_is_cut_off(tmp_path: Path) -> None:
    whole = tmp_path / "whole.journal"
    assert searched(whole, 2) == 2
    lines = whole.read_bytes().splitlines(keepends=True)
    half = len(lines) // 2
    before, after = b"".join(lines[:half]), b"".join(lines[half:])
    end = len(lines) + 1
    for damaged, line in (
        (before + b"\n" + after, half + 1),
        (before + b"\0" * 64 + b"\n" + after, half + 1),
        (before + lines[half][:15] + after, half + 1),
        (before + b'{"op_code":4,"worker_id":"x"}\n' + after, half + 1),
        (before + after + b'{"op_code":99,"worker_id":"x"}\n', end),
        (before + after + b'{"op_code":"zero"}\n', end),
        (before + after + b"[]\n", end),
    ):
        path = tmp_path / "damaged.journal"
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"damaged\.journal:{line} ") as caught:
            open_search(study(path, 3))
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == damaged
    for number, torn in enumerate((lines[-1][:20], b"\0" * 64)):
        path = tmp_path / f"torn-{number}.journal"
        path.write_bytes(before + after + torn)
        assert searched(path, 3) == 3


def stored(path: Path) -> optuna.Study:
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))


LR = {"lr": FloatDistribution(1e-5, 1e-3, log=True)}
BY_HAND: dict[str, dict[str, Any]] = {
    "an infinite value": {"value": math.inf, "user_attrs": {"slot": 1}},
    "a NaN on the way": {"state": TrialState.PRUNED, "intermediate_values": {1: math.nan}, "user_attrs": {"slot": 1}},
    "a slot that is a text": {"value": 0.5, "user_attrs": {"slot": "1"}},
    "no slot": {"value": 0.5},
    "queued": {"state": TrialState.WAITING, "system_attrs": {"fixed_params": {"lr": 1e-4}}},
}


@pytest.mark.parametrize("trials", [1, 3], ids=["finished", "going on"])
@pytest.mark.parametrize("name", BY_HAND)
def test_trial_that_came_into_a_study_by_hand_does_not_stop_it(name: str, trials: int, tmp_path: Path) -> None:
    path = tmp_path / "s.journal"
    assert searched(path, 1) == 1
    own = BY_HAND[name]
    given = {} if own.get("state") == TrialState.WAITING else {"params": {"lr": 1e-4}, "distributions": LR}
    stored(path).add_trial(optuna.create_trial(**given, **own))
    search = open_search(study(path, trials))
    assert work(search, lambda asked: Measured([1.0], {}), seconds=20, poll=0.1)
    records = {record.number: record for record in search.records()}
    assert len(records) == trials
    if trials > 1:
        wanted = {"an infinite value": "failed", "a NaN on the way": "pruned"}.get(name, "complete")
        assert (records[1].state, records[1].intermediate) == (wanted, {})
        assert name != "queued" or records[1].params == {"lr": 1e-4}


def test_trial_that_reports_no_number_is_recorded_without_it(tmp_path: Path) -> None:
    def measure(asked: Asked) -> Measured:
        asked.trial.report(1.5, 1)
        asked.trial.report(math.nan, 2)
        raise optuna.TrialPruned

    search = open_search(study(tmp_path / "s.journal", 1))
    work(search, measure, seconds=20, poll=0.1)
    assert [(record.state, record.intermediate) for record in search.records()] == [("pruned", {"1": 1.5})]


@pytest.mark.parametrize("directions", [["maximize"], ["minimize", "minimize"]])
def test_empty_study_with_other_directions_is_refused(directions: list[Any], tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "s.journal")))
    optuna.create_study(study_name="s", storage=storage, directions=directions)
    with pytest.raises(UserError, match=r"has the directions m.*, these settings have minimize: give another name"):
        open_search(study(tmp_path / "s.journal", 1))


@pytest.mark.parametrize("content", [b"a note of mine without a line end", b"\x1f\x8b" + b"x" * 99, b"[1]\n", POINTER])
def test_file_of_another_kind_is_never_cut_by_a_search(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(UserError, match="holds no study"):
        open_storage(study(path, 1))
    assert path.read_bytes() == content


def refused(code: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutObject")


HINTS: list[tuple[Exception, str, bool]] = [
    (refused("RequestTimeTooSkewed", 403), "clock", True),
    (refused("ExpiredToken", 400), "session has expired", True),
    (refused("InvalidToken", 400), "AWS_SESSION_TOKEN", True),
    (refused("InvalidAccessKeyId", 403), "does not know the key", True),
    (refused("SignatureDoesNotMatch", 403), "AWS_SECRET_ACCESS_KEY is not", True),
    (refused("AccessDenied", 403), "its owner may list", True),
    (refused("PermanentRedirect", 301), "AWS_DEFAULT_REGION", True),
    (refused("AuthorizationHeaderMalformed", 400), "AWS_DEFAULT_REGION", True),
    (refused("NotImplemented", 501), "conditional writes", True),
    (refused("XMinioStorageFull", 507), "disk is full", True),
    (refused("QuotaExceeded", 403), "quota", True),
    (refused("SlowDown", 503), "too often", False),
    (refused("RequestTimeout", 400), "run again", False),
    (refused("InternalError", 500), "run again when it is back", False),
    (ProfileNotFound(profile="lab"), "AWS_PROFILE", True),
    (SSOTokenLoadError(error_msg="secret"), "sign in again", True),
    (UnauthorizedSSOTokenError(), "sign in again", True),
    (SSLError(endpoint_url="https://secret", error="x"), "AWS_CA_BUNDLE", False),
    (ProxyConnectionError(proxy_url="http://secret"), "NO_PROXY", False),
    (EndpointConnectionError(endpoint_url="http://secret"), "check the network", False),
    (ResponseParserError("<html>secret"), "no S3 server", True),
]


@pytest.fixture(scope="module")
def bucket() -> Bucket:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "x")
        return Bucket("s3://lab/sublim")


@pytest.mark.parametrize(("error", "hint", "lasting"), HINTS, ids=lambda each: each if isinstance(each, str) else "")
def test_hint_of_a_bucket_follows_from_the_errors_own_code(
    error: Exception, hint: str, lasting: bool, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**asked: Any) -> None:
        raise error

    monkeypatch.setattr(bucket.client, "put_object", fails)
    with pytest.raises(StoreUnreachable, match=hint) as caught:
        bucket.put("x", b"")
    assert isinstance(caught.value, StoreRefused) == lasting
    assert "secret" not in str(caught.value)


def test_the_classes_of_the_hints_are_boto3s() -> None:
    classes = {name for name in KNOWN if name.endswith("Error")} | {"ProfileNotFound", "MissingDependencyException"}
    assert {name for name in classes if not hasattr(exceptions, name)} == {"ResponseParserError"}


def test_wrong_number_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(UserError, match="AWS_MAX_ATTEMPTS is 'many'"):
        Bucket("s3://lab/sublim")
