"""Lets a generator that is not ours say whether loadtest measures right: h2load and loadtest in turn.

Usage: crosscheck.py FOLDER

FOLDER has the programs red-envelope and loadtest. Needs h2load (Debian's nghttp2-client).

Both send the same thing to the same server at the same rate: unary grabs on CONNECTIONS connections by people
who hold a share already, since h2load sends one body for ever. h2load keeps its pace in steps of 10 ms, so it
gets as many connections as let it send one grab a step on each. Its clock starts at the send, so it is compared
with loadtest's `from_send_ms`, and not with its latency from the instant at which a grab was due.

The medians of ROUNDS rounds must agree: rates within RATE_APART, p50 within P50_APART. Exit code 1 where they
don't, or where either generator did not offer the rate. What h2load's requests were answered, which it does not
read, is asked of the server's metrics.

The server is as far away as one in the same city: a relay holds every packet back for RELAY_MS each way. On
loopback an answer takes a fifth of a millisecond, and what is compared is two clients and not two clocks. That is
told, too, and judged by its absolute difference (LOOPBACK_APART_MS): it is what loadtest's own client adds.

A second load, on loopback, comes nearer to what a server can do. There the rate alone is judged: h2load's connections keep step,
so that its grabs come in bursts and wait for each other, and those of loadtest come evenly. Both medians are told.
"""

import asyncio
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROUNDS = 3
SECONDS = 8
# (grabs a second, connections): h2load sends one grab in each of its steps on each connection.
LOAD = (1_000, 10)
HEAVY = (6_000, 60)
IN_FLIGHT = 64
RELAY_MS = 2
RATE_APART = 0.10
P50_APART = 0.20
LOOPBACK_APART_MS = 0.5
# How long the server may take to say where it listens, and any program to end.
START_S_MAX = 30
RUN_S_MAX = 120



def profile(rate: int, connections: int) -> str:
    return f"""
name = "crosscheck"
seed = 1

[fire]
connections = {connections}
in_flight_max = {IN_FLIGHT}
late_ms = 20
give_up_ms = 10_000
timeout_ms = 10_000
tries_max = 1
close_s_max = 60

# As many people as connections: each is dealt to one of them. Nearly all of their grabs are repetitions.
[[crowd]]
name = "same"
kind = "equal"
currency = "CNY"
envelopes = 1
shares = {connections + 1}
share_mean_minor = 100
grabbers = {connections}
repeats_permille = 1_000
repeats_each = {rate * SECONDS // connections - 1}
outsiders = 0
audience = "anyone"
via = "unary"
spread_ms = 0
arrive = "evenly"
burst_ms = {SECONDS * 1_000}

[gates]
not_sent_permille_max = 0
late_permille_max = 1_000
unresolved_max = 0
unary_p99_ms_max = 10_000
stream_p99_ms_max = 10_000
"""


def field(number: int, text: str) -> bytes:
    """A string of a protobuf message; short enough for a length of one byte."""
    told = text.encode()
    assert len(told) < 128
    return bytes([number << 3 | 2, len(told)]) + told


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=RUN_S_MAX)
    if done.returncode != 0:
        sys.exit(f"crosscheck: {words[0]} ended with {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


def ports(server: subprocess.Popen, data: pathlib.Path) -> dict[str, int]:
    """Where it listens, once it says so."""
    began = time.monotonic()
    while time.monotonic() - began < START_S_MAX:
        try:
            return json.loads((data / "ports.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.05)
        if server.poll() is not None:
            break
    sys.exit("crosscheck: the server did not start")


def body(program: pathlib.Path, public: str) -> bytes:
    """The gRPC body of a grab by somebody who holds a share."""
    cli = [program, "--server", public]
    run(*cli[:1], "deposit", "alice", "100", "CNY", *cli[1:])
    sent = run(program, "send", "alice", "--kind", "equal", "--each", "1", "CNY", "--shares", "9", "--json", *cli[1:])
    envelope = json.loads(sent)["envelope"]["envelope_id"]
    run(program, "grab", envelope, "--as", "bob", *cli[1:])
    message = field(2, envelope) + field(3, "bob")
    return b"\0" + len(message).to_bytes(4, "big") + message


def shown_again(probes: str) -> float:
    """Grabs that the server has answered with the share of before."""
    with urllib.request.urlopen(f"{probes}/metrics", timeout=START_S_MAX) as told:
        for line in told.read().decode().splitlines():
            if line.startswith('red_envelope_grabs_total{outcome="already_grabbed"}'):
                return float(line.split()[1])
    sys.exit("crosscheck: the server counts no grabs")


def h2load(load: tuple[int, int], public: str, probes: str, folder: pathlib.Path) -> tuple[float, float]:
    """Answers a second, and the median from the send in ms."""
    rate, connections = load
    before = shown_again(probes)
    log = folder / "h2load.log"
    log.unlink(missing_ok=True)
    run(
        "h2load", "--clients", connections, "--threads", 1, "--max-concurrent-streams", IN_FLIGHT,
        "--requests", rate * SECONDS, "--rps", rate // connections, "--data", folder / "body",
        "--header", "content-type: application/grpc", "--header", "te: trailers", "--log-file", log,
        f"{public}/redenvelope.v1.EnvelopeService/Grab",
    )  # fmt: skip
    rows = [row.split("\t") for row in log.read_text().splitlines()]
    answers = [(int(start), int(took)) for start, status, took in rows if status == "200"]
    shown = shown_again(probes) - before
    if not len(answers) == shown == rate * SECONDS:
        sys.exit(f"crosscheck: h2load had {len(answers)} answers, and {shown:.0f} grabs, of {rate * SECONDS}")
    first = min(start for start, _ in answers)
    last = max(start + took for start, took in answers)
    return len(answers) * 1e6 / (last - first), statistics.median(took for _, took in answers) / 1e3


def loadtest(
    load: tuple[int, int], program: pathlib.Path, public: str, admin: str, folder: pathlib.Path
) -> tuple[float, float]:
    report_file = folder / "report.json"
    (folder / "crosscheck.toml").write_text(profile(*load))
    run(program, folder / "crosscheck.toml", "--server", public, "--admin", admin, "--json", report_file)
    report = json.loads(report_file.read_text())
    return report["grabs_per_s"], report["unary"]["from_send_ms"]["p50"]


class Relay:
    """A listener that hands on what it gets, RELAY_MS later, both ways and in order."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.loop = asyncio.new_event_loop()
        server = asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.port = self.loop.run_until_complete(server).sockets[0].getsockname()[1]
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self.upstream)
        await asyncio.gather(self.hand_on(reader, there[1]), self.hand_on(there[0], writer))

    async def hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What waits here is at most what the window of a connection lets be on the way.
        try:
            while got := await reader.read(1 << 16):
                self.loop.call_later(RELAY_MS / 1e3, writer.write, got)
        except ConnectionError:
            pass
        self.loop.call_later(RELAY_MS / 1e3, writer.close)


class Pair:
    """What both measured of the same load, (rate, median) a round."""

    def __init__(self, load: tuple[int, int], theirs: list[tuple], ours: list[tuple]) -> None:
        self.rate, self.theirs, self.ours = load[0], theirs, ours

    def of(self, which: int) -> tuple[list[float], list[float]]:
        return [run[which] for run in self.theirs], [run[which] for run in self.ours]

    def is_offered(self) -> bool:
        offered = all(abs(rate / self.rate - 1) <= RATE_APART for runs in self.of(0) for rate in runs)
        if not offered:
            print(f"MISSED the rate of {self.rate} a second was not offered in every round: {self.of(0)}")
        return offered

    def agree(self, what: str, unit: str, which: int, apart_max: float) -> bool:
        theirs, ours = self.of(which)
        one, other = statistics.median(theirs), statistics.median(ours)
        apart = abs(other / one - 1)
        verdict = "ok    " if apart <= apart_max else "MISSED"
        print(
            f"{verdict} {what} at {self.rate} a second: h2load {one:.3f}, loadtest {other:.3f} {unit}, {apart:.1%} apart "
            f"(at most {apart_max:.0%}); rounds {rounded(theirs)} and {rounded(ours)}"
        )
        return apart <= apart_max

    def is_close(self) -> bool:
        theirs, ours = self.of(1)
        added = statistics.median(b - a for a, b in zip(theirs, ours))
        close = abs(added) <= LOOPBACK_APART_MS
        verdict = "ok    " if close else "MISSED"
        print(
            f"{verdict} on loopback loadtest's p50 is {added:+.3f} ms off (at most {LOOPBACK_APART_MS}): "
            f"rounds {rounded(theirs)} and {rounded(ours)}"
        )
        return close

    def tell_p50(self) -> None:
        theirs, ours = self.of(1)
        print(f"       p50 at {self.rate} a second, not judged: {rounded(theirs)} and {rounded(ours)} ms")


def rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def compare(programs: pathlib.Path, folder: pathlib.Path) -> bool:
    data = folder / "data"
    server = subprocess.Popen(
        [programs / "red-envelope", "serve", "--data-dir", data, "--grpc-listen", "127.0.0.1:0"]
        + ["--admin-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        at = ports(server, data)
        public, admin, probes = (f"http://127.0.0.1:{at[it]}" for it in ("grpc", "admin", "http"))
        (folder / "body").write_bytes(body(programs / "red-envelope", public))
        relayed = f"http://127.0.0.1:{Relay(at['grpc']).port}"
        program = programs / "loadtest"
        theirs, ours = {}, {}
        for _ in range(ROUNDS):
            for load, through in ((LOAD, relayed), (LOAD, public), (HEAVY, public)):
                theirs.setdefault((load, through), []).append(h2load(load, through, probes, folder))
                ours.setdefault((load, through), []).append(loadtest(load, program, through, admin, folder))
    finally:
        server.terminate()
        server.wait(START_S_MAX)
    far, near, heavy = (Pair(load, theirs[load, at], ours[load, at]) for load, at in theirs)
    offered = all([pair.is_offered() for pair in (far, near, heavy)])
    same_rate = all([pair.agree("rate", "answers/s", 0, RATE_APART) for pair in (far, near, heavy)])
    same_p50 = far.agree("p50", "ms", 1, P50_APART)
    close = near.is_close()
    heavy.tell_p50()
    return offered and same_rate and same_p50 and close


def main() -> int:
    _, programs = sys.argv
    with tempfile.TemporaryDirectory(prefix="red-envelope-crosscheck-") as folder:
        return 0 if compare(pathlib.Path(programs).resolve(), pathlib.Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
