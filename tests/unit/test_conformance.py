"""What is noticed between a create request and the engine's own account of the container."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sandboxworker.conformance import deviations
from sandboxworker.policy import SandboxPolicy
from sandboxworker.seccomp import Profile
from sandboxworker.spec import Identity, ImageFacts, build_spec, create_body

FACTS = ImageFacts("image", "sha256:" + "0" * 64, env=("PATH=/bin", "X=y"))
PROFILE = Profile("build", '{"defaultAction":"SCMP_ACT_ERRNO"}', "sha256:" + "1" * 64)
SPEC = build_spec(SandboxPolicy("image", runtime="runsc", core="1m"), FACTS, PROFILE)
REQUEST = create_body(SPEC, Identity("n", 20000, 20000, (("sandboxworker.master", "m"),)))

#: What inspect does not answer under the name that the request has it under.
_CONFIG = sorted(
    set(REQUEST)
    - {"HostConfig", "Image", "Cmd", "AttachStdin", "AttachStdout", "AttachStderr"}
)  # fmt: skip
_HOST = sorted(REQUEST["HostConfig"])
SETTINGS = [("Config", name) for name in _CONFIG] + [("HostConfig", name) for name in _HOST]
settings = st.sampled_from(SETTINGS)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("host"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
)


def faithful() -> dict[str, Any]:
    """What an engine answers that applied everything."""
    return answer_to(REQUEST)


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    request = copy.deepcopy(request)
    return {
        "Id": "1",
        "Image": request["Image"],
        "HostConfig": request.pop("HostConfig"),
        "Config": request,
        "Mounts": [],
    }


def means_nothing(value: Any) -> bool:
    return not value


def found(inspected: dict[str, Any], warnings: Any = ()) -> list[str]:
    return [deviation.setting for deviation in deviations(REQUEST, inspected, warnings)]


def test_faithful_answer_has_no_deviation() -> None:
    assert found(faithful()) == []


def test_engine_may_say_not_set_in_its_own_way() -> None:
    answer = faithful()
    for section in ("Config", "HostConfig"):
        for name, value in answer[section].items():
            if means_nothing(value):
                answer[section][name] = None
    assert found(answer) == []


def test_engine_may_leave_out_what_is_not_set() -> None:
    answer = faithful()
    for section in ("Config", "HostConfig"):
        answer[section] = {
            name: value for name, value in answer[section].items() if not means_nothing(value)
        }
    assert found(answer) == []


def test_engine_may_order_ulimits_and_keys_as_it_likes() -> None:
    answer = faithful()
    answer["HostConfig"]["Ulimits"] = [
        dict(reversed(limit.items())) for limit in reversed(answer["HostConfig"]["Ulimits"])
    ]
    answer["HostConfig"]["Tmpfs"] = dict(reversed(answer["HostConfig"]["Tmpfs"].items()))
    assert found(answer) == []


def test_labels_of_the_image_may_stand_beside_ours() -> None:
    answer = faithful()
    answer["Config"]["Labels"]["org.opencontainers.image.title"] = "x"
    assert found(answer) == []


def test_answer_that_says_nothing_deviates_in_everything_that_was_set() -> None:
    assert set(found({})) >= {"Image", "User", "Entrypoint", "HostConfig.Memory"}


@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_dropped_setting_is_noticed(section: str, name: str) -> None:
    asked = faithful()[section][name]
    assume_said = not means_nothing(asked)
    answer = faithful()
    del answer[section][name]
    wanted = [f"HostConfig.{name}" if section == "HostConfig" else name]
    assert found(answer) == (wanted if assume_said else [])


@given(settings, values)
def test_any_other_value_of_any_setting_is_noticed(where: tuple[str, str], value: Any) -> None:
    section, name = where
    answer = faithful()
    asked = answer[section][name]
    assume(value != asked and not (means_nothing(value) and means_nothing(asked)))
    answer[section][name] = value
    shown = f"HostConfig.{name}" if section == "HostConfig" else name
    assert shown in found(answer)


@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_setting_of_another_kind_is_noticed_and_is_no_crash(section: str, name: str) -> None:
    shown = f"HostConfig.{name}" if section == "HostConfig" else name
    for value in (5, "x", True, [5], ["x"], [["x"]], [{"x": 5}], {"x": 5}, {"x": {"y": []}}):
        answer = faithful()
        if value != answer[section][name]:
            answer[section][name] = value
            assert shown in found(answer), value


@given(st.data())
def test_one_number_changed_anywhere_inside_a_setting_is_noticed(data: Any) -> None:
    answer = faithful()
    holder, key = data.draw(st.sampled_from(list(numbers(answer["HostConfig"]))))
    holder[key] += data.draw(st.sampled_from([-1, 1]))
    assert len(found(answer)) == 1


def numbers(value: Any) -> Any:
    """Every place of a whole number inside, as its holder and its key."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries:
        if isinstance(inner, (dict, list)):
            yield from numbers(inner)
        elif isinstance(inner, int) and not isinstance(inner, bool):
            yield value, key


@pytest.mark.parametrize("name", ["Tmpfs", "Sysctls"])
def test_one_more_entry_in_a_mapping_is_noticed(name: str) -> None:
    answer = faithful()
    answer["HostConfig"][name]["/more"] = "rw"
    assert found(answer) == [f"HostConfig.{name}"]


@pytest.mark.parametrize("name", ["SecurityOpt", "CapDrop", "MaskedPaths", "ReadonlyPaths"])
def test_one_entry_less_or_more_in_a_list_is_noticed(name: str) -> None:
    for change in (lambda entries: entries.pop(), lambda entries: entries.append("more")):
        answer = faithful()
        change(answer["HostConfig"][name])
        assert found(answer) == [f"HostConfig.{name}"]


@pytest.mark.parametrize("name", ["Binds", "Devices", "VolumesFrom", "CapAdd", "PortBindings"])
def test_what_nobody_asked_for_is_noticed(name: str) -> None:
    answer = faithful()
    answer["HostConfig"][name] = ["something"]
    assert f"HostConfig.{name}" in found(answer)


def test_keepers_words_in_another_order_are_noticed() -> None:
    answer = faithful()
    answer["Config"]["Entrypoint"].reverse()
    assert found(answer) == ["Entrypoint"]


@pytest.mark.parametrize(
    "mount",
    [
        {"Type": "bind", "Source": "/", "Destination": "/host"},
        {"Type": "volume", "Name": "x", "Destination": "/data"},
        {"Type": "tmpfs", "Destination": "/unasked"},
        {"Destination": "/untyped"},
        {"Type": "bind", "Source": "/home", "Destination": SPEC.workspace},
        {"Type": "volume", "Name": "x", "Destination": "/tmp"},
    ],
)
def test_mount_that_nobody_asked_for_is_noticed(mount: dict[str, str]) -> None:
    answer = faithful()
    answer["Mounts"] = [mount]
    assert found(answer) == ["Mounts"]


def test_our_own_mounts_may_be_listed() -> None:
    answer = faithful()
    answer["Mounts"] = [
        {"Type": "tmpfs", "Destination": path} for path in REQUEST["HostConfig"]["Tmpfs"]
    ]
    assert found(answer) == []


def on_disk() -> dict[str, Any]:
    spec = build_spec(SandboxPolicy("image", disk_backing="disk"), FACTS, PROFILE)
    return create_body(spec, Identity("n", 20000, 20000, device="/dev/loop3"))


def test_volume_that_was_asked_for_may_be_listed() -> None:
    request = on_disk()
    answer = answer_to(request)
    answer["Mounts"] = [{"Type": "volume", "Destination": "/build"}]
    assert deviations(request, answer) == ()


@pytest.mark.parametrize("option", ["type", "device", "o"])
def test_volume_with_other_options_is_noticed(option: str) -> None:
    request = on_disk()
    answer = answer_to(request)
    (mount,) = answer["HostConfig"]["Mounts"]
    mount["VolumeOptions"]["DriverConfig"]["Options"][option] = "other"
    assert [each.setting for each in deviations(request, answer)] == ["HostConfig.Mounts"]


def test_times_of_an_images_health_check_are_no_health_check() -> None:
    answer = faithful()
    answer["Config"]["Healthcheck"]["Interval"] = 1_000_000_000
    assert found(answer) == []
    answer["Config"]["Healthcheck"]["Test"] = ["CMD", "true"]
    assert found(answer) == ["Healthcheck"]


def test_another_image_is_noticed() -> None:
    answer = faithful()
    answer["Image"] = "sha256:" + "1" * 64
    assert found(answer) == ["Image"]


def test_every_warning_is_a_deviation_with_the_engines_words() -> None:
    told = deviations(REQUEST, faithful(), ["no swap limit", "no pids limit"])
    assert ["no swap limit" in str(told[0]), "no pids limit" in str(told[1])] == [True, True]
    assert len(told) == 2


def test_no_warnings_at_all_is_no_deviation() -> None:
    assert found(faithful(), None) == []


def test_deviation_says_what_was_asked_and_what_is() -> None:
    answer = faithful()
    answer["HostConfig"]["PidsLimit"] = None
    (told,) = deviations(REQUEST, answer)
    assert str(told) == "HostConfig.PidsLimit: asked for 1024, got None"


def test_long_settings_are_shortened_in_messages() -> None:
    answer = faithful()
    answer["HostConfig"]["SecurityOpt"] = []
    (told,) = deviations(REQUEST, answer)
    assert len(str(told)) < 300
