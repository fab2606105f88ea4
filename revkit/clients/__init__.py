"""The models that revkit can use.

Read ``contract`` first: a client is sans-IO, it builds requests and reads responses in a generator.
``registry`` names the providers. ``openai``, ``ollama`` and ``local`` are the protocols,
``http_client`` their base; ``httpx_transport`` and ``aiohttp_transport`` carry requests, by the
rules in ``http``.
"""
