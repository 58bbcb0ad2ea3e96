"""Manifests and the job template of a GPU pool hold what Kubernetes and Prefect accept."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentCreate, WorkPoolCreate
from prefect.utilities.templating import apply_values
from support.kubernetes import find_faults
from support.paths import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
POOL: dict[str, Any] = json.loads((FOLDER / "gpu_pool.json").read_text())
DASK = list(yaml.safe_load_all((FOLDER / "dask.yaml").read_text()))

# Prefect's worker refuses a pod without these. They belong to the job, and Kubernetes ignores them in the pod.
PREFECT_DEMANDS = ("parallelism", "completions")


def make_job(**variables: Any) -> dict[str, Any]:
    """The manifest that Prefect's Kubernetes worker submits, with the values that it adds itself."""
    defaults = {name: one["default"] for name, one in POOL["variables"]["properties"].items() if "default" in one}
    made = apply_values(POOL["job_configuration"], defaults | {"name": "compute", "command": "run it"} | variables)
    (container,) = made["job_manifest"]["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": name, "value": value} for name, value in made["env"].items()]
    container["args"] = made["command"].split()
    return made["job_manifest"]


@pytest.mark.parametrize("manifest", DASK, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_knows_every_field(manifest):
    assert not find_faults(manifest)


def test_wrong_fields_are_found():
    service, _, worker = (json.loads(json.dumps(one)) for one in DASK)
    service["spec"]["selectors"] = service["spec"].pop("selector")
    del service["spec"]["ports"][0]["port"]
    worker["spec"]["replicas"] = "16"
    worker["spec"]["template"]["spec"]["containers"] = {"name": "worker"}
    found = find_faults(service) + find_faults(worker)
    assert {fault.split(":")[0] for fault in found} == {
        "Service.spec.selectors is unknown",
        "Service.spec.ports[0].port is missing",
        "Deployment.spec.replicas",
        "Deployment.spec.template.spec.containers",
    }


def test_dask_pods_find_each_other():
    service, scheduler, worker = DASK
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    for deployment in (scheduler, worker):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= scheduler["spec"]["template"]["metadata"]["labels"].items()
    assert address in worker["spec"]["template"]["spec"]["containers"][0]["args"]


def test_job_of_the_pool_is_a_job_of_kubernetes():
    job = make_job(gpus=4, data_root_claim="scans")
    pod = job["spec"]["template"]["spec"]
    for name in PREFECT_DEMANDS:
        assert pod.pop(name) == 1
    assert not find_faults(job)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "scans"
    assert pod["securityContext"]["runAsNonRoot"]


def test_template_uses_its_variables_and_no_other():
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(POOL["job_configuration"])))
    assert used == set(POOL["variables"]["properties"])


def test_prefect_refuses_wrong_variables():
    def check(**variables: Any) -> None:
        DeploymentCreate(name="compute", flow_id="0" * 32, job_variables=variables).check_valid_configuration(POOL)

    check(gpus=2)
    for wrong in ({"gpus": 0}, {"gpus": "two"}, {"image": None}):
        with pytest.raises(jsonschema.ValidationError):
            check(**wrong)


@pytest.mark.usefixtures("prefect_server")
def test_server_takes_the_template():
    pool = WorkPoolCreate(name="kubernetes-template", type="kubernetes", base_job_template=POOL)
    with get_client(sync_client=True) as client:
        assert client.create_work_pool(pool).base_job_template == POOL
        client.delete_work_pool(pool.name)
