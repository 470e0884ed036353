"""No secret is written or printed."""

from pathlib import Path

import pytest

from sinkd_llm.secrets import (
    is_secret_name,
    masked,
    masked_command,
    masked_text,
    masked_words,
    recordable,
    recordable_command,
    without_home,
)

TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    "name",
    [
        *(
            "hub_token",
            "--hub-token",
            "push_to_hub_token",
            "HF_TOKEN",
            "WANDB_API_KEY",
            "apiKey",
            "db_password",
            "token",
        ),
        *("AWS_SECRET_ACCESS_KEY", "passphrase", "client_secret"),
    ],
)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "eos_token",
            "pad_token",
            "include_num_input_tokens_seen",
            "average_tokens_across_devices",
            "hub_token_file",
        ),
        *("monkey", "author", "num_train_epochs", "label_names"),
    ],
)
def test_names_of_other_things(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "secret",
    [
        *(TOKEN, "sk-proj-abc123def456ghi", "ghp_" + "a" * 36, "github_pat_" + "1" * 30, "AKIAABCDEFGHIJKLMNOP"),
        *("glpat-abcdefghij12345", "xoxb-1234567890-abc", "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSM"),
    ],
)
def test_values_that_say_what_they_are(secret):
    assert masked_text(f"401 for {secret}, sorry") == "401 for ***, sorry"
    assert masked({"hub_model_id": [secret]}) == {"hub_model_id": ["***"]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x", "https://***@host/x"),
        ("http://proxy?token=abc&rows=3", "http://proxy?token=***&rows=3"),
        ("runs/task-sst2-0123456789012", "runs/task-sst2-0123456789012"),
        ("an e-mail: me@host.org", "an e-mail: me@host.org"),
    ],
)
def test_addresses(text, shown):
    assert masked_text(text) == shown


def test_settings_at_any_depth():
    settings = {
        "hub_token": "x",
        "learning_rate": 1e-4,
        "model_init_kwargs": {"token": "x", "proxies": {"https": "http://u:p@h"}, "use_auth_token": True},
        "teacher_model_init_kwargs": {"token": None},
        "password": 1234,
    }
    assert masked(settings) == {
        "hub_token": "***",
        "learning_rate": 1e-4,
        "model_init_kwargs": {"token": "***", "proxies": {"https": "http://***@h"}, "use_auth_token": True},
        "teacher_model_init_kwargs": {"token": None},
        "password": "***",
    }
    assert settings["hub_token"] == "x"  # a copy


def test_command_lines():
    words = ["--hub_token", "x", "--alpha=1", "--hub-token=y", "--optim_args", "a=1,api_key=z", "--data_dir", TOKEN]
    words += ["--model_init_kwargs", '{"token": "t", "revision": "main"}']
    shown = ["--hub_token", "***", "--alpha=1", "--hub-token=***", "--optim_args", "a=1,api_key=***", "--data_dir"]
    shown += ["***", "--model_init_kwargs", '{"token": "***", "revision": "main"}']
    assert masked_words(words) == shown
    assert masked_command(["sinkd", "--hub_token", "a b"]) == "sinkd --hub_token '***'"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a=1,api_key=z", "a=1,api_key=***"),
        ("api_key: 'a b c', x=1", "api_key: ***, x=1"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ({"headers": {"Authorization": "Bearer abc"}}, {"headers": {"Authorization": "***"}}),
        ({"token": ["a", {"b": 3}]}, {"token": ["***", {"b": "***"}]}),
        ("sent with Bearer abc123def", "sent with Bearer ***"),
        ("the bearer of news", "the bearer of news"),
        ("Key: A\nText: b", "Key: A\nText: b"),
        ("{token: abc, x: 1}", "{token: ***, x: 1}"),
        ("password: abc", "password: ***"),
    ],
)
def test_values_of_settings_at_any_depth_and_in_any_form(value, shown):
    assert masked({"x": value}) == {"x": shown}


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        *(
            ("/home/user/d/e", "~/d/e"),
            ("/Users/User/x", "~/x"),
            ("C:\\Users\\User\\x", "~\\x"),
            ("/var/home/user", "~"),
        ),
        *(("/root", "~"), ("--x=/home/user/x", "--x=~/x"), ("see /home/user/a, /home/other/b", "see ~/a, ~/b")),
        *(("/rooted/x", "/rooted/x"), ("/work/root", "/work/root"), ("~/x", "~/x"), ("/home", "/home")),
        *(("https://h.org/home/page", "https://h.org/home/page"), ("data/home/x.csv", "data/home/x.csv")),
    ],
)
def test_home_folders(path, shown):
    assert without_home(path) == shown


def test_the_own_home_folder_wherever_it_lies(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/people/me")
    assert without_home("/srv/people/me/x and /srv/people/menu/x") == "~/x and /srv/people/menu/x"
    monkeypatch.setenv("HOME", "/")
    assert without_home("/srv/x") == "/srv/x"


def test_what_is_kept_of_settings_does_not_even_say_that_there_was_a_secret():
    settings = {"hub_token": TOKEN, "alpha": 1.0, "kwargs": {"token": "t", "cache": Path("/home/user/c")}, "a": {"x"}}
    assert recordable(settings) == {"alpha": 1.0, "kwargs": {"cache": "~/c"}, "a": ["x"]}
    words = ["sinkd", "distill", "--hub_token", "x", "--alpha", "1", "--hub-token=y", "--data_dir", "/home/user/d"]
    assert recordable_command(words) == "sinkd distill --alpha 1 --data_dir '~/d'"
    assert recordable_command(["sinkd", "--hub_token"]) == "sinkd"
