"""What uvloop's loops do, by their documentation and asyncio's: each test on a loop of its own."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import socket
import sys
import tempfile
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvloop

PATIENCE_SECONDS = 30
variable = contextvars.ContextVar("variable", default="unset")


class Echo(asyncio.Protocol):
    """Sends back what it receives, and says when it has lost its connection."""

    def __init__(self):
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

    def connection_lost(self, error):
        self.lost.set_result(error)


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = asyncio.get_running_loop().create_future()

    def datagram_received(self, data, address):
        self.received.set_result(data)


class Behaviours(unittest.TestCase):
    def setUp(self):
        self.loop = uvloop.new_event_loop()
        self.contexts = []
        self.loop.set_exception_handler(lambda _, context: self.contexts.append(context))
        self.addCleanup(self.loop.close)

    def run_on(self, coroutine):
        async def within():
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await coroutine

        return self.loop.run_until_complete(within())

    # --- callbacks and timers

    def test_callbacks_run_in_the_order_in_which_they_were_scheduled(self):
        seen = []
        for number in range(5):
            self.loop.call_soon(seen.append, number)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        assert seen == [0, 1, 2, 3, 4]

    def test_a_cancelled_callback_and_a_cancelled_timer_do_not_run(self):
        seen = []
        for handle in (self.loop.call_soon(seen.append, 1), self.loop.call_later(0.001, seen.append, 2)):
            handle.cancel()
            assert handle.cancelled()
        self.run_on(asyncio.sleep(0.01))
        assert seen == []

    def test_timers_run_by_their_times(self):
        seen = []
        self.loop.call_later(0.03, seen.append, "last")
        self.loop.call_at(self.loop.time() + 0.001, seen.append, "first")
        timer = self.loop.call_later(0.015, seen.append, "middle")
        assert timer.when() > self.loop.time()
        self.run_on(asyncio.sleep(0.06))
        assert seen == ["first", "middle", "last"]

    def test_what_is_refused_is_refused(self):
        with pytest.raises(TypeError):
            self.loop.call_later("soon", print)
        with pytest.raises(TypeError):
            self.loop.call_soon(print, no_such_argument=1)
        self.run_on(asyncio.sleep(0))
        with pytest.raises(TypeError):
            self.loop.call_later("soon", print)
        with pytest.raises(TypeError):
            self.loop.call_at(self.loop.time(), print, no_such_argument=1)
        with pytest.raises(TypeError):
            self.loop.call_soon_threadsafe(print, no_such_argument=1)

    def test_callbacks_and_timers_run_in_the_context_that_they_are_given(self):
        async def main():
            variable.set("ours")
            other, seen = contextvars.Context(), []
            loop = asyncio.get_running_loop()
            for schedule in (
                loop.call_soon,
                loop.call_soon_threadsafe,
                lambda *a, **o: loop.call_later(0, *a, **o),
            ):
                schedule(lambda: seen.append(variable.get()))
                schedule(lambda: seen.append(variable.get()), context=other)
            await asyncio.sleep(0.02)
            return sorted(seen)

        assert self.run_on(main()) == ["ours"] * 3 + ["unset"] * 3

    def test_an_exception_in_a_callback_goes_to_the_handler(self):
        self.loop.call_soon(lambda: 1 / 0)
        self.run_on(asyncio.sleep(0))
        (context,) = self.contexts
        assert isinstance(context["exception"], ZeroDivisionError)

    def test_system_exit_in_a_callback_leaves_the_loop(self):
        self.loop.call_soon(sys.exit, 3)
        with pytest.raises(SystemExit):
            self.loop.run_forever()
        self.run_on(asyncio.sleep(0))

    # --- runs, ends and states

    def test_it_runs_again_after_a_stop_and_never_after_its_close(self):
        for _ in range(3):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            assert not self.loop.is_running()
        self.loop.close()
        self.loop.close()
        assert self.loop.is_closed()
        for use in (
            self.loop.run_forever,
            lambda: self.loop.call_soon(print),
            lambda: self.loop.call_later(1, print),
        ):
            with pytest.raises(RuntimeError, match="closed"):
                use()

    def test_it_neither_runs_within_itself_nor_closes_while_it_runs(self):
        async def main():
            for use in (self.loop.run_forever, self.loop.close):
                with pytest.raises(RuntimeError):
                    use()

        self.run_on(main())

    def test_a_stop_before_the_end_is_an_error_of_run_until_complete(self):
        async def main():
            self.loop.stop()
            await asyncio.sleep(10)

        task = self.loop.create_task(main())
        with pytest.raises(RuntimeError, match="before Future completed"):
            self.loop.run_until_complete(task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            self.loop.run_until_complete(task)

    def test_debug_mode_can_be_switched_and_refuses_other_threads(self):
        self.loop.set_debug(True)
        self.loop.slow_callback_duration = 60

        async def main():
            errors = []

            def in_thread():
                try:
                    self.loop.call_soon(print)
                except RuntimeError as error:
                    errors.append(str(error))

            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join(PATIENCE_SECONDS)
            return errors

        assert len(self.run_on(main())) == 1
        assert self.loop.get_debug()

    def test_asynchronous_generators_are_closed(self):
        seen = []

        async def generate():
            try:
                while True:
                    yield
            finally:
                await asyncio.sleep(0)
                seen.append("closed")

        async def main():
            self.generator = generate()
            await anext(self.generator)

        self.run_on(main())
        self.run_on(self.loop.shutdown_asyncgens())
        assert seen == ["closed"]

    # --- tasks

    def test_tasks_have_names_results_contexts_and_cancellations(self):
        async def child(seconds=0.0):
            await asyncio.sleep(seconds)
            return variable.get()

        async def main():
            variable.set("ours")
            named = self.loop.create_task(child(), name="named")
            other = self.loop.create_task(child(), context=contextvars.Context())
            late = self.loop.create_task(child(60))
            await asyncio.sleep(0)
            late.cancel("enough")
            with pytest.raises(asyncio.CancelledError, match="enough"):
                await late
            return named.get_name(), await named, await other, type(named) is asyncio.Task

        assert self.run_on(main()) == ("named", "ours", "unset", True)

    def test_a_task_factory_makes_the_tasks(self):
        made = []

        def factory(loop, coroutine, **options):
            made.append(coroutine.__qualname__)
            return asyncio.Task(coroutine, loop=loop)

        async def child():
            return 1

        assert self.loop.get_task_factory() is None
        self.loop.set_task_factory(factory)
        assert self.run_on(child()) == 1
        assert made
        with pytest.raises(TypeError):
            self.loop.set_task_factory(1)

    def test_an_exception_of_a_task_that_nobody_asks_for_goes_to_the_handler(self):
        async def fails():
            raise ValueError("nobody asks")

        async def main():
            self.loop.create_task(fails())
            await asyncio.sleep(0.01)

        self.run_on(main())
        (context,) = self.contexts
        assert str(context["exception"]) == "nobody asks"

    # --- threads

    def test_work_in_the_default_executor_and_in_one_that_is_given(self):
        async def main():
            with ThreadPoolExecutor(1, thread_name_prefix="given") as given:
                there = await self.loop.run_in_executor(given, lambda: threading.current_thread().name)
            with pytest.raises(ZeroDivisionError):
                await self.loop.run_in_executor(None, divmod, 1, 0)
            return there.startswith("given"), await asyncio.to_thread(threading.get_ident) != threading.get_ident()

        assert self.run_on(main()) == (True, True)
        self.run_on(self.loop.shutdown_default_executor())
        with pytest.raises(RuntimeError):
            self.run_on(asyncio.to_thread(print))

    def test_the_default_executor_can_be_replaced(self):
        async def main():
            with ThreadPoolExecutor(1, thread_name_prefix="mine") as mine:
                self.loop.set_default_executor(mine)
                return await asyncio.to_thread(lambda: threading.current_thread().name)

        assert self.run_on(main()).startswith("mine")

    def test_another_thread_wakes_the_loop_and_runs_coroutines_on_it(self):
        async def doubled(number):
            await asyncio.sleep(0)
            return 2 * number

        async def main():
            woken = asyncio.Event()
            wake = threading.Thread(target=self.loop.call_soon_threadsafe, args=(woken.set,))
            wake.start()
            await woken.wait()
            wake.join(PATIENCE_SECONDS)
            return await asyncio.to_thread(
                lambda: asyncio.run_coroutine_threadsafe(doubled(4), self.loop).result(PATIENCE_SECONDS)
            )

        assert self.run_on(main()) == 8

    # --- sockets, pipes, processes, signals

    def test_streams_echo_over_tcp(self):
        async def main():
            async def echo(reader, writer):
                writer.write(await reader.readexactly(100_000))
                await writer.drain()
                writer.close()

            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            async with server:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(b"x" * 100_000)
                data = await reader.read(-1)
                writer.close()
                await writer.wait_closed()
            return len(data)

        assert self.run_on(main()) == 100000

    def test_protocols_echo_over_tcp_and_lose_their_connections(self):
        async def main():
            made = []
            server = await self.loop.create_server(lambda: made.append(Echo()) or made[0], "127.0.0.1", 0)
            with socket.create_connection(server.sockets[0].getsockname()) as client:
                client.setblocking(False)
                await self.loop.sock_sendall(client, b"abc")
                received = await self.loop.sock_recv(client, 3)
            lost = await made[0].lost
            server.close()
            await server.wait_closed()
            return received, lost, made[0].transport.is_closing()

        assert self.run_on(main()) == (b"abc", None, True)

    def test_protocols_talk_over_a_unix_socket(self):
        async def main():
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/socket"
                server = await self.loop.create_unix_server(Echo, path)
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b"abc")
                received = await reader.readexactly(3)
                writer.close()
                server.close()
                return received

        assert self.run_on(main()) == b"abc"

    def test_datagrams_arrive(self):
        async def main():
            there, receiver = await self.loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
            here, _ = await self.loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, remote_addr=there.get_extra_info("sockname")
            )
            here.sendto(b"abc")
            received = await receiver.received
            here.close()
            there.close()
            return received

        assert self.run_on(main()) == b"abc"

    def test_a_refused_connection_raises(self):
        async def main():
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                await asyncio.open_connection(*unused.getsockname())

        with pytest.raises(ConnectionRefusedError):
            self.run_on(main())

    def test_names_are_resolved(self):
        async def main():
            found = await self.loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
            return found[0][4], (await self.loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST))[0]

        assert self.run_on(main()) == (("127.0.0.1", 80), "127.0.0.1")

    def test_readers_and_writers_of_descriptors_are_called_until_they_are_removed(self):
        async def main():
            here, there = socket.socketpair()
            with here, there:
                here.setblocking(False)
                readable, writable = asyncio.Event(), asyncio.Event()
                self.loop.add_reader(here, readable.set)
                self.loop.add_writer(here, writable.set)
                await writable.wait()
                there.send(b"x")
                await readable.wait()
                self.loop.remove_reader(here)
                self.loop.remove_writer(here)
                readable.clear()
                there.send(b"y")
                await asyncio.sleep(0.01)
                return readable.is_set()

        assert not self.run_on(main())

    def test_a_process_tells_what_it_says_and_how_it_ends(self):
        async def main():
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "print(input()); raise SystemExit(3)",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await process.communicate(b"abc\n")
            return out, process.returncode

        assert self.run_on(main()) == (b"abc\n", 3)

    def test_signals_call_their_handlers(self):
        async def main():
            called = asyncio.Event()
            self.loop.add_signal_handler(signal.SIGUSR1, called.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await called.wait()
            return [self.loop.remove_signal_handler(signal.SIGUSR1) for _ in range(2)]

        assert self.run_on(main()) == [True, False]
