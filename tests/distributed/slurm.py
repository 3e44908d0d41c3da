"""A real SLURM on the loopback interface: two nodes of one core each."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NODES = ("n1", "n2")
_COMMANDS = ("slurmctld", "slurmd", "sbatch", "squeue", "munged", "munge")
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=5
MinJobAge=300
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd-%n.pid
SlurmctldLogFile={work}/slurmctld.log
SlurmdLogFile={work}/slurmd-%n.log
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool-%n
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=9000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=9000
PartitionName=ci Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why SLURM cannot be started here; empty when it can."""
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        return f"SLURM ({', '.join(missing)})"
    return "" if os.geteuid() == 0 else "root, which starts SLURM's daemons,"


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _until(done, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come up in {seconds:g} s")
        time.sleep(0.1)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


@contextmanager
def running_slurm(work: Path) -> Iterator[None]:
    """Controller and two nodes; ``SLURM_CONF`` names their configuration inside the block."""
    controller, first, second = _free_ports(3)
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (work / name).mkdir(parents=True)
    configuration = work / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            host=socket.gethostname(),
            work=work,
            controller=controller,
            first=first,
            second=second,
        )
    )
    before = os.environ.get("SLURM_CONF")
    daemons: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        _munge(stack)
        os.environ["SLURM_CONF"] = str(configuration)
        try:
            commands = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in NODES)]
            for command in commands:
                log = stack.enter_context((work / f"{'-'.join(command)}.out").open("wb"))
                daemons.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )
            _until(lambda: idle_nodes() == len(NODES), 30, "SLURM")
            yield
        finally:
            subprocess.run(["scancel", "--full", "--state=RUNNING"], capture_output=True)
            subprocess.run(["scancel", "--state=PENDING"], capture_output=True)
            with suppress(TimeoutError):
                _until(lambda: not jobs(), 20, "an empty queue")
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(10)
                daemon.kill()
            os.environ.pop("SLURM_CONF")
            if before is not None:
                os.environ["SLURM_CONF"] = before


def _munge(stack: ExitStack) -> None:
    """Start the authentication daemon, unless one runs."""
    if _succeeds("munge", "-n"):
        return
    subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "/run/munge"], check=True)
    subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=True)
    stack.callback(subprocess.run, ["pkill", "-u", "munge", "munged"], check=False)
    _until(lambda: _succeeds("munge", "-n"), 10, "munged")


def idle_nodes() -> int:
    """How many nodes are idle."""
    told = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], capture_output=True, text=True)
    return told.stdout.split().count("idle")


def jobs(state: str = "all") -> list[str]:
    """Ids of the jobs that wait, run or are about to end."""
    told = subprocess.run(
        ["squeue", "-h", "-o", "%i", *([] if state == "all" else [f"--state={state}"])],
        capture_output=True,
        text=True,
    )
    return told.stdout.split()
