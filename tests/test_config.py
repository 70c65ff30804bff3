"""Every bad setting gets an error that says what, what was expected and what to do."""

from __future__ import annotations

import dataclasses

import pytest

from loopwatch import Config


@pytest.mark.parametrize(
    ("setting", "error", "says"),
    [
        (
            {"metrics_path": "metrics"},
            ValueError,
            "must be a plain path in ASCII that starts with '/', got 'metrics'. Write",
        ),
        ({"metrics_path": "/m?x=1"}, ValueError, "plain path"),
        ({"metrics_path": "/a\n"}, ValueError, "plain path"),
        ({"metrics_path": "/%6d"}, ValueError, "plain path"),
        ({"metrics_path": "/é"}, ValueError, "plain path"),
        ({"metrics_path": 5}, TypeError, "must be a string or None, got 5. Write"),
        ({"max_routes": 0}, ValueError, "must be 1 to 100000, got 0. Choose"),
        ({"max_routes": 1.5}, TypeError, "must be a whole number, got 1.5. Use 1 to 100000"),
        ({"max_routes": True}, TypeError, "must be a whole number, got True"),
        ({"watch_interval_seconds": "fast"}, TypeError, "must be a number, got 'fast'"),
        ({"watch_interval_seconds": float("nan")}, ValueError, "got nan"),
        ({"metrics_port": 70000}, ValueError, "must be 1 to 65535, got 70000"),
        ({"metrics_port": "9101"}, TypeError, "must be a whole number, got '9101'"),
        ({"opentelemetry": "yes"}, TypeError, "must be True or False, got 'yes'"),
        ({"metrics_host": ""}, ValueError, "must be a host name or an address, got ''. Write"),
        ({"metrics_host": " "}, ValueError, "must be a host name or an address, got ' '. Write"),
        ({"metrics_host": None}, TypeError, "must be a string, got None. Write"),
        ({"heartbeat_seconds": -1}, ValueError, "must be 0.001 to 10.0, got -1"),
    ],
)
def test_a_malformed_field_is_refused_with_what_expected_and_what_to_do(setting, error, says):
    with pytest.raises(error) as caught:
        Config(**setting)
    assert next(iter(setting)) in str(caught.value)
    assert says in str(caught.value)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().max_routes = 3


def test_every_field_can_be_set_in_the_environment():
    environ = {
        "LOOPWATCH_METRICS_PATH": "/internal/metrics",
        "LOOPWATCH_METRICS_PORT": "9101",
        "LOOPWATCH_METRICS_HOST": "0.0.0.0",
        "LOOPWATCH_OPENTELEMETRY": "yes",
        "LOOPWATCH_MAX_ROUTES": "7",
        "LOOPWATCH_MAX_POOLS": "5",
        "LOOPWATCH_STALL_SECONDS": "0.2",
        "LOOPWATCH_WATCH_INTERVAL_SECONDS": "0.05",
        "LOOPWATCH_HEARTBEAT_SECONDS": "1",
        "LOOPWATCH_POOL_STALL_SECONDS": "30",
        "HOME": "/root",
    }
    assert {f"LOOPWATCH_{field.name.upper()}" for field in dataclasses.fields(Config)} == set(environ) - {"HOME"}
    assert Config.from_env(environ) == Config(
        metrics_path="/internal/metrics",
        metrics_port=9101,
        metrics_host="0.0.0.0",
        opentelemetry=True,
        max_routes=7,
        max_pools=5,
        stall_seconds=0.2,
        watch_interval_seconds=0.05,
        heartbeat_seconds=1.0,
        pool_stall_seconds=30.0,
    )
    assert Config.from_env({}) == Config()
    assert Config.from_env({"LOOPWATCH_METRICS_PATH": "off"}).metrics_path is None


def test_it_reads_the_process_environment_by_default(monkeypatch):
    monkeypatch.setenv("LOOPWATCH_MAX_ROUTES", "9")
    assert Config.from_env().max_routes == 9


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        (
            "LOOPWATCH_MAX_ROUTE",
            "7",
            "LOOPWATCH_MAX_ROUTE is not a setting of loopwatch; expected one of LOOPWATCH_",
        ),
        ("LOOPWATCH_METRIC_PORT", "9101", "LOOPWATCH_METRIC_PORT is not a setting of loopwatch"),
        ("LOOPWATCH_MAX_ROUTES", "many", "LOOPWATCH_MAX_ROUTES must be a whole number, got 'many'. Correct it"),
        ("LOOPWATCH_HEARTBEAT_SECONDS", "", "LOOPWATCH_HEARTBEAT_SECONDS must be a number, got ''"),
        ("LOOPWATCH_OPENTELEMETRY", "maybe", "LOOPWATCH_OPENTELEMETRY must be yes or no, got 'maybe'"),
        ("LOOPWATCH_MAX_ROUTES", "-5", "LOOPWATCH_MAX_ROUTES must be 1 to 100000, got -5. Choose"),
        ("LOOPWATCH_METRICS_HOST", "", "LOOPWATCH_METRICS_HOST must be a host name or an address, got ''. Write"),
    ],
)
def test_an_unknown_or_malformed_variable_is_refused(variable, text, says):
    with pytest.raises(ValueError) as caught:
        Config.from_env({variable: text})
    assert says in str(caught.value)


def test_what_kubernetes_says_of_services_with_such_a_name_is_no_setting():
    environ = {
        "LOOPWATCH_SERVICE_HOST": "10.0.0.1",
        "LOOPWATCH_SERVICE_PORT_HTTP": "80",
        "LOOPWATCH_PORT": "tcp://10.0.0.1:80",
        "LOOPWATCH_PORT_80_TCP_ADDR": "10.0.0.1",
        "LOOPWATCH_METRICS_SERVICE_HOST": "10.0.0.2",
        "LOOPWATCH_METRICS_PORT": "tcp://10.0.0.2:9101",
        "LOOPWATCH_METRICS_PORT_9101_TCP": "tcp://10.0.0.2:9101",
    }
    assert Config.from_env(environ) == Config()
    assert Config.from_env({**environ, "LOOPWATCH_METRICS_PORT": "9101"}).metrics_port == 9101
