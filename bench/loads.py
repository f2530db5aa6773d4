"""A request, asked once to see that it is answered, then asked by wrk for some seconds."""

import http.client
import json
import tempfile
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from bench import machine
from bench.machine import Refused

SCRIPT = """\
local spelled = {{
{requests}
}}
local count = 0
request = function()
  count = count % #spelled + 1
  return spelled[count]
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("\\n%d %d %d %d %d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
"""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, and a text that its right answer contains (white space aside)."""

    url: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = ""
    proof: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round of load showed: requests per second, and times in milliseconds."""

    rate: float
    p50: float
    p99: float
    requests: int
    errors: int
    cpu_us: float = 0.0
    """Processor time of the server for each request."""


@dataclass(frozen=True, slots=True)
class Load:
    """wrk on one core: so many connections for so many seconds."""

    core: int
    connections: int
    seconds: int

    def put_on(self, *asked: Request, cpu: Callable[[], float] | None = None) -> Sample:
        """Ask these in turn, as fast as the server answers. Answers of 400 and above count as errors.

        `cpu` tells the processor time of the server so far.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(lua(asked))
            script.flush()
            options = f"-t1 -c{self.connections} -d{self.seconds}s --timeout 30s -s {script.name}"
            command = machine.pinned([self.core], ["wrk", *options.split(), asked[0].url])
            before = cpu() if cpu else 0.0
            printed = machine.run(command, cwd=machine.ROOT)
            spent = cpu() - before if cpu else 0.0
        requests, microseconds, p50, p99, errors = map(int, printed.split()[-5:])
        if requests == 0:
            raise Refused(f"no answer within {self.seconds} s")
        return Sample(requests / microseconds * 1e6, p50 / 1000, p99 / 1000, requests, errors, spent / requests)


def form(url: str, client: tuple[str, str], fields: Mapping[str, str], *, proof: str) -> Request:
    """A form posted by a client that authenticates with `client_secret_basic`."""
    headers = {
        "Content-Type": "application/x-www-form-urlencoded",
        "Authorization": "Basic " + b64encode(":".join(client).encode()).decode(),
    }
    return Request(url, "POST", headers, urlencode(fields), proof)


def document(url: str, body: Mapping[str, object], *, proof: str, method: str = "POST", **headers: str) -> Request:
    """A JSON document."""
    return Request(url, method, {"Content-Type": "application/json", **headers}, json.dumps(body), proof)


def ask(request: Request) -> str:
    """The body of the answer; any answer but a 2xx that contains the proof is refused in one line."""
    target = urlsplit(request.url)
    connection = http.client.HTTPConnection(target.netloc, timeout=10)
    try:
        connection.request(request.method, target.path, request.body or None, dict(request.headers))
        answer = connection.getresponse()
        body = answer.read().decode(errors="replace")
    except OSError as exc:
        raise Refused(f"no answer: {exc}") from exc
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise Refused(f"{answer.status} {answer.headers.get('x-error') or machine.first_line(body)}".strip())
    if request.proof not in "".join(body.split()):
        raise Refused(f"{answer.status} without {request.proof}")
    return body


def lua(asked: Sequence[Request]) -> str:
    """The wrk script of some requests. JSON's quoting is also Lua's for what we send, which is ASCII."""
    return SCRIPT.format(requests="\n".join(f"  {json.dumps(_spelled(request))}," for request in asked))


def _spelled(request: Request) -> str:
    """A request as it goes over the wire."""
    target = urlsplit(request.url)
    headers = {"Host": target.netloc, **request.headers}
    if request.body or request.method != "GET":
        headers["Content-Length"] = str(len(request.body))
    lines = [f"{request.method} {target.path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    return "\r\n".join((*lines, "", request.body))


def text_of(body: str, *names: str) -> str:
    """The text at these nested names of a JSON body; refused in one line when it is not there."""
    found = json.loads(body)
    for name in names:
        if not isinstance(found, dict) or name not in found:
            raise Refused(f"the answer has no {name}")
        found = found[name]
    return str(found)
