"""math-verify in a process of its own: an answer that takes too long, or too much memory, costs that process only.

The process is this file run as a script. It imports math-verify once and forks a child that serves requests, one JSON
line each, `[gold]` or `[gold, prediction]`. The alarm of a request that runs out of time kills the child, the script
answers `null` for it and forks the next. At the end of its input, which the parent's death brings about, it ends.
So it can be called from any thread, and from daemonic processes, and does not start the program's main module again.
POSIX only.
"""

import contextlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading

SECONDS = 2.0
"""Wall-clock seconds for one comparison. Ordinary answers take milliseconds, the first of a kind 0.3 s."""
MEMORY_BYTES = 1 << 30
"""Address space of the process; what asks for more fails as if it could not be parsed."""
_START_SECONDS = 120.0
_GRACE_SECONDS = 5.0


class MathWorker:
    """The parent's side: starts the process at the first request, and again after it has gone or a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Leave the process to the parent of a fork: two owners would read each other's answers."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._process.returncode = 0
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: without it the folder of this file would come first on the path of its imports
        command = [sys.executable, "-P", os.path.abspath(__file__)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._process = process
        if self._read_line(process, _START_SECONDS) != b"ready\n":
            self.close()
            raise RuntimeError(f"The process that compares mathematical answers did not start: {' '.join(command)}.")
        return process

    @staticmethod
    def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """Return the next line, b"" if there is none in time or ever again."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            return process.stdout.readline() if selector.select(seconds) else b""

    def ask(self, *texts: str, seconds: float = SECONDS) -> bool | None:
        """Tell whether a gold can be parsed, `ask(gold)`, or a prediction equals it, `ask(gold, prediction)`.

        Args:
            texts: LaTeX without delimiters.
            seconds: wall-clock limit.

        Returns:
            None if it took too long, or crashed the process.

        Raises:
            RuntimeError: if the process cannot be started.
        """
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None
            line = b""
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps([seconds, *texts]).encode() + b"\n")
                process.stdin.flush()
                line = self._read_line(process, seconds + _GRACE_SECONDS)
            if not line:
                self.close()
            return json.loads(line) if line else None

    def close(self) -> None:
        """Kill the process and its child; the next request starts another."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with self._process:
                self._process = None


def _answer(texts: list[str]) -> bool:
    """Answer one request in the child."""
    import sympy
    from math_verify import LatexExtractionConfig, parse, verify

    config = [LatexExtractionConfig()]
    parsed = [parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None) for text in texts]
    if not all(parsed) or any(expression.has(sympy.zoo, sympy.nan) for expression in parsed[0]):
        return False
    return len(parsed) == 1 or verify(parsed[0], parsed[1], timeout_seconds=None)


def _serve(requests: int, answers: int) -> None:
    """Serve requests until their end."""
    with os.fdopen(requests, "rb", buffering=0, closefd=False) as lines:
        for line in lines:
            seconds, *texts = json.loads(line)
            signal.setitimer(signal.ITIMER_REAL, seconds)  # nobody handles the alarm, so it kills
            try:
                answer = _answer(texts)
            except (MemoryError, RecursionError):
                answer = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.write(answers, b"true\n" if answer else b"false\n")


def _main() -> None:
    import logging

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    answers, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    _answer([r"\frac{1}{2}+\sqrt{3}x^2", "0.5"])  # the parser's tables are built once, here, and forked
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.write(answers, b"ready\n")
    while True:
        child = os.fork()
        if child == 0:
            _serve(0, answers)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM):
            return
        os.write(answers, b"null\n")


if __name__ == "__main__":
    _main()
