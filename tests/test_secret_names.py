"""Which names hold a secret: what is secret is neither shown nor stored, nor in a store key."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from revkit import OpenAICompatible, UsageError
from revkit.clients.http import display_url
from revkit.clients.redact import Redactor, is_secret, keys_in_fields, public

SECRET = """
    key api_key api-key apiKey apikey APIKey API_KEY OPENAI_API_KEY api_key_2 X-Api-Key x-api-key
    api-keys api_keys apiKeys keys X-Portkey-Api-Key X-Portkey-Virtual-Key Ocp-Apim-Subscription-Key
    subscription-key prompt_cache_key Idempotency-Key private_key privateKey secretKey access_key
    X-Goog-Api-Key signing_keys
    token access_token accessToken accesstoken access_tokens X-AuthToken x-authtoken X-Auth-Token
    refreshToken hf_token X-Vault-Token X-Amz-Security-Token Private-Token session_token api_tokens
    X-CSRF-Token OAuthToken X-Forwarded-Access-Token
    secret client_secret clientSecret secrets CF-Access-Client-Secret
    password passwords passwd db_password passphrase pwd
    Authorization Proxy-Authorization auth Helicone-Auth basicAuth OAuth authentication bearer
    X-JWT jwt CF-Access-JWT-Assertion
    credential credentials X-Amz-Credential cookie Cookie Set-Cookie cookies
    client_secret_value authTokenValue auth_header connectionString connection-string dsn passcode
    otp pat sasToken csrf X-XSRF
    signature X-Amz-Signature sig session-id session_id sessionId X-Session-Id sessionid
"""

PLAIN = """
    max_tokens maxTokens max_completion_tokens prompt_tokens completion_tokens max_new_tokens
    thinking_budget_tokens min_tokens tokens n_tokens stop_token_ids skip_special_tokens
    eos_token bos_token pad_token stop_token
    top_k topK keep_alive monkey turkey hotkey keyboard keyword keywords tokenizer tokenizer_mode
    key_frames num_key_value_heads sort_keys author x-author authority X-Auth-Request-User
    x-portkey-config x-portkey-provider deployment api-version model temperature seed user
    OpenAI-Organization HTTP-Referer X-Title anthropic-version metadata secretary passage
    default_value header x-header string stop_string path patience
    conversation_id access_key_id design signal tier reasoning reasoning_effort num_ctx
"""


def test_secret_names() -> None:
    assert [name for name in SECRET.split() if not is_secret(name)] == []


def test_other_names() -> None:
    assert [name for name in PLAIN.split() if is_secret(name)] == []


@pytest.mark.parametrize("fields", [
    {"api_keys": ["sk-one", "sk-two"]},
    {"credentials": {"user": "me", "value": ["sk-one", {"x": "sk-two"}]}},
    {"routes": [{"name": "a", "apiKey": "sk-one"}, {"accessToken": "sk-two"}]},
    {"headers": [{"name": "X-JWT", "value": "sk-one"}, {"key": "auth", "value": "sk-two"}]},
])  # fmt: skip
def test_all_below_a_secret_name_is_redacted_and_not_shown(fields: dict[str, Any]) -> None:
    assert {"sk-one", "sk-two"} <= set(keys_in_fields(fields))
    assert "sk-" not in str(public(fields))
    assert "sk-" not in Redactor(keys_in_fields(fields)).quote(str(fields))


def test_a_value_in_the_form_of_a_key_is_one_under_any_name() -> None:
    fields = {"route": {"to": "gateway, Bearer abcdefgh1234"}, "via": ["sk-0123456789"]}
    assert public(fields) == {"route": {"to": "gateway, [key]"}, "via": ["[key]"]}
    assert list(keys_in_fields(fields)) == ["Bearer abcdefgh1234", "sk-0123456789"]


@pytest.mark.parametrize("key", [
    "sk-abc123", "sk-proj-0123456789abcdef", "key-1a2b3c", "gsk_0123456789abcdef", "hf_abcdefghij",
    "AIzaSyA0123456789abcdefghijk", "eyJhbGciOi.eyJzdWIi.c2ln", "xai-0123456789ab", "sk%2Dabc123",
])  # fmt: skip
def test_a_key_in_the_path_of_a_url(key: str) -> None:
    client = OpenAICompatible("m", base_url=f"http://me@127.0.0.1:1/v1/{key}/chat/")
    shown = f"{client!r} {client.settings()} {client.provider}"
    assert key not in shown
    assert client.endpoint == "http://127.0.0.1:1/v1/[key]/chat"
    assert client.url("/x") == f"http://127.0.0.1:1/v1/{key}/chat/x"
    with pytest.raises(UsageError, match="given a key in base_url="):
        pickle.dumps(client)


def test_the_clients_own_key_in_the_path_of_its_url() -> None:
    own = "n7Yxq3WbK2m9Lp4R"
    client = OpenAICompatible("m", base_url=f"http://127.0.0.1:1/{own}/v1", api_key=own)
    assert client.endpoint == "http://127.0.0.1:1/[key]/v1"


@pytest.mark.parametrize("path", [
    "openai/deployments/gpt-4o-mini-2024-07-18", "v1/0123456789abcdef0123456789abcdef/gateway",
    "api/v1", "oauth/v1", "models/sk-learn", "v1beta/openai", "key/v1", "v2/a1b2c3d4e5/openai/v1",
])  # fmt: skip
def test_other_paths_are_shown(path: str) -> None:
    assert display_url(f"https://host/{path}") == f"https://host/{path}"
