"""experiments/launch.py on stand-ins for the scripts: what runs, in which order, with which words, and what a failure says.

By processes of this machine always; with DIFFPOSE_SLURM=1, where slurm-wlm and munge are installed, on a Slurm of one node as well.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tools.notebook import ROOT

STAND_IN = '''
import argparse, json, os, sys, time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--specimen", type=int)
parser.add_argument("--specimens", type=int, nargs="+")
parser.add_argument("--out", type=Path)
parser.add_argument("--fail", type=int, default=-1)
parser.add_argument("--die", type=int, default=-1)
parser.add_argument("--steps")
args, begun = parser.parse_args(), time.time()
if args.fail == args.specimen:
    print("loss 0.5\\rloss 0.4\\rloss nan")
    print(f"ValueError: the loss of specimen {args.specimen} is NaN", file=sys.stderr)
    sys.exit(3)
if args.die == args.specimen:
    os.kill(os.getpid(), 9)
done = dict(words=sys.argv[1:], folder=os.getcwd(), begun=begun, ended=time.time(), threads=os.environ.get("OMP_NUM_THREADS"))
name = Path(__file__).stem + (f"_{args.specimen}" if args.specimen is not None else "")
(args.out / f"{name}.json").write_text(json.dumps(done))
'''

spec = importlib.util.spec_from_file_location("launch", ROOT / "experiments" / "launch.py")
launch = sys.modules["launch"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launch)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    "A Slurm of one node while this module's tests run."
    if not os.environ.get("DIFFPOSE_SLURM"):
        pytest.skip("DIFFPOSE_SLURM is unset")
    script, folder = ROOT / "experiments" / "slurm.sh", tmp_path_factory.mktemp("slurm")
    try:
        start = subprocess.run(["bash", script, "start", folder], capture_output=True, text=True)
        assert start.returncode == 0, start.stderr
        yield dict(SLURM_CONF=start.stdout.strip().removeprefix("export SLURM_CONF="))
    finally:
        subprocess.run(["bash", script, "stop", folder], check=True)


@pytest.fixture(params=["local", "slurm"])
def run(request, tmp_path):
    "Launch on the stand-ins: the finished process, and what each task has written."
    env = {**os.environ, **(request.getfixturevalue("slurm") if request.param == "slurm" else {})}
    (tmp_path / "scripts").mkdir()
    for stage in launch.STAGES:
        (tmp_path / "scripts" / f"{stage}.py").write_text(STAND_IN)

    def call(*words, flags=()):
        out = tmp_path / "out"
        out.mkdir()
        ours = ["--cluster", request.param, "--wait", "--cpus", "1", "--parallel", "2", "--scripts", tmp_path / "scripts", "--folder", tmp_path / "logs"]
        line = [sys.executable, ROOT / "experiments" / "launch.py", *words, *ours, "--", "--out", out, *flags]
        done = subprocess.run(list(map(str, line)), capture_output=True, text=True, env=env, cwd=tmp_path, stdin=subprocess.DEVNULL)
        return done, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}

    return call


def test_tasks_run_in_order_with_their_words(run, tmp_path):
    done, tasks = run("evaluate", "train", "register", "--specimens", "2", "5", flags=["train:", "--steps", "7", "register,evaluate:", "--steps", "8 9"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(tasks) == {"train_2", "train_5", "register_2", "register_5", "evaluate"}
    out = ["--out", str(tmp_path / "out")]
    for k in "2", "5":
        assert tasks[f"train_{k}"]["words"] == ["--specimen", k, *out, "--steps", "7"]
        assert tasks[f"register_{k}"]["words"] == ["--specimen", k, *out, "--steps", "8 9"]
        assert tasks[f"train_{k}"]["ended"] < tasks[f"register_{k}"]["begun"] < tasks["evaluate"]["begun"]
    assert tasks["evaluate"]["words"] == ["--specimens", "2", "5", *out, "--steps", "8 9"]
    assert {(task["folder"], task["threads"]) for task in tasks.values()} == {(str(ROOT), "1")}
    assert "5 of 5 tasks are done" in done.stdout
    assert (tmp_path / "logs" / "train_2.log").exists()


def test_a_failure_is_told_and_what_needs_it_is_not_run(run):
    done, tasks = run("train", "register", "evaluate", "--specimens", "1", "2", flags=["train:", "--fail", "2"])
    assert done.returncode == 1
    assert set(tasks) == {"train_1", "register_1"}  # the other specimen goes on; a table of a part is not made
    for line in (
        "2 of 5 tasks are done",
        "train 2 failed: exit code 3",
        "    | ValueError: the loss of specimen 2 is NaN",
        "    | loss nan",
        "register 2 was not run: train 2 failed",
        "evaluate was not run: register 2 was not run",
    ):
        assert line in done.stdout.splitlines(), done.stdout + done.stderr


def test_a_killed_task_has_failed(run):
    done, tasks = run("register", "evaluate", "--specimens", "4", flags=["register:", "--die", "4"])
    assert (done.returncode, tasks) == (1, {})
    assert "register 4 failed: killed by SIGKILL" in done.stdout and "evaluate was not run: register 4 failed" in done.stdout


def plan(*stages, **knobs):
    return launch.plan(launch.Config(stages, specimens=(1, 2), **knobs), launch.split_flags(["--out", "a"]))


def test_several_gpus_go_through_torchrun():
    "Training takes them all; registration and evaluation none. Its processes share the task's cores."
    train, _, register, _, evaluate = plan("train", "register", "evaluate", gpus=2, cpus=8)
    assert [task.gpus for task in (train, register, evaluate)] == [2, 0, 0]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "experiments/train.py"]
    assert train.command.words == [*start, "--specimen", "1", "--out", "a"] and train.command.env["OMP_NUM_THREADS"] == "4"
    assert register.command.words == [sys.executable, "experiments/register.py", "--specimen", "1", "--out", "a"]
    assert register.needs == [train] and len(evaluate.needs) == 2


def test_without_a_word_on_cores_a_task_sets_no_threads():
    assert plan("train")[0].command.env == {} and plan("train", cluster="slurm", parallel=2)[0].command.env == {}


class Job:
    job_id = "7_0"


@pytest.mark.parametrize(
    "before, state, reason, verdict",
    [
        ("running", "PENDING", "Dependency", ("waiting", "")),
        ("running", "CANCELLED", "DependencyNeverSatisfied", ("waiting", "")),  # the failure before it will be read in a moment
        ("failed", "PENDING", "DependencyNeverSatisfied", ("not run", "train 1 failed")),
        ("failed", "CANCELLED", "DependencyNeverSatisfied", ("not run", "train 1 failed")),
        ("done", "PENDING", "Resources", ("waiting", "Resources")),
        ("done", "REQUEUED", "", ("running", f"{ROOT / '_runs/launch/register_1.log'}")),
        ("done", "CANCELLED", "None", ("failed", "cancelled")),
        ("done", "OUT_OF_MEMORY", "OutOfMemory", ("failed", "no result; Slurm: out_of_memory (OutOfMemory)")),
        ("done", "out of the queue", "", ("failed", "no result; Slurm: out of the queue")),
    ],
)
def test_what_slurm_says_is_understood(before, state, reason, verdict, monkeypatch):
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(launch, "GRACE_S", -1.0)
    train, _, register, _ = plan("train", "register")
    train.state, register.job = before, Job()
    launch.look_at(register, state, reason)
    assert (register.state, register.note) == verdict


@pytest.mark.parametrize(
    "knobs, message",
    [
        (dict(stages=()), "name one or more of train register evaluate"),
        (dict(stages=("train", "train")), "each once"),
        (dict(specimens=()), "--specimens"),
        (dict(cpus=0), "--cpus 0: must be 1 or more"),
        (dict(scripts=ROOT / "nowhere"), "--scripts names the folder"),
    ],
)
def test_what_makes_no_sense_is_refused(knobs, message):
    with pytest.raises(SystemExit, match=message):
        launch.check(launch.Config(**{"stages": ("train",), "specimens": (1,), **knobs}), launch.split_flags([]))


def test_a_training_that_slurm_may_restart_must_resume():
    with pytest.raises(SystemExit, match="begin anew"):
        launch.check(launch.Config(("train",), (1,), cluster="slurm"), launch.split_flags(["train:", "--no-resume"]))
