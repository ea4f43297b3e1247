"""Real servers for tests to talk to, pause and kill: Redis and memcached, each a child process with a port of its own.

The port stays the same for a server's whole life, over every stop, kill and restart.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from instruments import GUARD

_HERE = Path(__file__).parent.parent / ".cache" / "servers" / "bin"

# Below the ports that systems give to outgoing connections: one of those could be given a stopped server's port, even
# the connection that looks for that very server, which then talks to itself.
_PORTS = range(20_000, 32_768)

# Ends a server when its parent is gone, however it went: then the pipe's other end is closed, and `read` returns.
# Unlike prctl(PR_SET_PDEATHSIG), it does not take the end of the thread that started the server for the parent's.
_GUARDIAN = 'read _; kill -9 "$1"; rm -rf "$2"'


def find_server(name):
    """Return the path of a server's binary."""
    found = shutil.which(name) or shutil.which(name, path=_HERE)
    if found is None:
        raise FileNotFoundError(f"no {name} on the PATH nor in .cache/servers/bin; fetch it: make servers")
    return found


def find_program(name):
    """Return the path of a program of `make test-system`; a test that lacks it fails."""
    found = shutil.which(name) or shutil.which(name, path=_HERE.parents[1] / "system" / "bin")
    if found is None:
        raise FileNotFoundError(f"no {name} on the PATH nor in .cache/system/bin; fetch it: make programs")
    return found


def _free_port():
    # Not seeded: tests that run at the same time, or with the same seed, each need their own.
    for port in random.SystemRandom().sample(_PORTS, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port found on 127.0.0.1 from {_PORTS.start} to {_PORTS.stop - 1}")


def _ask(address, line, last=b"\r\n"):
    """Send a line and return the answer up to `last`: what both servers speak, without a client of either."""
    with socket.socket(socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX) as connection:
        connection.settimeout(GUARD)
        connection.connect(address)
        connection.sendall(line + b"\r\n")
        answer = b""
        while not answer.endswith(last):
            more = connection.recv(65_536)
            if not more:
                raise ConnectionError(f"hung up after {answer!r}")
            answer += more
        return answer


class _Server:
    """A server as a child process, in a folder of its own."""

    binary: str

    def __init__(self, *, port=None, args=()):
        self._path = find_server(self.binary)
        self.args = [str(arg) for arg in args]
        self.port = port or _free_port()
        self.folder = Path(tempfile.mkdtemp(prefix=f"semcache-{self.binary}-"))
        self.log = self.folder / "log"
        self._process = None
        self._guardian = None
        self._clients = []

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        return f"<{type(self).__name__} on port {self.port}, {'running' if self.running else 'not running'}>"

    def _command(self):
        raise NotImplementedError

    def _ready(self):
        raise NotImplementedError

    @property
    def pid(self):
        """The process id; None while there is no process."""
        return self._process and self._process.pid

    @property
    def running(self):
        """Whether the process is there, paused or not."""
        return self._process is not None and self._process.poll() is None

    def start(self):
        """Start the server, and return it when it answers."""
        assert not self.running, f"{self!r} was started before"
        self._reap()  # one that went by itself
        command = [self._path, *self._command(), *self.args]
        with self.log.open("ab") as log:
            # In a process group of its own: an interrupt from the keyboard is for the tests, which then stop it.
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        self._guardian = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDIAN, "guardian", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        deadline = time.monotonic() + GUARD
        while True:
            try:
                if self._ready():
                    return self
            except OSError:
                pass  # nobody listens yet
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                self.kill()
                why = f"did not answer within {GUARD} s" if ended is None else f"ended with status {ended}"
                raise RuntimeError(f"{self.binary} {why}; the end of its log:\n{self._tail()}")
            time.sleep(0.002)

    def stop(self):
        """Ask the server to end (SIGTERM), paused or not, and wait until it has."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)
            try:
                self._process.wait(GUARD)
            except subprocess.TimeoutExpired:
                self.kill()
                raise RuntimeError(f"{self.binary} did not end; the end of its log:\n{self._tail()}") from None
        self._reap()

    def kill(self):
        """End the server at once (SIGKILL), paused or not."""
        if self.running:
            self._process.kill()
        self._reap()

    def pause(self):
        """Stop the server's clock (SIGSTOP): connections are still accepted, by the kernel, and nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)
        # The signal is sent; wait until it has arrived.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self):
        """Let a paused server go on, and return when it answers."""
        self._process.send_signal(signal.SIGCONT)
        assert self._ready(), f"{self!r} does not answer after a pause"

    def close(self):
        """Kill the server, close the clients that came from here, and remove the folder."""
        self.kill()
        for client in self._clients:
            client.close()
        self._clients.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _reap(self):
        guardian, self._guardian = self._guardian, None
        process, self._process = self._process, None
        if guardian is not None:
            guardian.kill()  # before its pipe is closed and before the process id is free for others
            guardian.wait(GUARD)
            guardian.stdin.close()
        if process is not None:
            process.wait(GUARD)

    def _tail(self):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


class RedisServer(_Server):
    """A Redis that listens on a port of 127.0.0.1 and on a Unix socket, and forgets all when it ends.

    With `appendonly` it keeps its data; with `password` it asks for one. `args` are for redis-server's command line:
    `["--maxmemory", "2mb"]`.
    """

    binary = "redis-server"

    def __init__(self, *, appendonly=False, password=None, port=None, args=()):
        super().__init__(port=port, args=args)
        self.appendonly = appendonly
        self.password = password
        self.socket = str(self.folder / "socket")

    @property
    def url(self):
        """The URL for clients, with the password where there is one."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self):
        """The same by way of the Unix socket."""
        login = f":{self.password}@" if self.password else ""
        return f"unix://{login}{self.socket}?db=0"

    def client(self, **settings):
        """Make a plain client, which is closed with the server; `settings` are those of redis.Redis."""
        import redis

        settings = {"host": "127.0.0.1", "port": self.port, "password": self.password} | settings
        client = redis.Redis(**settings)
        self._clients.append(client)
        return client

    def cli(self, *command):
        """Run one command, over a connection of its own, and return its answer."""
        import redis

        with redis.Redis(host="127.0.0.1", port=self.port, password=self.password) as client:
            return client.execute_command(*command)

    def restart(self, *, keep_data=False):
        """Stop the server and start it again, on the same port."""
        self.stop()
        if keep_data:
            assert self.appendonly, "a server without appendonly has no data to keep"
        else:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)  # since Redis 7
            for left in ("appendonly.aof", "dump.rdb"):
                (self.folder / left).unlink(missing_ok=True)
        return self.start()

    def _command(self):
        command = ["--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.socket]
        command += ["--dir", str(self.folder), "--save", "", "--appendonly", "yes" if self.appendonly else "no"]
        if self.password:
            command += ["--requirepass", self.password]
        return command

    def _ready(self):
        # By way of the socket, which can only be this server's own. Errors are answers too, -NOAUTH for one; -LOADING
        # is not one yet.
        return not _ask(self.socket, b"PING").startswith(b"-LOADING")


class MemcachedServer(_Server):
    """A memcached that listens on a port of 127.0.0.1; `args` are for its command line: `["-m", "2"]`."""

    binary = "memcached"

    @property
    def url(self):
        """The URL for clients."""
        return f"memcached://127.0.0.1:{self.port}"

    def client(self, **settings):
        """Make a plain client, which is closed with the server; `settings` are those of pymemcache's Client."""
        import pymemcache

        client = pymemcache.Client(("127.0.0.1", self.port), **settings)
        self._clients.append(client)
        return client

    def cli(self, line):
        """Send one line of the text protocol that is answered by one, and return the answer."""
        return _ask(("127.0.0.1", self.port), line.encode()).rstrip().decode()

    def restart(self):
        """End the server and start it again, on the same port; it has forgotten all."""
        self.kill()  # it has nothing to put in order, and takes a second to do so
        return self.start()

    def _command(self):
        command = ["-l", "127.0.0.1", "-p", str(self.port), "-U", "0", "-v"]
        if os.geteuid() == 0:
            command += ["-u", "nobody"]  # it refuses to be root
        return command

    def _ready(self):
        # Were the port another's, that one would answer while this one ends: ask who it is.
        answer = _ask(("127.0.0.1", self.port), b"stats", last=b"END\r\n")
        return f"STAT pid {self.pid}\r\n".encode() in answer
