"""Suspends a guest into files of a directory and resumes it from there.

usage: suspend.py DIR WAY
  DIR  holds vmlinuz, initrd.img and disk.raw (bench/guest/build.sh makes them)
  WAY  mapped  mapped-ram, a file of fixed offsets (QEMU 9 and later)
       shared  memory in a shared mapping of a file, device state beside it
       exec    a stream through a shell command

The guest writes a word to its disk (a new overlay over disk.raw), is suspended
and resumed by another QEMU, and must still have the word in its own memory and
on its disk. Exits with 77 where this QEMU does not have WAY.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time

directory, way = sys.argv[1:]
sockets = tempfile.mkdtemp()
path = lambda name: os.path.join(directory, name)
save_to = {"exec": f"exec:cat > {path('state')}"}.get(way, f"file:{path('state')}")
read_from = {"exec": f"exec:cat {path('state')}"}.get(way, f"file:{path('state')}")
if way == "shared":  # `file:` is newer than this way of suspending.
    save_to, read_from = f"exec:cat > {path('state')}", f"exec:cat {path('state')}"
capability = {"mapped": "mapped-ram", "shared": "x-ignore-shared"}.get(way)


class Qemu:
    def __init__(self, number, *more):
        monitor, serial = (f"{sockets}/{kind}-{number}" for kind in ("qmp", "serial"))
        machine = "q35,accel=tcg"
        if way == "shared":
            machine += ",memory-backend=mem"
            more += ("-object", f"memory-backend-file,id=mem,size=256M,mem-path={path('memory')},share=on")
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-machine", machine, "-m", "256", "-smp", "1"]
            + ["-nodefaults", "-no-user-config", "-display", "none"]
            + ["-kernel", path("vmlinuz"), "-initrd", path("initrd.img")]
            + ["-append", "console=ttyS0 quiet panic=-1 mitigations=off gridvfs.action=shell"]
            + ["-drive", f"file={path('overlay.qcow2')},format=qcow2,if=none,id=root,cache=none,aio=native"]
            + ["-device", "virtio-blk-pci,drive=root"]
            + ["-qmp", f"unix:{monitor},server=on,wait=off"]
            + ["-chardev", f"socket,id=console,path={serial},server=on,wait=off"]
            + ["-serial", "chardev:console", *more]
        )
        self.monitor = self.connect(monitor).makefile("rw")
        self.monitor.readline()
        self.ask("qmp_capabilities")
        self.console = self.connect(serial)

    @staticmethod
    def connect(name):
        for _ in range(600):
            try:
                stream = socket.socket(socket.AF_UNIX)
                stream.settimeout(120)
                stream.connect(name)
                return stream
            except OSError:
                time.sleep(0.05)
        sys.exit("QEMU did not start")

    def ask(self, command, **arguments):
        self.monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.monitor.flush()
        while True:
            answer = json.loads(self.monitor.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")

    def enable(self):
        if capability:
            wanted = [{"capability": capability, "state": True}]
            try:
                self.ask("migrate-set-capabilities", capabilities=wanted)
            except RuntimeError as error:
                print(error)
                self.process.kill()
                sys.exit(77)

    def until(self, word):
        seen = b""
        while word not in seen:
            data = self.console.recv(4096)
            if not data:
                sys.exit(f"the guest ended; its console: {seen!r}")
            seen += data
        return seen

    def run(self, command, word):
        """Types a command until the shell, which may not listen yet, answers it."""
        for _ in range(30):
            self.console.sendall(command + b"\n")
            self.console.settimeout(2)
            try:
                return self.until(word)
            except TimeoutError:
                continue
            finally:
                self.console.settimeout(120)
        sys.exit("the guest's shell does not answer")

    def end(self):
        self.ask("quit")
        self.process.wait()


overlay = path("overlay.qcow2")
subprocess.check_call(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "disk.raw", overlay])
qemu = Qemu(1)
qemu.enable()
qemu.until(b"GUEST READY")
# What is looked for is not in the echo of what is typed.
qemu.run(b"w=4$((1+1)); echo marker-$w > /root/word; sync; echo wrote-$w", b"wrote-42")
qemu.ask("stop")
qemu.ask("migrate", uri=save_to)
while (status := qemu.ask("query-migrate").get("status")) != "completed":
    if status == "failed":
        sys.exit("QEMU could not save the guest")
    time.sleep(0.02)
qemu.end()

begin = time.monotonic()
qemu = Qemu(2, "-incoming", "defer")
qemu.enable()
qemu.ask("migrate-incoming", uri=read_from)
while qemu.ask("query-status")["status"] == "inmigrate":
    time.sleep(0.02)
qemu.ask("cont")
seen = qemu.run(b"echo memory-$w; cat /root/word", b"marker-42")
if b"memory-42" not in seen:
    sys.exit(f"not the guest that was suspended: {seen!r}")
print(f"{way}: resumed in {time.monotonic() - begin:.2f} s")
qemu.end()
subprocess.check_call(["qemu-img", "check", "-q", overlay])
