"""Keys, flows and parameters of prefect.yaml and automations.yaml all exist. Prefect ignores unknown keys silently."""

from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import ConcurrencyLimitSpec, DeploymentConfig, PrefectYamlModel, WorkPoolConfig
from prefect.cli.deploy._triggers import DeploymentTriggerAdapter
from prefect.events.schemas.automations import AutomationCore
from prefect.flows import Flow, load_flow_from_entrypoint
from pydantic import BaseModel
from support.paths import ROOT

from tasks.settings import STAGES
from tasks.stages.announce import DATA_CHANGED

CONFIGURATION: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS: dict[str, dict[str, Any]] = {one["name"]: one for one in CONFIGURATION["deployments"]}
ON_REQUEST = {"download", "train-labeller", "rebuild", "compute"}


def unknown_keys(model: type[BaseModel], given: dict[str, Any]) -> set[str]:
    """Keys that Prefect would ignore."""
    aliases = {str(field.alias) for field in model.model_fields.values() if field.alias}
    return set(given) - set(model.model_fields) - aliases


def test_prefect_knows_every_key():
    PrefectYamlModel.model_validate(CONFIGURATION)
    assert unknown_keys(PrefectYamlModel, CONFIGURATION) == {"definitions"}  # YAML anchors alone
    for deployment in DEPLOYMENTS.values():
        assert not unknown_keys(DeploymentConfig, deployment)
        assert not unknown_keys(WorkPoolConfig, deployment["work_pool"])
        assert not unknown_keys(ConcurrencyLimitSpec, deployment["concurrency_limit"])
        for trigger in deployment.get("triggers", ()):
            read = DeploymentTriggerAdapter.validate_python(trigger)
            assert not unknown_keys(type(read), trigger)


def test_every_stage_has_its_deployment():
    assert set(DEPLOYMENTS) == {*STAGES, *ON_REQUEST}
    assert len(DEPLOYMENTS) == len(CONFIGURATION["deployments"])


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployment_loads_the_flow_of_its_name_with_parameters_that_it_takes(name):
    deployment = DEPLOYMENTS[name]
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert isinstance(flow, Flow)
    assert flow.name == name
    assert name in deployment["tags"]
    given = [deployment, *deployment.get("schedules", ()), *deployment.get("triggers", ())]
    for parameters in (one.get("parameters", {}) for one in given):
        assert set(parameters) <= set(flow.parameters.properties)
        flow.validate_parameters(dict.fromkeys(flow.parameters.required, "given with the run") | parameters)
    assert not any(schedule["active"] for schedule in deployment.get("schedules", ()))


def test_changed_data_runs_one_rebuild():
    waiting = [(name, trigger) for name, one in DEPLOYMENTS.items() for trigger in one.get("triggers", ())]
    assert [(name, trigger["expect"]) for name, trigger in waiting] == [("rebuild", [DATA_CHANGED])]


def test_automations_are_whole_and_those_that_need_no_block_are_on():
    given = yaml.safe_load((ROOT / "automations.yaml").read_text())["automations"]
    for automation in given:
        read = AutomationCore.model_validate(automation)
        assert not unknown_keys(AutomationCore, automation)
        assert not unknown_keys(type(read.trigger), automation["trigger"])
        for action, raw in zip(read.actions, automation["actions"], strict=True):
            assert not unknown_keys(type(action), raw)
        assert read.enabled == (automation["actions"][0]["type"] != "send-notification")
