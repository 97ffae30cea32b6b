"""Recipes of the project's images: what they say, what names them, what is refused in one."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import docker.errors
import pytest
from click.testing import CliRunner

from sandboxworker import images
from sandboxworker.cli import build_image
from sandboxworker.cli.image import image
from sandboxworker.engine import sdk
from sandboxworker.errors import SandboxworkerError

RECIPES = images.recipes()
INDEX_TARGETS = """\
Debian|bookworm|main|http://mirror.invalid/debian/|bookworm
Debian|bookworm|main|http://mirror.invalid/debian/|bookworm
Debian|bookworm|contrib|http://mirror.invalid/debian/|bookworm
Debian|bookworm-security|main|http://mirror.invalid/debian-security/|stable-security
Debian|trixie|main|http://mirror.invalid/debian/|trixie
Somebody|bookworm|main|http://other.invalid/|bookworm
$(ORIGIN)|$(CODENAME)|main|http://never-fetched.invalid/|bookworm
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the recipes that a test may change."""
    return Path(shutil.copytree(images.RECIPES.resolve(), tmp_path / "images"))


# ---- recipes ------------------------------------------------------------------------------------


def test_the_images_are_debian_and_busybox_and_a_large_one_on_request() -> None:
    tags = {name: recipe.tag for name, recipe in RECIPES.items()}
    assert tags == {
        "debian": "sandboxworker/debian:bookworm",
        "busybox": "sandboxworker/busybox:latest",
        "workbench": "sandboxworker/workbench:bookworm",
    }
    assert [recipe.name for recipe in RECIPES.values() if recipe.on_request] == ["workbench"]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_dockerfile_and_recipe_give_the_same_settings(recipe: images.Recipe) -> None:
    dockerfile = recipe.dockerfile.read_text()
    settings = [line for line in recipe.configuration() if not line.startswith("LABEL")]
    variables = [line.removeprefix("ENV ") for line in settings if line.startswith("ENV")]
    for line in (f"ENV {' '.join(variables)}", *settings[len(variables) :]):
        assert f"\n{line}\n" in dockerfile


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_dockerfile_opens_nothing(recipe: images.Recipe) -> None:
    words = set(re.findall(r"^[A-Z]+", recipe.dockerfile.read_text(), re.MULTILINE))
    assert words == {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "CMD"}


def test_default_user_is_not_root() -> None:
    assert "USER 20000:20000" in RECIPES["debian"].configuration()


# ---- digest -------------------------------------------------------------------------------------


def test_digest_is_the_same_wherever_the_files_are(folder: Path) -> None:
    assert images.recipes(folder)["debian"].digest() == RECIPES["debian"].digest()


@pytest.mark.parametrize("changed", ["debian/recipe.toml", "debian/Dockerfile", "harden.sh"])
def test_digest_changes_with_a_file_of_the_recipe(folder: Path, changed: str) -> None:
    with (folder / changed).open("a") as file:
        file.write("# more\n")
    assert images.recipes(folder)["debian"].digest() != RECIPES["debian"].digest()


@pytest.mark.parametrize("changed", ["README.md", "debian/README.md", "debian/.swp"])
def test_digest_does_not_change_with_what_is_no_part_of_it(folder: Path, changed: str) -> None:
    (folder / changed).write_text("other")
    assert images.recipes(folder)["debian"].digest() == RECIPES["debian"].digest()


def test_another_image_of_the_same_folder_keeps_its_digest(folder: Path) -> None:
    (folder / "debian" / "Dockerfile").write_text("other")
    assert images.recipes(folder)["busybox"].digest() == RECIPES["busybox"].digest()


# ---- from packages ------------------------------------------------------------------------------


def test_sources_are_the_machines_own_for_the_suite_and_debian_only() -> None:
    assert images.debian_sources(INDEX_TARGETS, "bookworm") == (
        "deb http://mirror.invalid/debian/ bookworm main",
        "deb http://mirror.invalid/debian-security/ stable-security main",
    )


def test_without_sources_of_the_suite_mmdebstrap_chooses() -> None:
    assert images.debian_sources("", "bookworm") == ()
    assert images.debian_sources(INDEX_TARGETS, "sid") == ()


def test_only_proxy_certificate_and_date_settings_of_apt_are_taken_over() -> None:
    dump = (
        'APT "";\n'
        'Acquire::http::Proxy "http://proxy.invalid:3142";\n'
        'Acquire::https::Proxy "";\n'
        'Acquire::Check-Date "false";\n'
        'APT::Update::Post-Invoke:: "rm -rf /";\n'
    )
    assert images.apt_options(dump) == (
        'Acquire::http::Proxy "http://proxy.invalid:3142"',
        'Acquire::Check-Date "false"',
    )


def test_mmdebstrap_gets_packages_suite_tree_and_sources(tmp_path: Path) -> None:
    command = images.mmdebstrap_command(RECIPES["busybox"], tmp_path, ["deb a b c"], ["A::B"])
    assert "--include=busybox-static" in command
    assert "--variant=extract" in command
    assert "--aptopt=A::B" in command
    assert command[-3:] == ["bookworm", str(tmp_path), "deb a b c"]


# ---- what an image must not contain -------------------------------------------------------------


def _archive(*members: tarfile.TarInfo) -> tarfile.TarFile:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as writer:
        for member in members:
            writer.addfile(member)
    content.seek(0)
    return tarfile.open(fileobj=content)


def _member(name: str, mode: int = 0o755, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.type = mode, kind
    return member


def test_an_ordinary_archive_has_no_faults() -> None:
    link = _member("bin", 0o777, tarfile.SYMTYPE)
    assert images.archive_faults(_archive(link, _member("tmp", 0o1777, tarfile.DIRTYPE))) == []


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6000])
def test_set_uid_and_set_gid_files_are_faults(mode: int) -> None:
    assert images.archive_faults(_archive(_member("bin/su", mode))) == [
        f"bin/su: set-uid or set-gid bit (mode {mode:o})"
    ]


def test_file_capabilities_are_a_fault() -> None:
    member = _member("bin/ping")
    member.pax_headers = {"SCHILY.xattr.security.capability": "x"}
    assert images.archive_faults(_archive(member)) == ["bin/ping: file capabilities"]


def test_devices_are_faults() -> None:
    assert images.archive_faults(_archive(_member("dev/sda", 0o600, tarfile.BLKTYPE))) == [
        "dev/sda: device"
    ]


# ---- harden.sh ----------------------------------------------------------------------------------


@pytest.fixture
def hardened(tmp_path: Path) -> Path:
    """A root with a set-uid file and a link where a directory must be, after two runs."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "su").touch()
    (root / "bin" / "su").chmod(0o6755)
    (root / "build").symlink_to("/etc")
    for _ in range(2):
        subprocess.run(
            ["sh", str(images.RECIPES / "harden.sh"), str(root)], check=True, capture_output=True
        )
    return root


@pytest.mark.skipif("os.geteuid() != 0", reason="gives files to root")
class TestHarden:
    def test_set_uid_bits_are_gone(self, hardened: Path) -> None:
        assert (hardened / "bin" / "su").stat().st_mode & 0o7777 == 0o755

    def test_mount_points_are_real_directories(self, hardened: Path) -> None:
        for name in ("build", "tmp", "run/secrets", "dev/shm"):
            assert (hardened / name).is_dir()
            assert not (hardened / name).is_symlink()
        assert (hardened / "tmp").stat().st_mode & 0o7777 == 0o1777

    def test_each_uid_of_the_range_and_the_keeper_have_one_name(self, hardened: Path) -> None:
        lines = (hardened / "etc" / "passwd").read_text().splitlines()
        uids = [int(line.split(":")[2]) for line in lines]
        assert uids == [65533, *range(20000, 20512)]
        assert lines[6] == "build5:x:20005:20005:sandboxed build:/build:/bin/sh"


# ---- the command --------------------------------------------------------------------------------


class MemoryImages:
    """Of the docker SDK's client what the command asks for; images are a dictionary."""

    def __init__(self, **arguments: object) -> None:
        self.by_tag: dict[str, dict[str, object]] = {}
        self.removed: list[str] = []

    def inspect_image(self, tag: str) -> dict[str, object]:
        if tag not in self.by_tag:
            raise docker.errors.ImageNotFound(tag)
        return self.by_tag[tag]

    def remove_image(self, identity: str) -> None:
        self.removed.append(identity)

    def close(self) -> None:
        pass

    def build(self, recipe: images.Recipe) -> None:
        identity = f"sha256:{len(self.by_tag)}-{recipe.digest()}"
        self.by_tag[recipe.tag] = {
            "Id": identity,
            "Size": 1_000_000,
            "Config": {"Labels": recipe.labels()},
        }


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MemoryImages:
    memory = MemoryImages()
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setattr(sdk, "sdk_client", lambda address: memory)
    monkeypatch.setattr(
        build_image, "build", lambda client, recipe, origin, progress: memory.build(recipe)
    )
    return memory


def _run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(image, arguments)
    return result.exit_code, result.output


def test_build_makes_every_usual_image_and_then_nothing(engine: MemoryImages) -> None:
    usual = [recipe.tag for recipe in RECIPES.values() if not recipe.on_request]
    assert _run("build")[0] == 0
    assert set(engine.by_tag) == set(usual)
    code, output = _run("build")
    assert code == 0
    assert output.count("up to date") == len(usual)


def test_an_outdated_image_is_made_anew_and_the_old_one_removed(engine: MemoryImages) -> None:
    tag = RECIPES["busybox"].tag
    labels = {images.RECIPE_LABEL: "sha256:other"}
    engine.by_tag[tag] = {"Id": "sha256:old", "Size": 1, "Config": {"Labels": labels}}
    assert "outdated" in _run("list")[1]
    assert _run("build", "busybox")[0] == 0
    assert engine.removed == ["sha256:old"]
    assert "outdated" not in _run("list")[1]


def test_an_image_of_that_tag_without_labels_is_outdated(engine: MemoryImages) -> None:
    engine.by_tag[RECIPES["busybox"].tag] = {"Id": "x", "Size": 1, "Config": None}
    assert "outdated" in _run("list")[1]


def test_force_makes_it_anew(engine: MemoryImages) -> None:
    _run("build", "busybox")
    assert "making it" in _run("build", "busybox", "--force")[1]


def test_unknown_name_is_told_with_the_known_ones(engine: MemoryImages) -> None:
    assert _run("build", "debain") == (
        125,
        "sandboxworker: error: unknown image 'debain': known: busybox, debian, workbench\n",
    )


def test_an_engine_that_is_down_is_one_line_and_125() -> None:
    code, output = _run("list", "--engine", "unix:///nowhere/docker.sock")
    assert code == 125
    assert output.count("\n") == 1
    assert "unix:///nowhere/docker.sock does not answer" in output
    assert "Traceback" not in output


def test_an_engine_address_that_makes_no_sense_is_one_line_and_125() -> None:
    code, output = _run("list", "--engine", "nonsense")
    assert (code, output.count("\n")) == (125, 1)


def test_packages_without_mmdebstrap_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *arguments, **more: None)
    assert build_image.choose_origin("auto") == "registry"
    with pytest.raises(SandboxworkerError, match="apt-get install mmdebstrap"):
        build_image.choose_origin("packages")


def test_packages_need_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *arguments, **more: "/usr/bin/mmdebstrap")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert build_image.choose_origin("auto") == "registry"
    with pytest.raises(SandboxworkerError, match="only root"):
        build_image.choose_origin("packages")


def test_a_program_that_fails_is_told_with_its_last_lines() -> None:
    progress = build_image.Progress(lambda line: None)
    with pytest.raises(SandboxworkerError, match=r"exit code 4.*\n    why"):
        build_image._run(["sh", "-c", "echo why >&2; exit 4"], progress)


def test_a_program_that_is_missing_is_told() -> None:
    with pytest.raises(SandboxworkerError, match="cannot run no-such-program"):
        build_image._run(["no-such-program"], build_image.Progress(lambda line: None))
