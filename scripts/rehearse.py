#!/usr/bin/env python3
"""Runs each profile on each stack, one after the other, and prints the runs as a table.

    rehearse.py PROGRAMS FOLDER [STEM…]    or, for the whole thing, `make rehearse`

PROGRAMS is the folder of `loadtest` and `red-envelope`; this is started in the repository. Each run leaves STEM.json,
STEM.html and what it printed as STEM.txt in FOLDER, with STEM = what it rehearses and its stack. STEMs after FOLDER
run these alone; the table holds every report in FOLDER. The exit code is 1 if a run did not pass.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

STACKS = ["embedded", "redis", "redis+postgres"]
# On each of them.
PROFILES = ["smoke", "burst", "new-year-eve", "red-rain", "retry-storm", "soak --minutes 2"]
# On the last of them: other levels of acknowledgement, two servers, twice the crowd, and an envelope of a million
# shares that three million grabs find, until it is empty.
VARIANTS = [
    "burst --ack memory",
    "burst --ack ledger",
    "burst --processes 2",
    "new-year-eve --scale 2",
    "loadtest/profiles/red-rain-million.toml",
]
# A run stops by itself; this is for one that does not.
RUN_S_MAX = 1_800
PROCESSES = ["server", "redis", "postgres", "loadtest"]


def runs():
    """Each run's stem, what it rehearses and its stack, in the order of the table."""
    everywhere = [(profile, stack) for profile in PROFILES for stack in STACKS]
    for words, stack in everywhere + [(words, STACKS[-1]) for words in VARIANTS]:
        name = words.removeprefix("loadtest/profiles/").removesuffix(".toml")
        yield f"{name.replace(' --', '-').replace(' ', '-')}-{stack}", words, stack


def rehearse(programs, folder, stem, words, stack):
    """One run; whether it passed."""
    pages = ["--json", folder / f"{stem}.json", "--html", folder / f"{stem}.html"]
    # A run that ends before it writes leaves no row of an earlier one.
    for page in (pages[1], pages[3]):
        page.unlink(missing_ok=True)
    with open(folder / f"{stem}.txt", "wb") as printed:
        began = time.monotonic()
        command = [programs / "loadtest", *words.split(), "--stack", stack, *pages]
        try:
            code = subprocess.run(command, stdout=printed, stderr=printed, timeout=RUN_S_MAX).returncode
        except subprocess.TimeoutExpired:
            code = "none"
        took = time.monotonic() - began
    print(f"{stem}: exit code {code} after {took:.0f} s", file=sys.stderr, flush=True)
    return code == 0


def milliseconds(transport):
    """p50, p99 and max of one transport; nothing where the profile has none."""
    if transport is None:
        return ""
    told = (transport["latency_ms"][name] for name in ("p50", "p99", "max"))
    return ", ".join(f"{ms:.1f}" if ms < 10 else f"{ms:,.0f}" for ms in told)


def verdict(report):
    """What the run says of itself: the gates hold wrong answers, wrong balances and the audit."""
    if report["generator"]["void"] is not None:
        return "void"
    missed = [gate["name"] for gate in report["gates"] if not gate["met"]]
    return "passed" if report["passed"] else "missed: " + ", ".join(missed)


def row(words, report):
    """One run as a row of the table."""
    transports = [transport for transport in (report["unary"], report["stream"]) if transport is not None]
    sent = sum(transport["sent"] for transport in transports)
    retried = sum(transport["retried"] for transport in transports)
    # Servers side by side are "server", "server 2" …
    used = {}
    for name, us in report["cpu_us_per_grab"].items():
        used[name.split()[0]] = used.get(name.split()[0], 0) + us
    late = sum(transport["late"] for transport in transports)
    cells = [
        f"`{words.removeprefix('loadtest/profiles/')}`",
        report["setup"]["stack"],
        f"{sent:,} in {report['fire_s']:.0f} s",
        milliseconds(report["unary"]),
        milliseconds(report["stream"]),
        *(f"{used[name]:.1f}" if name in used else "" for name in PROCESSES),
        f"{late:,} + {report['turned_down']['shed']:,} + {retried:,}",
        f"{report['drained_s']:.1f} s" if report["drained_s"] is not None else "not",
        verdict(report),
    ]
    return "| " + " | ".join(cells) + " |"


def main():
    programs, folder = Path(sys.argv[1]), Path(sys.argv[2])
    chosen = sys.argv[3:]
    folder.mkdir(parents=True, exist_ok=True)
    passed = True
    for stem, words, stack in runs():
        if not chosen or stem in chosen:
            passed &= rehearse(programs, folder, stem, words, stack)
    print(
        "| profile | stack | grabs | p50, p99, max ms, single calls | the same on streams | server µs | Redis µs "
        "| PostgreSQL µs | load test µs | late + shed + tried again | in the books after | verdict |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for stem, words, _ in runs():
        path = folder / f"{stem}.json"
        # A run that was broken off leaves an empty one.
        text = path.read_text() if path.exists() else None
        if text:
            print(row(words, json.loads(text)))
        elif text is not None:
            print(f"| `{words}` | no report |")
    return 0 if passed else 1


sys.exit(main())
