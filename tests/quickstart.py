#!/usr/bin/env python3
"""Runs the commands and programs of docs/quickstart.md and of the README's quick start, and compares what they print.

    SLOTCAST_BIN=target/debug/slotcast .cache/venv/bin/python tests/quickstart.py [SECTION]...

A section is a heading such as `Python`. The sections of a page run in order, each in a shell of its own that starts in a copy
of the checkout and has a temporary home directory. A page has one server at a time, which keeps its data when it is started
again.

The info string of a fenced block says what happens to it:

    sh              runs in the shell of its section. It must succeed and print the `text` block that follows it, or nothing
    sh install      does not run, because ./test has installed the same packages: their versions are compared instead
    sh server       runs in the background from its section on, in place of an earlier server of its page. It must print the
                    `text` block that follows it
    sh live         runs for three seconds without a terminal: it must print something and not end by itself
    sh manual       does not run, because it needs a browser
    LANGUAGE title="FILE"   is written to FILE in the current directory of the shell

In a `text` block, `…` stands for any characters of one line, and alone on a line for any lines. In a `text measured` block,
a number stands for any number. 127.0.0.1:7400 and 127.0.0.1:7401 stand for the addresses of the server, also in commands and
programs. Commands on the files of a store find those of the server of their page. curl prints no progress.
The sections on Go, C# and Java are run by tests/generation.sh.
"""

import contextlib
import json
import os
import pathlib
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".cache" / "venv"
NODE_MODULES = ROOT / ".cache" / "node" / "node_modules"
PAGES = {
    "docs/quickstart.md": ["Start a server", "curl", "Python", "TypeScript (Node)", "Web page"],
    "README.md": ["Quick start"],
}
START_S = 10
SECTION_S = 120
LIVE_S = 3
# The shell prints it between blocks, with the exit status of the block before it.
MARK = "==== end of block:"


class Block(typing.NamedTuple):
    line: int
    info: str
    text: str

    def at(self, address):
        """The block with the address of the server, if the block is a command or a program."""
        return self if self.info.startswith("text") else self._replace(text=self.text.replace("127.0.0.1:7400", address))

    def title(self):
        found = re.fullmatch(r'\w+ title="([\w./-]+)"', self.info)
        return found and found[1]


def sections(page):
    """The fenced blocks of each section of a page, by the text of its second-level heading."""
    found, section, block = {}, None, None
    for number, line in enumerate(page.read_text().splitlines(keepends=True), 1):
        if block is not None:
            if line.rstrip() == "```":
                found.setdefault(section, []).append(Block(*block))
                block = None
            else:
                block[2] += line
        elif line.startswith("```"):
            block = [number, line.strip("`\n"), ""]
        elif line.startswith("## "):
            section = line[3:].strip()
    assert block is None, f"{page}:{block[0]}: the block has no end"
    return found


def pattern(line, measured):
    """The pattern of one line of a `text` block."""
    escaped = "[^\n]*".join(re.escape(part) for part in line.split("…"))
    return re.sub(r"[0-9]+", "[0-9]+", escaped) if measured else escaped


def check(page, block, expected, printed):
    """Compares what a block of commands prints with the `text` block that follows it, if there is one."""
    lines = expected.text.rstrip().splitlines() if expected else []
    measured = expected is not None and expected.info == "text measured"
    patterns = [r"(?:[^\n]*\n)*" if line == "…" else pattern(line.rstrip(), measured) + r" *\n" for line in lines]
    if not re.fullmatch("".join(patterns), printed.strip("\n") + "\n" if printed.strip() else ""):
        shown = expected.text if expected else "nothing\n"
        raise AssertionError(f"{page}:{block.line}: {block.text.strip()}\nprints:\n{printed}\ninstead of:\n{shown}")


def check_packages(page, block, blocks):
    """Compares the versions that an install block installs with those that ./test has installed."""
    if "cargo install" in block.text:
        assert block.text.strip() == "cargo install --path .", f"{page}:{block.line}: not the command of this package"
        return
    if "pip install" in block.text:
        expected = (ROOT / "tests/python/requirements.txt").read_text().splitlines()
        named = re.findall(r"\S+==\S+", block.text)
        assert named, f"{page}:{block.line}: no version is given"
    elif "npm install" in block.text:
        expected = list(json.loads((ROOT / "tests/node/package.json").read_text())["dependencies"].items())
        package = next(block for block in blocks if block.title() == "package.json")
        named = list(json.loads(package.text)["dependencies"].items())
    else:
        raise AssertionError(f"{page}:{block.line}: these packages cannot be compared: {block.text}")
    unknown = [package for package in named if package not in expected]
    assert not unknown, f"{page}:{block.line}: ./test installs other versions than {unknown}"


def script(folder, page, blocks):
    """The shell script of a section, and the blocks that it runs with what they print."""
    lines, run = ["set -e"], []
    for index, block in enumerate(blocks):
        following = blocks[index + 1] if index + 1 < len(blocks) else None
        expected = following if following and following.info.startswith("text") else None
        if block.title():
            content = folder / f"{block.line}"
            content.write_text(block.text)
            lines.append(f"cp {shlex.quote(str(content))} {block.title()}")
        elif block.info == "sh install":
            check_packages(page, block, blocks)
            if "pip" in block.text:
                lines.append(f"ln -s {VENV} .venv")
            if "npm" in block.text:
                lines.append(f"ln -s {NODE_MODULES} node_modules")
        elif block.info == "sh":
            run.append((block, expected))
            lines.append(f"{block.text}printf '\\n{MARK}\\n'")
        elif block.info == "sh live":
            log = shlex.quote(str(folder / f"{block.line}"))
            lines.append(f"timeout {LIVE_S} bash -c {shlex.quote(block.text)} >{log} 2>&1 || ended=$?")
            lines.append(f'[ "${{ended:-0}}" = 124 ] && [ -s {log} ] || {{ cat {log}; exit 1; }}')
        elif block.info not in ("sh server", "sh manual", "text", "text measured"):
            raise AssertionError(f"{page}:{block.line}: unknown kind of block: {block.info!r}")
    return "\n".join(lines), run


def run_section(folder, page, name, blocks, environment, address):
    """Runs the blocks of one section and compares what each prints."""
    (folder / "checkout").mkdir(parents=True)
    (folder / "home").mkdir()
    (folder / "home" / ".curlrc").write_text("silent\n")
    subprocess.run(["cp", "-r", ROOT / "proto", folder / "checkout"], check=True)
    text, run = script(folder, page, [block.at(address) for block in blocks])
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder / "checkout",
        env={
            **environment,
            "HOME": str(folder / "home"),
            "SLOTCAST_SERVER": f"http://{address}",
            "SLOTCAST_DATA": str(data_of(folder.parent)),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECTION_S,
        text=True,
    )
    printed = done.stdout.replace(address, "127.0.0.1:7400").split(f"\n{MARK}\n")
    if done.returncode != 0:
        blocks_done = len(printed) - 1
        raise AssertionError(f"{page}, {name}: exit status {done.returncode} after {blocks_done} blocks:\n{printed[-1]}")
    for (block, expected), text in zip(run, printed, strict=False):
        check(page, block, expected, text)
    print(f"{page}, {name}: {len(run)} blocks of commands")


def data_of(folder):
    """The data directory of the server of a page."""
    return folder / "data"


@contextlib.contextmanager
def server(folder, page, blocks, environment):
    """Runs the command of a section's server block on free ports, and gives its address."""
    index = next(index for index, block in enumerate(blocks) if block.info == "sh server")
    block, expected = blocks[index], blocks[index + 1]
    settings = {"LISTEN": "127.0.0.1:0", "ADMIN_LISTEN": "127.0.0.1:0", "DATA": str(data_of(folder))}
    environment = {**environment, **{f"SLOTCAST_{name}": value for name, value in settings.items()}}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", block.text],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        printed = read_lines(process.stdout, len(expected.text.splitlines()))
        ports = re.findall(r"127\.0\.0\.1:(\d+)", printed)
        assert len(ports) == 2, f"{page}:{block.line}: prints {printed!r}; {(folder / 'log').read_text()}"
        as_shown = printed.replace(f":{ports[0]}", ":7400").replace(f":{ports[1]}", ":7401")
        check(page, block, expected, as_shown)
        yield f"127.0.0.1:{ports[0]}"
        assert process.poll() is None, f"the server has ended: {(folder / 'log').read_text()}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_lines(pipe, count):
    """What a process prints until it has printed so many lines, ends, or is late."""
    printed, deadline = b"", time.monotonic() + START_S
    while printed.count(b"\n") < count:
        ready, _, _ = select.select([pipe], [], [], max(0, deadline - time.monotonic()))
        more = os.read(pipe.fileno(), 4096) if ready else b""
        if not more:
            break
        printed += more
    return printed.decode()


def run_page(folder, page, named, selected, environment):
    """Runs the selected sections of a page, or all of them, each with the last server that was started before it."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as running:
        for name, blocks in named.items():
            if any(block.info == "sh server" for block in blocks):
                running.close()
                address = running.enter_context(server(folder, page, blocks, environment))
            if not selected or name in selected:
                run_section(folder / name, page, name, blocks, environment, address)


def main():
    selected = sys.argv[1:]
    known = [name for names in PAGES.values() for name in names]
    unknown = set(selected) - set(known)
    assert not unknown, f"unknown sections {sorted(unknown)}: use some of {known}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLOTCAST_")}
    environment["NPM_CONFIG_UPDATE_NOTIFIER"] = "false"
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "bin").mkdir()
        (folder / "bin" / "slotcast").symlink_to(pathlib.Path(os.environ["SLOTCAST_BIN"]).resolve())
        environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
        for page, names in PAGES.items():
            found = sections(ROOT / page)
            missing = set(names) - found.keys()
            assert not missing, f"{page} has no sections {sorted(missing)} with blocks"
            run_page(folder / page, page, {name: found[name] for name in names}, selected, environment)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, subprocess.TimeoutExpired) as error:
        sys.exit(f"{error}")
