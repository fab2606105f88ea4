"""One run's conversation with an HTTP server: what the JSON protocols share.

A protocol adds how a request is written and how a reply is read.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ..errors import BadReply, ModelError, ServerError
from .body import decoded
from .contract import Request, Response
from .error_body import ErrorBody, error_body

if TYPE_CHECKING:
    from .http_client import HttpClient

__all__ = ["HttpSession"]


class HttpSession:
    """Sends requests of one run, and recognises what is no reply.

    Shared by all workers of the run without a lock.

    Args:
        client: builds the requests.
        protocol: what the server should speak, as in "is it an Ollama server?".

    Attributes:
        worked: a good reply has come in this run, so that the address is right.
    """

    def __init__(self, client: HttpClient, protocol: str):
        self._http = client
        self._protocol = protocol
        self.worked = False

    def send(self, body: bytes) -> Generator[Request, Response, Response]:
        """Send one request. Gives the response, without keys.

        Raises:
            BadReply: what came back is not valid HTTP.
        """
        request = self._http.request(self._http.path, body)
        del body  # tracebacks may show variables, and a key may stand in it
        try:
            response = yield request
        except BadReply as error:
            raise self.bad_reply(str(error), transient=error.transient) from None
        return self._http.received(response)

    def json(self, response: Response) -> dict[str, Any]:
        """The JSON object of a successful response.

        Raises:
            ModelError: the status is not success, or the response holds an error all the same.
            BadReply: there is no JSON object.
        """
        if not 200 <= response.status < 300:
            raise self.failure(response)
        found = decoded(response.body)
        if isinstance(found, dict) and not found.get("error") and found.get("object") != "error":
            return found
        error = error_body(response.body)
        if error.is_error:
            raise self._error_in(response, error)
        raise self.bad_reply(self._http.not_an_object(response), status=response.status)

    def _error_in(self, response: Response, error: ErrorBody) -> ModelError:
        """The error in a response that says it is a success, as gateways send it."""
        client = self._http
        if error.status is not None:
            return self.failure(response, error.status)
        for status in (400, 404):  # with which its words would mean something
            failure = self.failure(response, status)
            if type(failure) is not ServerError:
                return failure
        return BadReply(
            f'{client.endpoint} answered {response.status} with an error: "'
            f"{client.quote(error.words)}\"; see the server's log",
            status=response.status,
        )

    def failure(self, response: Response, status: int | None = None) -> ModelError:
        """The error that a response stands for; ``status`` overrides the response's own."""
        return self._http.failure(response, status=status, answered=self.worked)

    def bad_reply(
        self, message: str, *, status: int | None = None, transient: bool = True
    ) -> BadReply:
        """The error for what is no reply of the protocol.

        It asks whether the address is right only where nothing has shown yet that it is.
        """
        if not self.worked:
            message += f"; is {self._http.parameter}= the address of {self._protocol}?"
        error = BadReply(message, status=status)
        error.transient = transient
        return error
