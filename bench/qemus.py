# SPDX-License-Identifier: Apache-2.0
"""What the comparisons share: QEMUs with the test guest, and moving one by the engine."""
import json
import os
import signal
import socket
import statistics
import subprocess
import time

TICK = os.sysconf("SC_CLK_TCK")
GUEST_START_MIB = 16  # the guest's working set begins here


class Qmp:
    """A QMP client; events are kept with their time in microseconds."""

    def __init__(self, path, deadline_s=20):
        end = time.monotonic() + deadline_s
        self.sock = socket.socket(socket.AF_UNIX)
        while True:
            try:
                self.sock.connect(path)
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)
        self.lines = self.sock.makefile("r")
        self.events = []
        self.lines.readline()
        self("qmp_capabilities")

    def _read(self):
        line = self.lines.readline()
        if not line:
            raise RuntimeError("QEMU has gone")
        message = json.loads(line)
        if "event" in message:
            t = message["timestamp"]
            message["us"] = t["seconds"] * 1000000 + t["microseconds"]
            self.events.append(message)
        return message

    def __call__(self, command, **arguments):
        self.sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self._read()
            if "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def find(self, name, **data):
        for e in self.events:
            if e["event"] == name and all(e.get("data", {}).get(k) == v for k, v in data.items()):
                return e
        return None


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def children_die_with_us():
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Vm:
    """One QEMU.  Two QMP sockets: one serves one client at a time."""

    def __init__(self, opt, name, directory, append, more=()):
        self.ram = f"{getattr(opt, 'mem_path', '/dev/shm')}/compare-{os.getpid()}-{name}"
        self.qmp_path = f"{directory}/{name}.qmp"
        self.serial = f"{directory}/{name}.serial"
        size = (opt.size + 64 + GUEST_START_MIB + 1) // 2 * 2
        own = f"{directory}/{name}.own"
        for path in (self.qmp_path, own, self.serial):
            if os.path.exists(path):
                os.unlink(path)
        args = ["qemu-system-x86_64",
                "-M", ("microvm,accel=kvm" if opt.accel == "kvm" else "q35,accel=tcg") + ",memory-backend=ram0",
                "-m", f"{size}M",
                "-object", f"memory-backend-file,id=ram0,size={size}M,mem-path={self.ram},share=on",
                "-display", "none", "-vga", "none", "-nodefaults", "-no-reboot",
                "-serial", f"file:{self.serial}", "-kernel", opt.guest, "-append", append,
                "-qmp", f"unix:{own},server=on,wait=off", "-qmp", f"unix:{self.qmp_path},server=on,wait=off"]
        if opt.accel == "tcg":
            args += ["-cpu", "Nehalem"]
        self.proc = subprocess.Popen(args + list(more), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                     preexec_fn=children_die_with_us)
        self.qmp = Qmp(own)
        self.vcpus = [c["thread-id"] for c in self.qmp("query-cpus-fast")]

    def wait_ready(self):
        end = time.monotonic() + 120
        while "READY" not in open(self.serial, encoding="ascii", errors="replace").read():
            if time.monotonic() > end or self.proc.poll() is not None:
                raise RuntimeError("the guest did not start")
            time.sleep(0.02)

    def cpu_s(self):
        """User and system time of all threads that are or were, without the vCPUs."""
        pid = self.proc.pid
        return stat_cpu_s(f"/proc/{pid}/stat") - sum(stat_cpu_s(f"/proc/{pid}/task/{t}/stat")
                                                     for t in self.vcpus)

    def bad_pages(self):
        ticks = [line for line in open(self.serial, encoding="ascii", errors="replace") if "bad=" in line]
        return int(ticks[-1].split("bad=")[1].split()[0]) if ticks else None

    def end(self):
        self.proc.kill()
        self.proc.wait()
        if os.path.exists(self.ram):
            os.unlink(self.ram)


def stat_cpu_s(path):
    with open(path, encoding="ascii", errors="replace") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def rusage_cpu_s(proc):
    """Ends when the process does; its own time and that of the children it waited for."""
    _, status, usage = os.wait4(proc.pid, 0)
    proc.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def engine_move(opt, a, b, args):
    """Move by `migrate-rdma receive` and `send`; None when it did not end.  Both sides' last events and CPU time."""
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL,
             "preexec_fn": children_die_with_us}
    receive = subprocess.Popen([opt.engine, "receive", "--json", "--qmp", b.qmp_path,
                                "--listen", "127.0.0.1:0"], **quiet)
    address = None
    while address is None:
        line = receive.stdout.readline()
        if not line:
            raise RuntimeError("receive did not listen")
        event = json.loads(line)
        address = event.get("address") if event["event"] == "listening" else None
    begin = time.monotonic()
    send = subprocess.Popen([opt.engine, "send", "--json", "--qmp", a.qmp_path, "--to", address,
                             "--timeout", f"{opt.timeout}s"] + args, **quiet)
    summary = completed(send)
    send_cpu = rusage_cpu_s(send)
    total = time.monotonic() - begin
    if send.returncode:
        receive.kill()
    received = completed(receive)
    receive_cpu = rusage_cpu_s(receive)
    if send.returncode:
        return None
    return {"total_s": total, "source_cpu_s": send_cpu, "dest_cpu_s": receive_cpu,
            "summary": summary, "received": received}


def completed(proc):
    """Reads all events; the one of the end."""
    found = {}
    for line in proc.stdout:
        event = json.loads(line)
        if event["event"] == "completed":
            found = event
    return found


def blackout_ms(a, b):
    a.qmp("query-status")
    b.qmp("query-status")
    stop, resume = a.qmp.find("STOP"), b.qmp.find("RESUME")
    return (resume["us"] - stop["us"]) / 1000 if stop and resume else None


def cell(runs, key, digits):
    values = [r[key] for r in runs if r.get(key) is not None]
    if not values:
        return "-"
    low, mid, high = min(values), statistics.median(values), max(values)
    return f"{mid:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def find(build, name):
    for directory, _, files in os.walk(build):
        if name in files:
            return os.path.join(directory, name)
    return None


def kvm_usable():
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def interrupted(number, _):
    signal.signal(number, signal.SIG_IGN)  # once: what follows ends and removes everything
    raise KeyboardInterrupt
