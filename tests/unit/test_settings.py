"""Settings: the sample is complete, variables override, and what is wrong is named without its value."""

import re
from dataclasses import fields
from datetime import timedelta
from importlib.resources import files
from itertools import pairwise
from pathlib import PurePath

import pytest

from pipeline.errors import HaltError
from pipeline.settings import LISTS, TABLES, Credentials, QueueSource, Settings, load

HOME = {"HOME": "/home/op", "AWS_REGION": "eu-central-1"}
BASE = PurePath("/etc/recording-pipeline")


def read(text: str | None, **environ: str) -> Settings:
    return load(text, HOME | environ, base=BASE)


def sample() -> str:
    return (files("pipeline") / "sample.toml").read_text(encoding="utf-8")


def uncommented() -> str:
    """Put every key and table of the sample in force: a comment's text begins with a space, a key does not."""
    return re.sub(r"^#(?=[a-z\[])", "", sample(), flags=re.MULTILINE)


def names_in(text: str) -> list[str]:
    names, table = [], ""
    for line in text.splitlines():
        if heading := re.fullmatch(r"\[+(\w+)\]+", line):
            table = f"{heading[1]}."
        elif key := re.match(r"(\w+) = ", line):
            names.append(table + key[1])
    return names


def names_known() -> list[str]:
    return sorted(
        f"{table}." * bool(table) + each.name + each.metadata["key"].suffix
        for table, shape in {**TABLES, **LISTS}.items()
        for each in fields(shape)
    )


def test_the_sample_names_every_key_and_nothing_else() -> None:
    assert sorted(names_in(uncommented())) == names_known()


def test_the_sample_states_the_defaults() -> None:
    example = QueueSource(queue_url="https://sqs.eu-central-1.amazonaws.com/111122223333/contact-events")
    stated, default = read(uncommented()), read("")
    assert stated.queues == (example,)
    for each in fields(Settings):
        if each.name != "queues":
            assert getattr(stated, each.name) == getattr(default, each.name), each.name


def test_the_sample_as_it_is_changes_nothing() -> None:
    assert read(sample()) == read("")


def test_every_key_of_the_sample_is_explained_in_a_line() -> None:
    lines = sample().splitlines()
    for before, line in pairwise(lines):
        if re.match(r"#\w+ = ", line):
            assert re.match(r"# \S|#\w+_first_s", before), line


# --- where things lie


def test_without_a_file_the_embedded_servers_run_below_the_home_directory() -> None:
    settings = read(None)
    assert settings.embedded
    assert settings.state_dir == PurePath("/home/op/.local/state/recording-pipeline")
    assert settings.config_dir == settings.state_dir / "config"


def test_without_a_file_no_region_is_needed() -> None:
    assert load(None, {"HOME": "/home/op"}, base=BASE).kms.region == "us-east-1"


def test_the_state_directory_follows_xdg_and_then_its_own_variable() -> None:
    assert read(None, XDG_STATE_HOME="/var/x").state_dir == PurePath("/var/x/recording-pipeline")
    assert read(None, XDG_STATE_HOME="/var/x", PIPELINE_STATE_DIR="/srv/r").state_dir == PurePath("/srv/r")


def test_without_a_home_the_state_directory_must_be_named() -> None:
    with pytest.raises(HaltError, match="state_dir"):
        load(None, {}, base=BASE)


def test_with_a_file_nothing_is_embedded_unless_it_says_so() -> None:
    assert not read("").embedded
    assert read("").config_dir == BASE
    assert read("embedded = true").embedded
    assert read("", PIPELINE_EMBEDDED="true").embedded


def test_paths_in_the_file_are_relative_to_it_and_those_of_variables_are_not() -> None:
    assert read('state_dir = "s"').state_dir == BASE / "s"
    assert read('state_dir = "~/s"').state_dir == PurePath("/home/op/s")
    assert read('state_dir = "s"', PIPELINE_STATE_DIR="t").state_dir == PurePath("t")


# --- values


def test_a_variable_overrides_the_file_and_an_empty_one_does_not() -> None:
    text = "[http]\nport = 1\nbody_idle_s = 2.5"
    settings = read(text, PIPELINE_HTTP_PORT="9000", PIPELINE_HTTP_BODY_IDLE_S="")
    assert settings.http.port == 9000
    assert settings.http.body_idle == timedelta(seconds=2.5)


def test_variables_reach_tables_with_an_underscore_in_their_name() -> None:
    assert read("", PIPELINE_EVENTS_OUT_BUS_NAME="b").events_out.bus_name == "b"


def test_variables_of_the_commands_are_no_settings() -> None:
    assert read("", PIPELINE_CONFIG="x", PIPELINE_TOKEN="y", PIPELINE_URL="z") == read("")


def test_aws_variables_fill_in_what_the_file_does_not_say() -> None:
    settings = read(
        '[s3]\nurl = "http://127.0.0.1:1"\nregion = "eu-west-1"',
        AWS_ENDPOINT_URL="http://127.0.0.1:2",
        AWS_ENDPOINT_URL_S3="http://127.0.0.1:3",
        AWS_ENDPOINT_URL_EVENTBRIDGE="http://127.0.0.1:4",
        AWS_PROFILE="p",
    )
    assert (settings.s3.url, settings.s3.region) == ("http://127.0.0.1:1", "eu-west-1")
    assert (settings.kms.url, settings.kms.region) == ("http://127.0.0.1:2", "eu-central-1")
    assert settings.events.url == "http://127.0.0.1:4"
    assert settings.sqs.profile == "p"


def test_the_default_region_is_asked_last() -> None:
    assert load("", {"HOME": "/h", "AWS_DEFAULT_REGION": "eu-north-1"}, base=BASE).s3.region == "eu-north-1"


def test_with_a_file_some_region_must_be_known() -> None:
    with pytest.raises(HaltError, match=r"kms\.region.*AWS_REGION"):
        load("", {"HOME": "/h"}, base=BASE)


def test_an_access_key_is_taken_and_its_secret_is_not_shown() -> None:
    kms = read('[kms]\naccess_key = "AKIDX"', PIPELINE_KMS_SECRET_KEY="hush-hush").kms
    assert kms.credentials == Credentials("AKIDX", "hush-hush")
    assert "hush" not in repr(kms)


# --- what is refused

REFUSED = [
    pytest.param("prot = 1", {}, r"^prot: there is no such setting", id="top-level key"),
    pytest.param("[http]\nprot = 1", {}, r"^http\.prot: .*did you mean port\?", id="key"),
    pytest.param("[htpp]\n", {}, r"^htpp: .*did you mean http\?", id="table"),
    pytest.param("[[queues]]\nqueue = 'x'", {}, r"^queues\[1\]\.queue: .*queue_url\?", id="key of a list"),
    pytest.param("[[queues]]\nwait_s = 1", {}, r"^queues\[1\]\.queue_url: missing", id="missing key"),
    pytest.param("[queues]\nwait_s = 1", {}, r"^queues: must be an array", id="not a list"),
    pytest.param("http = 1", {}, r"^http: must be a table", id="not a table"),
    pytest.param("[http]\nport = '666'", {}, r"^http\.port: must be a whole number from 0 to 65535$", id="type"),
    pytest.param("[http]\nport = true", {}, r"^http\.port: must be a whole", id="bool is no number"),
    pytest.param("[http]\nport = 66666", {}, r"^http\.port: must be a whole", id="bound"),
    pytest.param("[http]\nbody_idle_s = nan", {}, r"^http\.body_idle_s: must be seconds", id="nan"),
    pytest.param("[log]\nlevel = '666'", {}, r"^log\.level: must be one of DEBUG, INFO", id="choice"),
    pytest.param("[kms]\nurl = 'ftp://666'", {}, r"^kms\.url: must be an http", id="address"),
    pytest.param("[kms]\nurl = 'http://u:666@h'", {}, r"^kms\.url: must be an http", id="address with a password"),
    pytest.param("[kms]\naccess_key = '666'", {}, r"^kms\.access_key and kms\.secret_key", id="half a key"),
    pytest.param("[delivery]\nretry_first_s = 666", {}, r"^delivery\.retry_first_s: longer", id="first over most"),
    pytest.param("port = 666 = 666", {}, r"^The settings file is not TOML \(at line 1", id="not TOML"),
    pytest.param("embedded = true\n[s3]\nurl = 'http://h'", {}, r"^s3\.url: the embedded", id="embedded and not"),
    pytest.param(None, {"PIPELINE_KMS_URL": "http://h"}, r"^kms\.url: the embedded", id="embedded by default"),
    pytest.param("", {"PIPELINE_HTPP_PORT": "666"}, r"^PIPELINE_HTPP_PORT: .*PIPELINE_HTTP_PORT\?", id="variable"),
    pytest.param("", {"PIPELINE_HTTP_PORT": "66x6"}, r"^PIPELINE_HTTP_PORT: must be a whole", id="variable's type"),
    pytest.param("", {"PIPELINE_EMBEDDED": "666"}, r"^PIPELINE_EMBEDDED: must be true or false", id="not a bool"),
    pytest.param("", {"PIPELINE_QUEUES_WAIT_S": "6"}, r"^PIPELINE_QUEUES_WAIT_S: .*file only", id="list by variable"),
]


@pytest.mark.parametrize(("text", "environ", "message"), REFUSED)
def test_what_is_wrong_is_named_and_its_value_is_not_repeated(
    text: str | None, environ: dict[str, str], message: str
) -> None:
    with pytest.raises(HaltError, match=message) as caught:
        read(text, **environ)
    assert "666" not in str(caught.value)


def test_a_key_with_control_characters_is_not_printed() -> None:
    with pytest.raises(HaltError) as caught:
        read('"\\u001b[2J" = 1')
    assert str(caught.value).isprintable()


# --- who we are


def test_sts_is_where_the_key_server_is_unless_that_is_an_address_of_aws() -> None:
    ours = read('[kms]\nurl = "http://keys.example:7777"\naccess_key = "AK"\nsecret_key = "S"').sts
    assert ours is not None
    assert (ours.url, ours.credentials) == ("http://keys.example:7777", Credentials("AK", "S"))
    for url in ("https://vpce-1.kms.eu-central-1.vpce.amazonaws.com", "https://kms.eu-central-1.api.aws"):
        theirs = read(f'[kms]\nurl = "{url}"').sts
        assert theirs is not None
        assert theirs.url is None
    own = read('[kms]\nurl = "http://keys.example:7777"\n[sts]\nurl = "http://sts.example"').sts
    assert own is not None
    assert own.url == "http://sts.example"


@pytest.mark.parametrize("arn", ["arn:aws:iam::111122223333:role/a/b/pipeline", "arn:aws-cn:iam::111122223333:user/x"])
def test_the_service_can_be_told_who_it_is(arn: str) -> None:
    assert read(f'[kms]\nprincipal_arn = "{arn}"').principal_arn == arn
    assert read("").principal_arn is None


@pytest.mark.parametrize(
    "arn", ["pipeline", "arn:aws:sts::111122223333:assumed-role/r/s", "arn:aws:iam::1:role/x", "*"]
)
def test_who_it_is_must_be_a_role_or_a_user(arn: str) -> None:
    with pytest.raises(HaltError, match=r"kms\.principal_arn"):
        read(f'[kms]\nprincipal_arn = "{arn}"')
