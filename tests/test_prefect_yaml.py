"""prefect.yaml names flows that exist, one deployment each, with the parameters they take."""

from pathlib import Path

import yaml
from prefect.flows import Flow, load_flow_from_entrypoint

ROOT = Path(__file__).parent.parent


def test_every_deployment_loads_the_flow_of_its_name():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for deployment in deployments:
        path, _, function = deployment["entrypoint"].partition(":")
        flow = load_flow_from_entrypoint(f"{ROOT / path}:{function}")
        assert isinstance(flow, Flow)
        assert flow.name == deployment["name"]
        assert set(deployment.get("parameters", {})) <= set(flow.parameters.properties)
    names = [deployment["name"] for deployment in deployments]
    assert len(names) == len(set(names))
