"""The models that revkit can ask.

Read ``base.py`` first: a client is sans-IO, it builds requests and reads responses, and says so
as a generator. ``http.py`` carries requests over a network; ``ollama.py``, ``openai.py`` and
``local.py`` are the three protocols.
"""
