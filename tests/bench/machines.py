"""Runs that several processes and machines share, against the same run in one process.

    python -m tests.bench.machines

On this host, on its CPUs, with gloo: a machine is a storage folder of its own and a launch of its
own (`accelerate launch --num_machines 2 --machine_rank 0|1`); they share a database and an fsspec
storage. Told: the largest difference of any number that the run reported, step by step, and of its
weights. Lines:

two machines          one process each, LoRA
FSDP                  two processes that hold shares of all weights
  resumed             the same, killed after its checkpoint of half the steps, and resumed
FSDP, two machines    one process each
  resumed
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 12
SETTINGS = {
    "max_steps": STEPS,
    "batch_size": 2,
    "gradient_accumulation": 3,
    "checkpoint_every": STEPS // 2,
    "eval_every": STEPS // 2,
    "learning_rate": 1e-3,
    "dtype": "float32",
    "seed": 7,
}
FSDP = """fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP,
              fsdp_reshard_after_forward: true, fsdp_state_dict_type: SHARDED_STATE_DICT,
              fsdp_cpu_ram_efficient_loading: false}
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="prefloop-machines-") as folder:
        root = Path(folder)
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "config.settings",
            "DATABASE_URL": f"sqlite:///{root}/rows.sqlite3",
            "PREFLOOP_STORAGE": str(root / machine(0)),
            "PREFLOOP_SHARED_STORAGE": f"file://{root}/shared",
            "OMP_NUM_THREADS": "1",
            "LOG_LEVEL": "WARNING",
        }
        import django

        django.setup()
        measure(root)


def measure(root: Path) -> None:
    from django.core.management import call_command

    from labeling import shared
    from tests.training.projects import labeled_project
    from tests.training.tiny import save_tiny_model

    call_command("migrate", verbosity=0)
    save_tiny_model(root / machine(0) / "models/tiny")
    shared.put("models/tiny")
    project = labeled_project(60)

    def compare(name: str, one, other, seconds: float) -> None:
        steps, weights = differences(one, other)
        print(
            f"{name:<20} {steps:>10.1e} {weights:>10.1e} {seconds:>6.0f} s  "
            f"{other.status} {other.error}",
            flush=True,
        )

    print(f"{'':<20} {'numbers':>10} {'weights':>10}", flush=True)
    lora = {"lora_rank": 4}
    alone = launched(root, new(project, lora), [config(root, 0, 1, 1)])
    began = time.monotonic()
    port = free_port()
    two = [config(root, rank, 2, 2, port) for rank in range(2)]
    compare(
        "two machines", alone, launched(root, new(project, lora), two), time.monotonic() - began
    )

    full = {"method": "full"}
    alone = launched(root, new(project, full), [config(root, 0, 1, 1)])
    for name, machines in (("FSDP", 1), ("FSDP, two machines", 2)):
        began = time.monotonic()
        whole = launched(root, new(project, full), shares(root, machines))
        compare(name, alone, whole, time.monotonic() - began)
        began = time.monotonic()
        broken = new(project, full)
        kill_after_checkpoint(root, broken, shares(root, machines))
        resumed = launched(root, broken, shares(root, machines))
        compare("  resumed", whole, resumed, time.monotonic() - began)
        texts = resumed.events.values_list("text", flat=True)
        print("  ", [text for text in texts if text.startswith("Goes on")], flush=True)


def shares(root: Path, machines: int) -> list[Path]:
    """Configs of FSDP by two processes, on one machine or on two."""
    port = free_port()
    # What one machine alone has is of no use to another: there, whole weights are kept.
    kind = FSDP if machines == 1 else FSDP.replace("SHARDED", "FULL")
    return [config(root, rank, machines, 2, port, kind) for rank in range(machines)]


def new(project, changes: dict):
    from training.runs import create_run

    return create_run(
        project,
        kind="reward",
        base_model="tiny",
        recipe_settings=SETTINGS | changes,
        test_share=0.3,
    )


def launched(root: Path, run, configs: list[Path]):
    """The run carried to its end: a launch for each config, each with a storage of its own."""
    from training.models import Run

    run = Run.objects.claim(run.pk)
    launches = [
        launch(root, file, ["join"] if rank else ["run", str(run.pk), run.worker], machine(rank))
        for rank, file in enumerate(configs)
    ]
    codes = [each.wait(300) for each in launches]
    run.refresh_from_db()
    if run.status != "succeeded" or any(codes):
        print(codes, run.status, run.error)
        for log in root.glob("*.log"):
            print(log.name, log.read_text()[-2000:])
    return run


def kill_after_checkpoint(root: Path, run, configs: list[Path]) -> None:
    from labeling.storage import storage_path
    from training.models import Run

    run = Run.objects.claim(run.pk)
    first, *others = [
        launch(root, file, ["join"] if rank else ["run", str(run.pk), run.worker], machine(rank))
        for rank, file in enumerate(configs)
    ]
    wanted = storage_path(run.folder) / f"checkpoints/checkpoint-{STEPS // 2}/complete"
    while not wanted.exists() and first.poll() is None:
        time.sleep(0.02)
    while run.n_done < STEPS // 2 and first.poll() is None:  # and was left for the others
        time.sleep(0.02)
        run.refresh_from_db()
    first.stdin.close()  # as if the worker were gone: all its processes end
    first.wait(60)
    for other in others:
        other.terminate()
        other.wait(60)
    run.refresh_from_db()
    print(f"killed at step {run.n_done} of {STEPS}", flush=True)
    Run.objects.filter(pk=run.pk).update(status="queued")


def machine(rank: int) -> str:
    """The storage folder of one of them."""
    return f"machine-{rank}"


def launch(root: Path, file: Path, words: list[str], storage: str) -> subprocess.Popen:
    (root / storage).mkdir(exist_ok=True)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(file),
            "-m",
            "training.child",
            *words,
        ],
        env=os.environ | {"PREFLOOP_STORAGE": str(root / storage)},
        stdin=subprocess.PIPE,
        stdout=(root / f"{storage}.log").open("w"),
        stderr=subprocess.STDOUT,
    )


def config(
    root: Path, rank: int, machines: int, processes: int, port: int = 0, extra: str = ""
) -> Path:
    """A file as `accelerate config` writes it."""
    kind = "FSDP" if extra else "MULTI_GPU" if processes > 1 else "NO"
    file = root / f"config-{kind}-{machines}-{rank}.yaml"
    file.write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\n"
        f"num_machines: {machines}\nnum_processes: {processes}\nmachine_rank: {rank}\n"
        f"main_process_ip: 127.0.0.1\nmain_process_port: {port}\nmixed_precision: 'no'\n"
        f"rdzv_backend: static\nsame_network: true\n{extra}"
    )
    return file


def differences(one, other) -> tuple[float, float]:
    """(of any number of any step, of any weight): the largest."""
    from safetensors.torch import load_file

    from labeling.storage import storage_path

    told = []
    for run in (one, other):
        rows = run.steps.order_by("step", "split").values_list("step", "split", "values")
        told.append(
            {(step, split, n): v for step, split, values in rows for n, v in values.items()}
        )
    if told[0].keys() != told[1].keys():
        return float("nan"), float("nan")
    weights = []
    for run in (one, other):
        (file,) = (storage_path(run.folder) / "model").glob("*model.safetensors")
        weights.append(load_file(file))
    return (
        max(abs(v - told[1][key]) for key, v in told[0].items()),
        max((v - weights[1][name]).abs().max().item() for name, v in weights[0].items()),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
