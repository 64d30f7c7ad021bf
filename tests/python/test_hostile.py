#!/usr/bin/env python3
"""Attacks by hostile clients: cases 37 to 40 and 58 to 61, and requests of HTTP/1.1, Connect and gRPC-Web.

Each attack runs while victims (victims.py) use the service. They must see no error and get on, and the service must hold as much
memory after it as before. Most attacks run at least twice; then it must also hold as much after the second round as after the first.

    SLOTCAST_BIN=target/debug/slotcast tests/python/test_hostile.py [NAME...]

SLOTCAST_HOSTILE=large makes the attacks longer and larger; names pick those that contain one of them.
"""

import os
import pathlib
import sys
import tempfile
import time
import traceback

import bodies
import excess
import floods
import http1
import misuse
import readers
import smuggling
from arena import LARGE, Arena, size, table
from test_stream import generate


def shared(folder, generated):
    """Runs the attacks on one server with default settings, which has to survive all of them."""
    attacks = [*floods.ATTACKS, *excess.ATTACKS, *misuse.ATTACKS, *readers.ATTACKS]
    attacks += [*http1.ATTACKS, *smuggling.ATTACKS, *bodies.ATTACKS]
    trials(attacks, lambda: Arena(folder / "shared", generated))


def impatient(folder, generated):
    """Runs the attacks that wait for timeouts of the server."""
    attacks = [excess.slowloris, excess.half_open, *http1.IMPATIENT_ATTACKS]
    trials(attacks, lambda: Arena(folder / "impatient", generated, limits=excess.IMPATIENT), size(1, 2))


def poor(folder, generated):
    """Runs the attacks on a server with few file descriptors."""
    trials([excess.out_of_descriptors], lambda: Arena(folder / "poor", generated, descriptors_max=64), size(1, 2))


def trials(attacks, arena, rounds=2):
    chosen = [attack for attack in attacks if wanted(attack)]
    if not chosen:
        return
    with arena() as there:
        for attack in chosen:
            run(attack, lambda attack=attack: there.trial(attack, rounds))


def wanted(check):
    return len(sys.argv) < 2 or any(part in check.__name__ for part in sys.argv[1:])


def run(check, trial):
    """Runs one check, prints a line, and keeps its figures for the table."""
    began = time.monotonic()
    try:
        figures = trial()
    except Exception:
        print(f"FAILED {check.__doc__}", flush=True)
        traceback.print_exc()
        run.failed.append(check.__doc__)
        return
    run.rows.append((check.__doc__.split(":")[0], figures))
    print(f"ok {check.__doc__} ({figures['note']}): {time.monotonic() - began:.1f} s", flush=True)
    run.passed += 1


run.rows, run.failed, run.passed = [], [], 0


def main():
    if "SLOTCAST_BIN" not in os.environ:
        sys.exit("give the server to judge: SLOTCAST_BIN=target/debug/slotcast tests/python/test_hostile.py")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="slotcast-hostile-") as folder:
        folder = pathlib.Path(folder)
        (folder / "generated").mkdir()
        generate(folder / "generated")
        for group in (shared, impatient, poor):
            group(folder, folder / "generated")
    print(f"\n{table(run.rows)}\n")
    for failed in run.failed:
        print(f"FAILED {failed}")
    print(f"{run.passed} attacks stood, {len(run.failed)} not, {'large' if LARGE else 'small'}, {time.monotonic() - began:.1f} s")
    sys.exit(1 if run.failed or not run.passed else 0)


if __name__ == "__main__":
    main()
