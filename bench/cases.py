"""What is measured: the routes of a server, each with what it is compared to and the samples of every round."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bench import loads
from bench.loads import Request, Sample
from bench.machine import Refused

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Route(Generic[Subject]):
    """A route to measure, and how its request is made from what a started server offers."""

    path: str
    make: Callable[[Subject], Request | Sequence[Request]]
    signs: bool = False  # one RSA signature per request
    peer: str = ""  # the name of what its rate is compared with


@dataclass(slots=True)
class Case:
    """One route of one server: measured, or with the reason why not."""

    name: str
    signs: bool = False
    peer: str = ""
    requests: Sequence[Request] = ()
    cpu: Callable[[], float] | None = None
    """The processor time of its server so far, in microseconds."""
    refusal: str = ""
    samples: list[Sample] = field(default_factory=list)

    @property
    def rates(self) -> Sequence[float]:
        return [sample.rate for sample in self.samples]

    @property
    def cpus(self) -> Sequence[float]:
        return [sample.cpu_us for sample in self.samples]

    def refuse(self, reason: str) -> None:
        """Measure this case no more, and say why; what was measured of it is not comparable and goes."""
        self.requests, self.refusal = (), reason
        self.samples.clear()


def prepare(
    server: str, routes: Sequence[Route[Subject]], start: Callable[[], tuple[Subject, Callable[[], float]]]
) -> list[Case]:
    """The cases of a server once it is started: each asked once, and refused if that was not answered well.

    `start` gives what requests are made from, and what tells the processor time of the server.
    """
    cases = [Case(f"{server} {route.path}", route.signs, route.peer) for route in routes]
    try:
        subject, cpu = start()
    except Refused as refused:
        for case in cases:
            case.refuse(str(refused))
        return cases
    for case, route in zip(cases, routes, strict=True):
        try:
            made = route.make(subject)
            requests = [made] if isinstance(made, Request) else made
            loads.ask(requests[0])
        except Refused as refused:
            case.refuse(str(refused))
        else:
            case.requests, case.cpu = requests, cpu
    return cases
