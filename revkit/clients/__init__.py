"""The models that revkit can use. A client is sans-IO: it builds requests and reads responses.

contract           what a client is: requests, responses, transports
provider           what is known of a provider by its name
registry           the providers by name, and which model a task gets
agent_file         a client out of an agent file
http_client        what all clients of HTTP servers have in common
http_session       what their conversations have in common
openai             any OpenAI-compatible server
message_parts      the text, thought and refusal in a message
model_facts        what a server's list of models says of one
ollama             Ollama
local/             the embedded model
status             an HTTP status as an error
pause              how long a server asks to be left alone
error_body         what an error response says, whatever its provider
too_long           a prompt that does not fit into the context, in every server's words
context            prompts that a server cut without a word: suspicion and proof
prompt_check       the requests that prove it
body               JSON bodies, written and read
redact             keys taken out of what a server repeats
secret             a key by where it is kept
http               proxies, TLS and limits of size, for both transports
httpx_transport    requests of threads, or over a client of the user's
httpcore_stream    the bounds on a response in threads
aiohttp_protocol   the bound on a response on the event loop
aiohttp_transport  requests of the event loop
descriptors        how many connections this process may have open
aiohttp_connections  connections with unread bytes are not used again
doubled            responses that a proxy wrote twice
transport_errors   faults of a connection, in the same words for both transports
prices             what models cost
"""
