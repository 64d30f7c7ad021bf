"""The setup of attacks: a server on free ports, its victims, and the server's resource usage."""

import contextlib
import importlib
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
import time

import wire

HERE = pathlib.Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20
LARGE = os.environ.get("SLOTCAST_HOSTILE", "small") == "large"
# Memory that may remain after an attack: allocators and tables that have grown once keep some of it. A leak grows with every
# round by the same amount, so a few more rounds distinguish the two.
GROWTH_BYTES_MAX = 32 * MIB
GROWTH_AGAIN_BYTES_MAX = 2 * MIB
ROUNDS_MAX = 6
# Long enough for a machine that also compiles; a hang takes longer.
VICTIM_MS_MAX = 5_000
SETTLE_S = 15


def size(small, large):
    return large if LARGE else small


class Server:
    """`slotcast serve` with a data folder; `limits` is its environment, `descriptors_max` its `ulimit -n`."""

    def __init__(self, folder, limits=None, descriptors_max=None):
        folder.mkdir()
        command = [os.environ["SLOTCAST_BIN"], "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
        command += ["--data", str(folder / "data")]
        if descriptors_max:
            command = ["/bin/sh", "-c", f'ulimit -n {descriptors_max}; exec "$@"', "sh", *command]
        # Variables of the tests themselves would be refused as unknown settings.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLOTCAST_")}
        environment["SLOTCAST_LOG"] = "warn"
        environment |= {f"SLOTCAST_LIMITS_{name.upper()}": str(value) for name, value in (limits or {}).items()}
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        ready, _, _ = select.select([self.process.stdout], [], [], 10)
        line = self.process.stdout.readline() if ready else ""
        if not line.startswith("listening on http://"):
            self.end()
            raise AssertionError(f"instead of where it listens the server said {line!r}; {self.log.read_text()}")
        self.address = line.removeprefix("listening on http://").strip()
        self.folder = pathlib.Path(f"/proc/{self.process.pid}")

    def rss(self):
        return int(self.field("VmRSS").split()[0]) * 1024

    def field(self, name):
        for line in (self.folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.split(":", 1)[1].strip()
        raise AssertionError(f"the server is gone: {self.log.read_text()[-2_000:]}")

    def cpu_s(self):
        fields = (self.folder / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def descriptors(self):
        return len(os.listdir(self.folder / "fd"))

    def end(self):
        self.process.kill()
        self.process.wait()

    def check(self):
        """Asserts that the server runs and has not panicked."""
        log = self.log.read_text(errors="replace")
        assert self.process.poll() is None, f"the server has ended with {self.process.returncode}: {log[-2_000:]}"
        assert "panicked" not in log, log[-2_000:]


class Victims:
    """The process of victims.py, which reports latencies and errors on request."""

    def __init__(self, address, generated, rate):
        command = [sys.executable, str(HERE / "victims.py"), address, str(generated), str(rate)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, text=True, bufsize=1, **pipes)
        self.answer()

    def figures(self):
        self.process.stdin.write("figures\n")
        return self.answer()

    def answer(self):
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        line = self.process.stdout.readline() if ready else ""
        assert line, "the victims do not answer"
        return json.loads(line)

    def end(self):
        self.process.kill()
        self.process.wait()


class Sampler:
    """Measures the peak memory and descriptors of the server, and its CPU time, while an attack runs."""

    def __init__(self, server):
        self.server, self.stop = server, threading.Event()
        self.rss_peak, self.descriptors_peak = server.rss(), server.descriptors()
        self.cpu_s, self.began = server.cpu_s(), time.monotonic()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def sample(self):
        with contextlib.suppress(OSError, AssertionError):
            while not self.stop.wait(0.02):
                self.rss_peak = max(self.rss_peak, self.server.rss())
                self.descriptors_peak = max(self.descriptors_peak, self.server.descriptors())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.seconds = time.monotonic() - self.began
        self.cpu_percent = 100 * (self.server.cpu_s() - self.cpu_s) / self.seconds


class Arena:
    """A server with victims; `trial` runs one attack on it."""

    def __init__(self, folder, generated, limits=None, descriptors_max=None):
        self.server = Server(folder, limits, descriptors_max)
        self.address, self.victims = self.server.address, None
        try:
            self.victims = Victims(self.address, generated, 100)
        except AssertionError:
            self.server.end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.victims:
            self.victims.end()
        self.server.end()

    def connect(self, **options):
        return wire.Connection(self.address, **options)

    def trial(self, attack, rounds=2):
        """Runs `attack(arena)` several times. Returns its last result and the figures. The attack must close its connections."""
        bytes_max = self.server.rss() + getattr(attack, "growth_bytes_max", GROWTH_BYTES_MAX)
        figures = {"before": self.calm()}
        descriptors, rss = self.server.descriptors(), self.rss_at_rest()
        after, notes = [], []
        with Sampler(self.server) as sampler:
            rounds = getattr(attack, "rounds", rounds)
            while len(after) < rounds or len(after) in range(2, ROUNDS_MAX) and grows(after):
                notes.append(attack(self))
                self.settle(descriptors)
                after.append(self.rss_at_rest())
            # The allocator releases the memory of thousands of connections only after some seconds.
            deadline = time.monotonic() + SETTLE_S
            while after[-1] > bytes_max and time.monotonic() < deadline:
                after[-1] = min(after[-1], self.rss_at_rest())
        figures["during"] = self.victims.figures()
        figures["after"] = self.calm()
        figures |= {"rss": rss, "rss_peak": sampler.rss_peak, "rss_after": after, "cpu": sampler.cpu_percent}
        figures |= {"descriptors": descriptors, "descriptors_peak": sampler.descriptors_peak, "note": notes[-1]}
        self.server.check()
        self.judge(figures, bytes_max)
        return figures

    def calm(self):
        """Returns the victims' figures without an attack."""
        # Time under test: the latencies of the calls in this period.
        time.sleep(size(0.15, 2))
        return self.victims.figures()

    def settle(self, descriptors):
        """Waits until the server has closed the connections of the attack."""
        deadline = time.monotonic() + SETTLE_S
        while (open_now := self.server.descriptors()) > descriptors + 2:
            assert time.monotonic() < deadline, f"{open_now} descriptors, {descriptors} before: connections are not closed"
            time.sleep(0.02)

    def rss_at_rest(self):
        """Returns the lowest of several samples: allocators release memory with a delay."""
        lowest = self.server.rss()
        for _ in range(6):
            time.sleep(0.02)
            lowest = min(lowest, self.server.rss())
        return lowest

    def judge(self, figures, bytes_max):
        for phase in ("before", "during", "after"):
            seen = figures[phase]
            assert not seen["errors"], f"victims, {phase}: {seen['errors'][:5]}, {len(seen['errors'])} in all"
            assert seen["calls"] > 0 and seen["messages"] > 0, f"victims, {phase}: {seen}"
            assert seen["max"] < VICTIM_MS_MAX, f"victims, {phase}: a call took {seen['max']:.0f} ms"
        grown = figures["rss_after"][-1] - figures["rss"]
        assert figures["rss_after"][-1] <= bytes_max, f"memory has grown by {grown / MIB:.1f} MiB: {figures}"
        assert len(figures["rss_after"]) < 2 or not grows(figures["rss_after"]), f"memory grows with the rounds: {figures}"


def grows(after):
    """Returns whether memory is still growing in the last round."""
    return after[-1] - after[-2] > GROWTH_AGAIN_BYTES_MAX


HEADINGS = ["attack", "RSS MiB", "peak", "after 1", "after", "p50 ms", "during", "p99 ms", "during", "max", "after", "errors", "CPU %"]


def table(rows):
    """Returns all trials, given as (name, figures), as a Markdown table."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for name, f in rows:
        before, during, after = f["before"], f["during"], f["after"]
        cells = [name, *(f"{b / MIB:.1f}" for b in (f["rss"], f["rss_peak"], f["rss_after"][0], f["rss_after"][-1]))]
        cells += [f"{ms:.1f}" for ms in (before["p50"], during["p50"], before["p99"], during["p99"], during["max"], after["p99"])]
        cells += [str(len(during["errors"])), f"{f['cpu']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def module(name):
    """A generated module."""
    return importlib.import_module(name)
