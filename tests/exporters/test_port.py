"""A port of its own: on what addresses it can be, and what is said where it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import httpx
import pytest

from loopwatch import Config, LoopWatch
from tests.serving import free_port
from tests.waiting import PATIENCE_SECONDS, until


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


async def fetch(url):
    async with httpx.AsyncClient() as client:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                return await client.get(url)
            await asyncio.sleep(0.05)
    raise AssertionError(f"nobody answers at {url}")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_it_is_served_on_a_host_of_any_kind(host):
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()

    async def main():
        async with LoopWatch(Config(metrics_host=host, metrics_port=port)):
            return await fetch(f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics")

    page = asyncio.run(main())
    assert page.status_code == 200
    assert "loopwatch_loop_lag_seconds_bucket" in page.text


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_will_never_be_ours_is_a_failure_and_the_loop_is_measured_on(host, caplog):
    async def main():
        async with LoopWatch(Config(metrics_host=host, metrics_port=free_port())) as watch:
            await until(lambda: "metrics are not served there" in caplog.text, "the failure")
            return watch.failures.read(), watch.snapshot().loop

    failures, loop = asyncio.run(main())
    assert failures == {"metrics port": 1}
    assert loop.busy > 0
