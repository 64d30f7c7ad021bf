"""Checks the image that deploy/image/build builds from a static binary: its contents, its configuration, that the same input
produces the same digest, and that the server runs in it as the image's user without any other file.

    image.py BINARY         needs buildah and root
"""

import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

IMAGE = pathlib.Path(__file__).resolve().parents[1] / "image"
PT_INTERP = 3
CONFIGURATION = {
    "User": "65532:65532",
    "Entrypoint": ["/slotcast"],
    "Cmd": ["serve"],
    "Volumes": {"/data": {}},
    "WorkingDir": "/data",
    "StopSignal": "SIGTERM",
    "ExposedPorts": {"7400/tcp": {}, "7401/tcp": {}},
}
LABELS = {"title", "description", "licenses", "version", "revision"}


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    same_last_stage()
    assert not has_interpreter(binary.read_bytes()), f"{binary} is not static: it needs a dynamic loader"
    with tempfile.TemporaryDirectory() as folder:
        store_in(pathlib.Path(folder))
        digests = [digest(f"slotcast:{name}", binary) for name in ("first", "second")]
        assert digests[0] == digests[1], f"two builds of the same binary have different digests: {digests}"
        print(f"image: {digests[0]}, {binary.stat().st_size >> 20} MiB, reproducible")
        configured("slotcast:first")
        container = buildah("from", "slotcast:first").strip()
        try:
            contents(container)
            works(container)
        finally:
            buildah("rm", container)
            buildah("rmi", "--all", "--force")
    return 0


def same_last_stage():
    """Asserts that both Containerfiles end in the same stage, except for the sources of COPY."""
    stages = []
    for name in ("Containerfile", "Containerfile.binary"):
        last = (IMAGE / name).read_text().split("FROM scratch\n")[1]
        stages.append(last.replace("--from=build ", "").replace(" /out/", " "))
    assert stages[0] == stages[1], "Containerfile and Containerfile.binary differ in their last stage"


def has_interpreter(elf):
    assert elf[:4] == b"\x7fELF", "not an ELF binary"
    offset, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    return any(struct.unpack_from("<I", elf, offset + size * i)[0] == PT_INTERP for i in range(count))


def store_in(folder):
    """Configures a temporary image store that works on any file system."""
    storage = f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
    (folder / "storage.conf").write_text(storage)
    os.environ |= {"CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf", "BUILDAH_ISOLATION": "chroot"}
    os.environ.pop("STORAGE_DRIVER", None)


def buildah(*arguments):
    done = subprocess.run(["buildah", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"buildah {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout


def digest(name, binary):
    subprocess.run([IMAGE / "build", name, binary], check=True, stdout=subprocess.DEVNULL)
    return json.loads(buildah("inspect", "--type", "image", name))["FromImageDigest"]


def configured(name):
    config = json.loads(buildah("inspect", "--type", "image", name))["OCIv1"]["config"]
    for key, wanted in CONFIGURATION.items():
        assert config.get(key) == wanted, f"{key} is {config.get(key)}, not {wanted}"
    labels = {label.removeprefix("org.opencontainers.image.") for label in config["Labels"]}
    assert LABELS <= labels, f"labels are missing: {LABELS - labels}"


def contents(container):
    """Asserts that the image has only the binary and an empty data folder: no shell, no package manager."""
    root = pathlib.Path(buildah("mount", container).strip())
    try:
        found = {str(path.relative_to(root)): path.stat() for path in root.rglob("*")}
    finally:
        buildah("umount", container)
    assert found.keys() == {"slotcast", "data"}, f"unexpected image contents: {sorted(found)}"
    binary = found["slotcast"]
    assert binary.st_mode & 0o777 == 0o555 and binary.st_uid == 0, "the binary is writable or not owned by root"
    assert found["data"].st_uid == 65532, "/data is not owned by user 65532"


def works(container):
    version = buildah("run", container, "--", "/slotcast", "--version")
    print(f"in the image: {version.strip()}")
    demo = json.loads(buildah("run", container, "--", "/slotcast", "demo", "--json"))
    desyncs = [trace[mode]["desyncs"] for trace in demo["traces"] for mode in ("full_frames", "deltas", "predicted")]
    assert desyncs and not any(desyncs), f"desyncs in the demo: {desyncs}"
    print(f"in the image: slotcast demo, {len(demo['traces'])} traces, no desyncs")


if __name__ == "__main__":
    sys.exit(main())
