"""What do all requests add up to? One account per route and method, a bounded number of them."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from loopwatch.catalogue import CAUSE_UNKNOWN, LATENCY_BUCKETS, METHOD, OTHERS, PHASES, ROUTE, STATES
from loopwatch.histogram import NANOSECONDS, bounds_in_nanoseconds, counted
from loopwatch.hot import Account
from loopwatch.readings import HistogramReading, RouteReading
from loopwatch.routes import UNMATCHED, RouteTable
from loopwatch.victims import Victims

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from loopwatch.hot import Request
    from loopwatch.readings import Stall

    Scope = MutableMapping[str, Any]

OTHER_ROUTE, OTHER_METHOD = OTHERS[ROUTE], OTHERS[METHOD]
WEBSOCKET = "WEBSOCKET"
"""Stands for the method of WebSocket sessions. A client that sends it as a method of HTTP does not get it."""
NO_REQUEST = "_none"
"""Stands for route and method of a stall that no request made."""
METHODS: dict[Any, str] = {
    method: method
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY")
}
"""Methods that get a label of their own: those that HTTP defines.

Each leads to its label: what a middleware of the app's puts into the scope may equal it and read otherwise.
"""


class Recorder:
    """Adds up requests by route and method. Written on the loop thread, read on any."""

    def __init__(self, max_routes: int) -> None:
        self.routes: RouteTable | None = None
        """Finds the route template of a request that the app has routed."""
        self._max_routes = max_routes
        self._bounds_ns = bounds_in_nanoseconds(LATENCY_BUCKETS)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all requests and stalls."""
        self._accounts: dict[tuple[str, str], Account] = {}
        self._routes: set[str] = set()
        self._victims = Victims()
        self._stalls: dict[str, HistogramReading] = {}
        self._stall_times: dict[tuple[str, str, str], float] = {}

    def account(self, scope: Scope) -> tuple[Account, tuple[str, int] | None]:
        """Find the account of a request; and the method and ``id`` of the endpoint, if they always lead to it."""
        labels = self.labels_of(scope)
        account = self._account_of(labels)
        endpoint = scope.get("endpoint")
        if labels[1] in METHODS and self.routes is not None and self.routes.is_unique(endpoint):
            return account, (labels[1], id(endpoint))
        return account, None

    def account_of_not_allowed(self, scope: Scope) -> Account:
        """Find the account of a request answered with 405: one for all methods that its route does not allow.

        Anybody can send any method to every route; an account for each would make the page grow.
        """
        return self._account_of((self.labels_of(scope)[0], OTHER_METHOD))

    def charge(self, scope: Scope, blockers: list[tuple[Request, int]]) -> None:
        """Charge what a request lost, in nanoseconds, to those who held the loop meanwhile."""
        victim = self.labels_of(scope)[0]
        for blocker, lost in blockers:
            self._victims.add((victim, blocker.route()), lost)

    def note_stall(self, stall: Stall) -> None:
        """Count a stall. Watcher thread only."""
        counts = [0] * (len(LATENCY_BUCKETS) + 1)
        counts[bisect_left(LATENCY_BUCKETS, stall.duration)] = 1
        one = HistogramReading(LATENCY_BUCKETS, tuple(counts), stall.duration, stall.duration)
        known = self._stalls.get(stall.cause)
        self._stalls[stall.cause] = one if known is None else known + one
        for hold in stall.holds:
            self._add_stall_time((hold.route or NO_REQUEST, hold.method or NO_REQUEST, hold.cause), hold.duration)
        unknown = stall.duration - sum(hold.duration for hold in stall.holds)
        if unknown > 0:
            self._add_stall_time((NO_REQUEST, NO_REQUEST, CAUSE_UNKNOWN), unknown)

    def _add_stall_time(self, key: tuple[str, str, str], seconds: float) -> None:
        self._stall_times[key] = self._stall_times.get(key, 0.0) + seconds

    def read_stalls(self) -> tuple[dict[str, HistogramReading], dict[tuple[str, str, str], float]]:
        """Return a histogram for each cause, and seconds by route, method and cause. Any thread."""
        return self._stalls.copy(), self._stall_times.copy()

    def read(self) -> tuple[RouteReading, ...]:
        """Return the reading of every account. Any thread."""
        return tuple(_reading(*labels, account) for labels, account in self._accounts.copy().items())

    def read_victims(self) -> dict[tuple[str, str], float]:
        """Return the seconds that each (route, blocking route) lost. Any thread."""
        return {pair: lost / NANOSECONDS for pair, lost in self._victims.read().items()}

    def labels_of(self, scope: Scope) -> tuple[str, str]:
        """Return the labels of a request: route template and method, bounded in number."""
        route = self.routes.template(scope) if self.routes is not None else UNMATCHED
        method = METHODS.get(scope.get("method"), OTHER_METHOD) if scope["type"] == "http" else WEBSOCKET
        if route not in self._routes:
            if len(self._routes) >= self._max_routes:
                route = OTHER_ROUTE
            else:
                self._routes.add(route)
        return route, method

    def _account_of(self, labels: tuple[str, str]) -> Account:
        account = self._accounts.get(labels)
        if account is None:
            account = self._accounts[labels] = Account(self._bounds_ns, labels)
        return account


def _reading(route: str, method: str, account: Account) -> RouteReading:
    request, background, cpu, wait, durations = account.read()
    return RouteReading(
        route,
        method,
        {
            (phase, state): time_ns / NANOSECONDS
            for phase, times in zip(PHASES, (request, background), strict=True)
            for state, time_ns in zip(STATES, times, strict=True)
        },
        {f"{status}xx": counted(LATENCY_BUCKETS, *counts) for status, counts in sorted(durations.items())},
        counted(LATENCY_BUCKETS, *cpu),
        counted(LATENCY_BUCKETS, *wait),
    )
