"""Which route template did a request match? ASGI scope in, ``/sub/{tenant}/items/{item}`` out.

Starlette and FastAPI leave the matched endpoint in the scope, but no full template: ``route`` is missing for
some routes, and inside a mount or an included router it holds only the inner part. So the tree of routes is
walked once and the templates are found by endpoint.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

from loopwatch.names import printable, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, MutableMapping

UNMATCHED = "_unmatched"

_MOUNTED = "/{path}"

_BRIEF_SECONDS = 0.001
"""Where routes change at each request, a look at all of them may take that long: it takes the loop's time."""

_APART = 50
"""After a longer look, the next comes no sooner than fifty times as long after; so it does after one in vain."""

_MOST_APART_SECONDS = 60.0
"""How far looks are apart in the end where no change can be seen and none finds anything."""


class _Template(NamedTuple):
    endpoint: Any  # held, so that its id stays its own
    path: str
    label: str
    pattern: str


def _template(endpoint: Any, path: str, pattern: str) -> _Template:
    return _Template(endpoint, path, printable(path), pattern)


class RouteTable:
    """The templates of one app, found by endpoint. Loop thread only.

    ``on_new`` is called after each new look: an endpoint may have the ``id`` of one that was removed.
    """

    def __init__(
        self,
        app: Any,
        on_new: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._app, self._on_new, self._clock, self._cpu_clock = app, on_new, clock, cpu_clock
        self._by_endpoint: dict[int, list[_Template]] = {}
        self._unique: dict[int, str] = {}
        self._seen: list[tuple[Sequence[Any], list[Any]]] = []
        self._next_look = self._next_look_in_vain = self._apart = 0.0
        self._build()

    def serves(self, path: str) -> bool:
        """Tell whether the app itself has a route or mount at exactly ``path``."""
        own = (path, path + _MOUNTED)
        return any(template.path in own for found in self._by_endpoint.values() for template in found)

    def is_unique(self, endpoint: Any) -> bool:
        """Tell whether an endpoint has one template, which is then that of every request it serves."""
        return id(endpoint) in self._unique

    def template(self, scope: MutableMapping[str, Any]) -> str:
        """Return the template that the request of ``scope`` matched, once the app has routed it."""
        endpoint = scope.get("endpoint")
        unique = self._unique.get(id(endpoint))
        if unique is not None:
            return unique
        found = self._by_endpoint.get(id(endpoint)) or self._find_new(endpoint)
        if len(found) == 1:
            return found[0].label
        path = str(scope.get("path", ""))
        path = path.removeprefix(str(scope.get("app_root_path", scope.get("root_path", ""))))
        return next((t.label for t in found if re.fullmatch(t.pattern, path)), UNMATCHED)

    def _find_new(self, endpoint: Any) -> list[_Template]:
        """Look again for routes that were added after the last look, unless that was a moment ago.

        A router may make a new endpoint for each request: then no look ever finds it.
        """
        changed = self._has_changed()
        if self._clock() < (self._next_look if changed else self._next_look_in_vain):
            return []
        cpu_before = self._cpu_clock()
        self._build()
        if self._on_new is not None:
            self._on_new()
        found = self._by_endpoint.get(id(endpoint), [])
        ended, took = self._clock(), self._cpu_clock() - cpu_before  # CPU: a busy machine makes no look longer
        if changed:
            self._next_look = ended + _APART * max(0.0, took - _BRIEF_SECONDS)
        self._apart = 0.0 if found else min(max(2 * self._apart, _APART * took), _MOST_APART_SECONDS)
        self._next_look_in_vain = ended + self._apart
        return found

    def _has_changed(self) -> bool:
        """Compare the lists of routes with what was in them; some microseconds for hundreds of routes."""
        return any(len(routes) != len(before) or not all(map(is_, routes, before)) for routes, before in self._seen)

    def _build(self) -> None:
        seen: list[Sequence[Any]] = []
        by_endpoint: dict[int, list[_Template]] = {}
        for template in _walk(_routes_of(self._app), "", "", seen):
            by_endpoint.setdefault(id(template.endpoint), []).append(template)
        unique = {one: found[0].label for one, found in by_endpoint.items() if len(found) == 1}
        unique[id(None)] = UNMATCHED
        self._by_endpoint, self._unique = by_endpoint, unique
        self._seen = [(routes, list(routes)) for routes in seen]


def _routes_of(app: Any) -> Sequence[Any]:
    """Return the routes of an app, looking through the middleware around it."""
    for _ in range(100):
        routes = getattr(app, "routes", None)
        if routes and isinstance(routes, Sequence):
            return routes
        app = getattr(app, "app", None)
        if app is None:
            break
    return ()


def _walk(
    routes: Sequence[Any],
    prefix: str,
    prefix_pattern: str,
    seen: list[Sequence[Any]],
    within: tuple[Sequence[Any], ...] = (),
) -> Iterator[_Template]:
    """Find the templates below ``prefix``, and add to ``seen`` the lists that they are in."""
    if any(routes is one for one in within):
        return  # an app that is mounted in itself
    within = (*within, routes)
    seen.append(routes)
    for route in routes:
        included = getattr(route, "effective_route_contexts", None)  # FastAPI's included routers
        if included is not None:
            effective = [getattr(context, "starlette_route", None) or context for context in included()]
            seen.append(getattr(getattr(route, "original_router", None), "routes", ()))
            yield from _walk(effective, prefix, prefix_pattern, seen, within)
            continue
        endpoint, app = getattr(route, "endpoint", None), getattr(route, "app", None)
        path = getattr(route, "path_format", None) if hasattr(route, "path_regex") else None
        path = path if path is None else text_of(path)
        if endpoint is not None and path is not None:
            yield _template(endpoint, prefix + path, prefix_pattern + _pattern(route))
        elif hasattr(route, "host"):
            yield from _walk(_routes_of(app), prefix, prefix_pattern, seen, within)
        elif path is not None and path.endswith(_MOUNTED):
            inner = _routes_of(app)
            mount_pattern = prefix_pattern + _pattern(route).removesuffix("/(?:.*)")
            yield from _walk(inner, prefix + path.removesuffix(_MOUNTED), mount_pattern, seen, within)
            if not inner:
                yield _template(app, prefix + path, prefix_pattern + _pattern(route))


def _pattern(route: Any) -> str:
    """Return a route's regular expression without anchors and names, fit to be joined with others."""
    pattern: str = route.path_regex.pattern
    return re.sub(r"\(\?P<\w+>", "(?:", pattern.removeprefix("^").removesuffix("$"))
