"""Which names hold a secret: what is secret is neither shown nor stored, nor in a store key."""

from __future__ import annotations

from typing import Any

import pytest

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
])  # fmt: skip
def test_all_below_a_secret_name_is_redacted_and_not_shown(fields: dict[str, Any]) -> None:
    assert {"sk-one", "sk-two"} <= set(keys_in_fields(fields))
    assert "sk-" not in str(public(fields))
    assert "sk-" not in Redactor(keys_in_fields(fields)).quote(str(fields))
