"""How processes find each other: what is not understood is said before anything begins."""

import signal
import subprocess
import sys

import helpers
import pytest
import together

from gkd_jax import command, hosts
from gkd_jax.errors import UserError
from gkd_jax.hosts import joining, launch

SLURM = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # the batch script around the steps
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:3", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "Cloud TPU"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_what_has_started_several(environment, found):
    assert hosts.launched(environment) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a:1", 0), "--num_processes is 0; it must be at least 1"),
        (("a:1", 2, 2), "--process_id is 2; it must be one of 0 to 1"),
        (("a:1", 2, -1), "--process_id is -1; it must be one of 0 to 1"),
        (("a:1", None, 1), "--process_id is 1; it must be one of --num_processes, which is not given"),
        ((None, 2, 0), "--num_processes=2 needs --coordinator=HOST:PORT, the address of process 0"),
        (("a:1", 2), "--num_processes=2 needs --process_id, 0 to 1"),
        (("a:1",), "--coordinator=HOST:PORT needs --num_processes and --process_id"),
        (("a", 2, 0), "--coordinator is 'a'; it must be HOST:PORT or 'auto'"),
        (("a:b", 2, 0), "--coordinator is 'a:b'; it must be HOST:PORT or 'auto'"),
        (("a:70000", 2, 0), "--coordinator is 'a:70000'; it must be HOST:PORT or 'auto'"),
        ((":1", 2, 0), "--coordinator is ':1'; it must be HOST:PORT or 'auto'"),
        (("a:1", 2, 0, 0.0), "--coordinator_timeout is 0; it must be above 0 seconds"),
    ],
)
def test_arguments_that_do_not_fit_together(monkeypatch, arguments, message):
    monkeypatch.setattr(launch.jax.distributed, "initialize", pytest.fail)
    with pytest.raises(UserError) as caught:
        hosts.start(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("arguments", [(), (None, 1), ("a:1", 1, 0)])
def test_one_process_joins_nothing(monkeypatch, arguments):
    monkeypatch.setattr(launch.jax.distributed, "initialize", pytest.fail)
    assert not hosts.start(*arguments)


def test_one_process_under_slurm_where_it_is_told_so(monkeypatch):
    monkeypatch.setattr(launch.jax.distributed, "initialize", pytest.fail)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert not hosts.start(None, 1)


@pytest.mark.parametrize("given", [{}, {"coordinator": "auto"}])
def test_a_launcher_that_jax_knows_is_asked(monkeypatch, given):
    seen = []
    monkeypatch.setattr(launch.jax.distributed, "initialize", lambda *args, **fields: seen.append((args, fields)))
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    hosts.start(**given)
    ((arguments, fields),) = seen
    assert arguments == (None, None, None)
    assert fields["heartbeat_timeout_seconds"] == 60


def test_what_jax_refuses_is_a_sentence(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("UNKNOWN: Failed to start RPC server\nat length")

    monkeypatch.setattr(launch.jax.distributed, "initialize", refuse)
    with pytest.raises(UserError) as caught:
        hosts.start("a:1", 2, 0)
    assert str(caught.value) == ("process 0 could not join the other 1 at a:1 (UNKNOWN: Failed to start RPC server)")


def test_flags_of_the_command_line(tmp_path):
    file = together.write_config(tmp_path)
    given = ["--coordinator=h:1", "--num_processes=3", "--process_id=2", "--coordinator_timeout=7"]
    with helpers.registrations():
        parsed = command.parse(["gkd_jax", "--config", str(file), *given])
        assert parsed.joining == hosts.Given("h:1", 3, 2, 7.0)
        assert command.parse(["gkd_jax", "--config", str(file)]).joining == hosts.Given()
        assert command.parse(["gkd_jax", "--config", str(file), "--mode=print"]).joining is None
        one = ["--mode=shapes", "--num_processes=1"]
        assert command.parse(["gkd_jax", "--config", str(file), *one]).joining is None
        found = helpers.run("--config", file, "--mode=print", given[0])
    assert found.status == 2
    assert found.err == "gkd_jax: --coordinator stands with --mode=train or --mode=eval, not with --mode=print\n"


def test_one_process_is_not_watched():
    with joining.joined(hosts.Given()):
        assert joining.watching.running() is None
    with joining.joined(None):
        pass


@pytest.mark.slow
def test_a_coordinator_that_nobody_reaches(tmp_path):
    """JAX itself would wait for five minutes, and abort."""
    port = together.free_port()
    program = f"from gkd_jax import hosts; hosts.start('127.0.0.1:{port}', 2, 1, 1.0)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=together.TESTS.parent
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"gkd_jax: process 1 could not join the others: the coordinator 127.0.0.1:{port} does not answer (it took "
        "longer than 1 s)\n"
    )
    assert -done.returncode != signal.SIGABRT
