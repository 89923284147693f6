"""Train, register and evaluate on many specimens: on a cluster through Slurm, or here, one task after the other.

    python experiments/launch.py train register evaluate --specimens 1 2 3 -- --data FILE.h5 --out _runs/paper
    python experiments/launch.py train register evaluate --specimens 1 2 3 --cluster slurm --gpus 1 --wait -- --data FILE.h5 --out _runs/paper

`train` and `register` are a task per specimen, an array of them on Slurm; `evaluate` is one task for all. A specimen is registered when its training has
succeeded, the evaluation follows when all before it has. Each task is the command that you would type in the repository's root, for example
`python experiments/train.py --specimen 2 --data FILE.h5 --out _runs/paper`, and relative paths start there.

What stands behind `--` goes to all scripts; behind `train:`, or `train,register:`, only to those named:

    ... -- --out _runs/paper  train,register: --data FILE.h5  train: --minutes 60
"""

import json
import os
import pickle
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import submitit
import tyro

STAGES = ("train", "register", "evaluate")  # in the order in which they need each other
ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------- knobs
@dataclass(frozen=True)
class Config:
    stages: tyro.conf.Positional[tuple[Literal["train", "register", "evaluate"], ...]]  # what to run
    specimens: tuple[int, ...] = ()  # a task of train and register for each of these numbers
    cluster: Literal["slurm", "local", "debug"] = "local"  # local: processes of this machine; debug: the same in this terminal
    gpus: int = 0  # per task of train (0: the CPU alone; two or more: torchrun); register takes one of them, evaluate none
    cpus: int | None = None  # cores, and threads, of a task (None: what the cluster gives; here all, shared by parallel tasks)
    memory_gb: float | None = None  # of a task, on Slurm (None: what the cluster gives)
    timeout_min: int = 1440  # a task that reaches it is ended, and starts again
    restarts: int = 3  # so often at most; preempted tasks start again always
    parallel: int | None = None  # tasks at once (None: on Slurm as many as it grants, here one)
    partition: str | None = None  # of the cluster (None: its default)
    account: str | None = None  # that pays (None: your default)
    folder: Path = Path("_runs/launch")  # logs; on a cluster, where all its nodes see it
    scripts: Path = Path("experiments")  # folder of train.py, register.py and evaluate.py
    wait: bool = False  # on Slurm: stay, tell what happens, and fail if a task fails
# ----------------------------------------------------------------------


POLL_S = 0.5  # between two looks for results
SQUEUE_S = 10.0  # between two questions to Slurm
GRACE_S = 30.0  # for the result of a finished job to come through a network file system
TAIL = 20  # lines of a failed task's log
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "out of the queue"}


@dataclass
class Command:
    "The work of a task. Ended for its time or for others' sake, it starts again with the same words: the scripts resume."

    words: list  # the command
    log: Path | None  # where its output goes (None: to this terminal)
    env: dict  # what it finds in its environment beside what is there

    def __call__(self):
        with open(self.log or os.devnull, "a") as log:
            out = log if self.log else None
            print(f"\n==== {time.strftime('%Y-%m-%d %H:%M:%S')}, on {socket.gethostname()}\n$ {shlex.join(self.words)}", file=out, flush=True)
            env = {**os.environ, "PYTHONUNBUFFERED": "1", **self.env}
            process = subprocess.Popen(self.words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT if out else None)
            try:
                code = process.wait()
            except BaseException as why:  # this process is told to end: so is the command
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                reason = {KeyboardInterrupt: "stopped", SystemExit: "out of time, or preempted: it starts again"}.get(type(why), str(why))
                print(f"ended from outside: {reason}", file=out, flush=True)
                raise
            if code:
                verdict = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
                print(verdict, file=out, flush=True)
                raise RuntimeError(verdict)

    def checkpoint(self):
        return submitit.helpers.DelayedSubmission(self)


@dataclass
class Task:
    "One run of a script, and what has become of it."

    name: str
    stage: str
    command: Command
    gpus: int
    needs: list = field(default_factory=list)  # tasks that must have succeeded before
    job: submitit.Job | None = None
    state: str = "waiting"  # then running, then done, failed or not run
    note: str = ""  # why
    gone: float | None = None  # when Slurm was first seen without it

    def turn(self, state: str, note: str = "") -> None:
        "A new state, told once."
        if (state, note) != (self.state, self.note):
            self.state, self.note = state, note
            print(f"{time.strftime('%H:%M:%S')}  {self.name:<13} {state}{': ' * bool(note)}{note}", flush=True)

    def broken_need(self) -> str:
        "The first task before this one that has not succeeded and never will, or nothing."
        return next((f"{need.name} {'failed' if need.state == 'failed' else 'was not run'}" for need in self.needs if need.state in ("failed", "not run")), "")

    def read_result(self) -> bool:
        "Whether there is one. It is on disk: Slurm's own accounting is not needed, and often not there."
        if self.job is None or not self.job.paths.result_pickle.exists():
            return False
        outcome, trace = pickle.loads(self.job.paths.result_pickle.read_bytes())
        if outcome == "success":
            self.turn("done")
        else:
            self.turn("failed", trace.strip().splitlines()[-1].split(": ", 1)[-1])
        return True


def split_flags(words: list) -> dict:
    "Flags per stage: up to the first `NAME:` for all, behind it for those named."
    flags, names = {stage: [] for stage in STAGES}, STAGES
    for word in words:
        section = word[:-1].split(",") if word.endswith(":") else []
        if section and set(section) <= set(STAGES):
            names = section
        else:
            for name in names:
                flags[name].append(word)
    return flags


def check(config: Config, flags: dict) -> None:
    "Say what is wrong before anything runs."
    stages = sorted(set(config.stages), key=STAGES.index)
    if not stages or len(stages) < len(config.stages):
        sys.exit(f"launch.py: stages are {' '.join(config.stages) or 'none'}: name one or more of {' '.join(STAGES)}, each once")
    if not config.specimens or len(set(config.specimens)) < len(config.specimens):
        sys.exit(f"launch.py: --specimens {' '.join(map(str, config.specimens))}: name one or more numbers, each once")
    for name, least in {"gpus": 0, "cpus": 1, "memory_gb": 0, "timeout_min": 1, "restarts": 0, "parallel": 1}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            sys.exit(f"launch.py: --{name.replace('_', '-')} {value}: must be {least} or more")
    for stage in stages:
        if not (ROOT / config.scripts / f"{stage}.py").is_file():
            sys.exit(f"launch.py: no {ROOT / config.scripts / stage}.py; --scripts names the folder of the scripts, from {ROOT}")
    if config.cluster == "slurm" and "--no-resume" in flags["train"]:
        sys.exit("launch.py: with --no-resume a training would begin anew whenever Slurm starts it again; remove its folder instead, or take another --out")
    if config.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("squeue")):
        sys.exit("launch.py: --cluster slurm, but no sbatch and squeue here: go to a cluster's login node, try experiments/slurm.sh, or take --cluster local")


def plan(config: Config, flags: dict) -> list:
    "All tasks, stage by stage, each with those that it needs."
    tasks, before = [], []
    for stage in sorted(config.stages, key=STAGES.index):
        gpus = config.gpus if stage == "train" else 0  # the others use none
        python = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)] if gpus > 1 else [sys.executable]
        cores = config.cpus or (os.cpu_count() // config.parallel if config.parallel and config.cluster != "slurm" else None)
        threads = str(max(1, cores // max(1, gpus))) if cores else None
        env = dict(OMP_NUM_THREADS=threads, NUMBA_NUM_THREADS=threads) if threads else {}

        def make(name: str, *specimens: str) -> Task:
            log = None if config.cluster == "debug" else ROOT / config.folder / f"{name.replace(' ', '_')}.log"
            return Task(name, stage, Command([*python, str(config.scripts / f"{stage}.py"), *specimens, *flags[stage]], log, env), gpus)

        if stage == "evaluate":
            now = [make(stage, "--specimens", *map(str, config.specimens))]
            now[0].needs = before
        else:
            now = [make(f"{stage} {k}", "--specimen", str(k)) for k in config.specimens]
            for task, need in zip(now, before):
                task.needs = [need]
        tasks, before = tasks + now, now
    return tasks


# ---------------------------------------------------------------- on this machine


def run_here(tasks: list, config: Config, jobs: Path) -> None:
    "Start what is ready while there is room, until all is done, failed or cannot be run."
    slots, free, held = config.parallel or 1, devices(config), {}  # free GPUs, and those that a task holds, by its name
    try:
        while any(task.state in ("waiting", "running") for task in tasks):
            for task in tasks:
                room = task.gpus <= len(free) and sum(other.state == "running" for other in tasks) < slots
                if task.state == "running" and task.job.done() and not task.read_result():
                    task.turn("failed", "ended without a result")
                if task.state not in ("waiting", "running"):
                    free += held.pop(task.name, [])
                elif task.state == "waiting" and task.broken_need():
                    task.turn("not run", task.broken_need())
                elif task.state == "waiting" and room and all(need.state == "done" for need in task.needs):
                    held[task.name], free = free[: task.gpus], free[task.gpus :]
                    task.command.env = {**task.command.env, "CUDA_VISIBLE_DEVICES": ",".join(held[task.name])}
                    start_here(task, config, jobs)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        running = [task for task in tasks if task.state == "running"]
        started = [task.job for task in running if task.job]
        for job in started:
            job.cancel()
        while not all(job.done() for job in started):
            time.sleep(POLL_S)
        print(f"\nstopped: {', '.join(task.name for task in running)}. The same command goes on where the scripts have saved their work.")
        sys.exit(130)


def devices(config: Config) -> list:
    "GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."
    if not config.gpus:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        names = [str(k) for k in range(torch.cuda.device_count())]
    else:
        names = [name for name in visible.split(",") if name not in ("", "-1")]
    if config.gpus > len(names):
        sys.exit(f"launch.py: --gpus {config.gpus}, but {len(names)} are here" + (f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""))
    return names


def start_here(task: Task, config: Config, jobs: Path) -> None:
    "In a process of its own; in debug mode in this terminal."
    task.turn("running", str(task.command.log or ""))
    if config.cluster == "debug":
        try:
            task.command()
        except RuntimeError as problem:
            task.turn("failed", str(problem))
        else:
            task.turn("done")
        return
    executor = submitit.LocalExecutor(jobs, max_num_timeout=config.restarts)
    executor.update_parameters(timeout_min=config.timeout_min, stderr_to_stdout=True)
    task.job = executor.submit(task.command)


# ---------------------------------------------------------------- on Slurm


def submit(tasks: list, config: Config, jobs: Path) -> list:
    "An array per stage, each with its dependency. Returns the ids of the jobs."
    ids = []
    if "SLURM_JOB_ID" in os.environ:  # we are in a job ourselves: ours shall not inherit its shape
        for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
            del os.environ[name]
    for stage in dict.fromkeys(task.stage for task in tasks):
        now = [task for task in tasks if task.stage == stage]
        options = {} if not config.cpus else dict(cpus_per_task=config.cpus, srun_args=["--cpus-per-task", str(config.cpus)])
        options |= {} if not now[0].gpus else dict(gpus_per_node=now[0].gpus)
        options |= {} if config.memory_gb is None else dict(mem=f"{round(1024 * config.memory_gb)}M")
        options |= {} if config.parallel is None else dict(array_parallelism=config.parallel)
        options |= {} if config.partition is None else dict(partition=config.partition)
        options |= {} if config.account is None else dict(account=config.account)
        if now[0].needs:  # task by task where both are arrays
            options["dependency"] = f"{'aftercorr' if len(now) > 1 else 'afterok'}:{ids[-1]}"
            options["additional_parameters"] = {"kill-on-invalid-dep": "yes"}
        executor = submitit.SlurmExecutor(jobs, max_num_timeout=config.restarts)
        executor.update_parameters(job_name=f"diffpose-{stage}", time=config.timeout_min, stderr_to_stdout=True, **options)
        try:
            for task, job in zip(now, executor.submit_array([task.command for task in now])):
                task.job = job
        except Exception as problem:
            if ids:
                subprocess.run(["scancel", *ids], check=False)
            sys.exit(f"launch.py: Slurm does not take {stage}{', the jobs before it are cancelled' * bool(ids)}:\n{problem}")
        ids.append(now[0].job.job_id.split("_")[0])
        after = "" if not now[0].needs else f", each after its {now[0].needs[0].stage}" if len(now) > 1 else f", after {now[0].needs[0].stage}"
        print(f"job {ids[-1]:<8} {', '.join(task.name for task in now)}{after}")
    return ids


def ask_slurm(jobs: list) -> dict | None:
    "`{job: (state, reason)}` of those that Slurm still knows; None where it does not answer."
    run = subprocess.run(["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%r"], capture_output=True, text=True)
    if run.returncode:
        return None
    rows = [line.split("|", 2) for line in run.stdout.splitlines()]
    return {job: (state, reason) for job, state, reason in rows if job in jobs}


def follow(tasks: list, ids: list) -> None:
    "Look at results and at the queue until every task has come to an end."
    asked = 0.0
    try:
        while any(task.state in ("waiting", "running") for task in tasks):
            for task in tasks:
                if task.state in ("waiting", "running"):
                    task.read_result()
            if time.monotonic() - asked > SQUEUE_S:
                asked, answer = time.monotonic(), ask_slurm([task.job.job_id for task in tasks])
                for task in tasks:
                    if answer is not None and task.state in ("waiting", "running"):
                        look_at(task, *answer.get(task.job.job_id, ("out of the queue", "")))
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        print(f"\nno longer watched; the jobs go on. Cancel: scancel {' '.join(ids)}")
        sys.exit(130)


def look_at(task: Task, state: str, reason: str) -> None:
    "Draw the conclusion from what Slurm says of a task that has left no result yet."
    undecided = any(need.state in ("waiting", "running") for need in task.needs)  # a failure before it may be about to be read
    if state not in ENDED:
        task.gone = None
    if task.broken_need():
        subprocess.run(["scancel", task.job.job_id], check=False, capture_output=True)  # where Slurm has not done so itself
        task.turn("not run", task.broken_need())
    elif state == "PENDING":
        task.turn("waiting", reason if reason not in ("None", "Dependency", "DependencyNeverSatisfied") else "")
    elif state not in ENDED:
        task.turn("running", str(task.command.log))
    elif state == "CANCELLED" and not undecided:
        task.turn("failed", "cancelled")
    else:  # its result may be on its way
        task.gone = task.gone or time.monotonic()
        if time.monotonic() - task.gone > GRACE_S and not undecided:
            task.turn("failed", f"no result; Slurm: {state.lower()}" + (f" ({reason})" if reason else ""))


# ---------------------------------------------------------------- the end


def tail(task: Task) -> str:
    "The end of its log, and where it has left no result also of submitit's: Slurm's own words are there."
    text = ""
    for log in (task.command.log, task.job and not task.read_result() and task.job.paths.stdout):
        if log and log.exists():
            last = log.read_text(errors="replace").rpartition("\n==== ")[2]
            lines = [line.rstrip("\r").rpartition("\r")[2] for line in last.split("\n") if line.strip()]  # a progress bar's last state
            text += "".join(f"    | {line}\n" for line in lines[-TAIL:]) + f"    all of it: {log}\n"
    return text


def report(tasks: list) -> int:
    "What came of it; the exit code."
    failed, left = ([task for task in tasks if task.state == state] for state in ("failed", "not run"))
    print(f"\n{len(tasks) - len(failed) - len(left)} of {len(tasks)} tasks are done")
    for task in failed:
        print(f"{task.name} failed: {task.note}\n{tail(task)}", end="")
    for task in left:
        print(f"{task.name} was not run: {task.note}")
    return 1 if failed or left else 0


def main() -> int:
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    config = tyro.cli(Config, args=sys.argv[1:end], prog="launch.py", description=__doc__)
    flags = split_flags(sys.argv[end + 1 :])
    check(config, flags)
    tasks = plan(config, flags)
    jobs = ROOT / config.folder / "jobs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"  # submitit's; one per launch, as job ids come again
    jobs.mkdir(parents=True)
    (jobs / "launch.json").write_text(json.dumps(dict(words=sys.argv[1:], **asdict(config)), default=str, indent=1))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if config.cluster != "slurm":
        run_here(tasks, config, jobs)
        return report(tasks)
    ids = submit(tasks, config, jobs)
    print(f"states       squeue --me --array\nlogs         tail -F {shlex.quote(str(ROOT / config.folder))}/*.log")
    print(f"cancel       scancel {' '.join(ids)}", flush=True)
    if not config.wait:
        return 0
    follow(tasks, ids)
    return report(tasks)


if __name__ == "__main__":
    sys.exit(main())
