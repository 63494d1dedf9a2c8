"""No secret leaves a host in a bundle: by name, by form, and by value wherever it occurs again."""

import base64
import json

import pytest

from module_utils.diagnostics_redaction import (
    MARK,
    MOST_LOGGED,
    Redactor,
    configured_secrets,
    is_secret_name,
    logged_secrets,
    secret_lines,
)

SECRET = "s3cret/Value+1"  # noqa: S105 - test data


@pytest.mark.parametrize(
    "name",
    ["CFN_SPLIT_KEY", "token", "apiToken", "API_KEY", "--password", "authorization", "hook-token",
     "client_secret", "privateKey", "Cookie", "smtp.password", "DBPASSWORD"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["token_file", "split_key_sha256", "public_key", "sticky_key", "password_file", "key_path", "author",
     "monkey", "CFN_MAX_AGENTS", "keyboard", "task_id", "token_count", "", "--"],
)  # fmt: skip
def test_names_that_only_speak_of_one(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "line",
    [
        f'CFN_SPLIT_KEY="{SECRET}"',
        f"export CFN_API_TOKEN={SECRET}",
        f"Environment=CFN_TOKEN={SECRET} OTHER=1",
        f"password: {SECRET}",
        f"password = '{SECRET}'",
        f'{{"token": "{SECRET}", "n": 1}}',
        f'{{"line": "{{\\"token\\": \\"{SECRET}\\"}}"}}',
        f"Authorization: Bearer {SECRET}",
        f"authorization: Basic {SECRET}",
        f"started with bearer {SECRET} and so on",
        f"curl --token {SECRET} https://x",
        f"agent -password '{SECRET}'",
        f"tool --api-key={SECRET}",
        f"https://user:{SECRET.replace('/', '')}@host/path",
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}",
        f"{SECRET}\n-----END EC PRIVATE KEY-----",
    ],
)
def test_a_secret_is_removed_by_its_name_or_form(line: str) -> None:
    redactor = Redactor(set())
    clean = redactor.text(line)
    assert SECRET not in clean
    assert SECRET.replace("/", "") not in clean
    assert MARK in clean
    assert redactor.removed >= 1


def test_what_is_no_secret_stays_to_the_letter() -> None:
    text = (
        'CFN_MAX_AGENTS="100"\n{"task_id": "a-1", "split_key_sha256": "0011223344556677"}\n'
        "token_file=/etc/cfn/token\nthe monkey: has no key\npasswordless login\nkeys are listed below\n"
    )
    redactor = Redactor(set())
    assert redactor.text(text) == text
    assert redactor.removed == 0


@pytest.mark.parametrize(
    "written",
    [SECRET, json.dumps(SECRET), "s3cret%2FValue%2B1", base64.b64encode(SECRET.encode()).decode(),
     f"x{SECRET}y", f"no name at all {SECRET}"],
)  # fmt: skip
def test_a_known_value_is_removed_wherever_and_however_it_is_written(written: str) -> None:
    clean = Redactor(configured_secrets(f'CFN_SPLIT_KEY="{SECRET}"')).text(f"journal: {written}")
    assert "s3cret" not in clean
    assert base64.b64encode(SECRET.encode()).decode() not in clean


def test_a_value_with_quotes_is_found_where_json_escapes_it() -> None:
    assert "a'b" not in Redactor(["a'b\"c"]).text(json.dumps({"said": "a'b\"c"}))


def test_values_of_the_configuration_count_from_four_characters_on() -> None:
    text = 'A_TOKEN="abc"\nB_TOKEN="abcd"\nC_PASSWORD="true"\nD_KEY="/etc/cfn/watch-key"\nE_SECRET=""'
    assert configured_secrets(text) == {"abcd"}


def test_what_a_log_calls_a_secret_counts_if_it_looks_like_one() -> None:
    log = "auth: disabled\ntoken: expired\nkey=Abc12345\npassword=correcthorsebatterystaple\n"
    assert logged_secrets(log) == {"Abc12345", "correcthorsebatterystaple"}
    assert len(logged_secrets("".join(f"token=Abc{n:08d}\n" for n in range(2 * MOST_LOGGED)))) == MOST_LOGGED


def test_a_file_that_is_a_secret_gives_each_of_its_lines() -> None:
    text = (
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\nQAAAAAA\n-----END OPENSSH PRIVATE KEY-----\n"
    )
    assert secret_lines(text) == {"b3BlbnNzaC1rZXk", "QAAAAAA"}


def test_longer_secrets_go_before_what_they_begin_with() -> None:
    assert Redactor(["abcd", "abcdefgh"]).text("abcdefgh abcd") == f"{MARK} {MARK}"
