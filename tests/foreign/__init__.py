"""Suites of other projects, run bare and on measured loops: a test that passes bare passes measured."""
