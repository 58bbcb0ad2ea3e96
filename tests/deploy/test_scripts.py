"""Shell scripts of `deploy/` are free of warnings. Batch scripts run with Slurm's variables and a stand-in for srun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from support.command_line import run_ctclip
from support.paths import ROOT
from support.processes import HEEDING_SIGINT, wait_for
from support.programs import prepend_path, write_program

from warehouse.store import query

SCRIPTS = sorted((ROOT / "deploy").glob("**/*.s[hb]*"))
SLURM = ROOT / "deploy" / "slurm"
BIN = Path(sys.executable).parent
VARIABLES = {"SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "2", "SLURMD_NODENAME": "127.0.0.1"}
SRUN = 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"'


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda one: one.name)
def test_script_has_no_warning(script):
    for check in (["bash", "-n"], [BIN / "shellcheck"]):
        done = subprocess.run([*check, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def slurm_environment(folder: Path, **variables: str) -> dict[str, str]:
    """Variables of a job on this machine, whose programs are those of this Python and run this checkout."""
    write_program(folder / "programs", "srun", SRUN)
    write_program(folder / "programs", "ctclip", f'exec "{sys.executable}" -m flows "$@"')
    path = prepend_path(BIN, dict(os.environ) | VARIABLES | variables | {"PYTHONPATH": str(ROOT)})
    return prepend_path(folder / "programs", path) | {"CTCLIP_CHECKOUT": str(folder / "nowhere")}


@pytest.mark.parametrize("script", sorted(SLURM.iterdir()), ids=lambda one: one.name)
def test_options_of_slurm_stand_before_the_first_command(script):
    lines = script.read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    assert options == lines[1 : 1 + len(options)]
    assert all(line.removeprefix("#SBATCH --").partition("=")[0].replace("-", "").isalpha() for line in options)


@pytest.mark.parametrize("script", sorted(SLURM.iterdir()), ids=lambda one: one.name)
def test_job_without_a_data_root_says_so(script, tmp_path):
    environment = slurm_environment(tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    environment.pop("CTCLIP_DATA_ROOT", None)
    done = subprocess.run(["bash", script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "CTCLIP_DATA_ROOT: export the data root" in done.stderr


@pytest.mark.orchestration
@pytest.mark.usefixtures("prefect_server")
def test_conversion_over_slurm_makes_shards(few_phantoms, tmp_path):
    data_root = tmp_path / "data"
    assert run_ctclip("ingest", "--data-root", data_root, "--source", few_phantoms).returncode == 0
    environment = slurm_environment(tmp_path, CTCLIP_DATA_ROOT=str(data_root), TMPDIR=str(tmp_path))
    done = subprocess.run(
        ["bash", SLURM / "convert.sbatch", "--preset", "smoke", "--limit", "4"],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert query(data_root, "select count(*) from converted_volumes") == [(4,)]
    assert "Registered to:" in done.stderr  # a worker of the script's own cluster


@pytest.mark.orchestration
@pytest.mark.usefixtures("prefect_server")
def test_gpu_worker_over_slurm_serves_its_pool_until_sigterm(tmp_path):
    environment = slurm_environment(tmp_path, CTCLIP_DATA_ROOT=str(tmp_path), SLURM_JOB_ID=str(os.getpid()))
    command = [*HEEDING_SIGINT, "bash", str(SLURM / "gpu_worker.sbatch")]
    name = f"slurm-{os.getpid()}"

    def is_online() -> bool:
        with suppress(PrefectHTTPStatusError):  # the worker makes the pool where nobody has
            return any(one.name == name for one in client.read_workers_for_work_pool("gpu"))
        return False

    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        get_client(sync_client=True) as client,
        subprocess.Popen(command, env=environment, cwd=ROOT, **piped) as worker,
    ):
        try:
            wait_for(is_online, interval_s=1)
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.communicate(timeout=120)  # fails where it does not end


def test_gpu_worker_serves_a_pool_of_prefect_yaml():
    pools = {one["work_pool"]["name"] for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    script = (SLURM / "gpu_worker.sbatch").read_text()
    assert script.split("--pool ")[1].split()[0] in pools
