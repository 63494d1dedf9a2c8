"""What preflight has found fit is so, seen from outside Ansible; the lab's own needs are those of stage 3."""

from testinfra.host import Host


def test_services_may_open_as_many_files_as_stage_3_asks_for(host: Host) -> None:
    limits = host.check_output("grep 'Max open files' /proc/1/limits").split()
    assert int(limits[4]) >= 16_384


def test_dev_shm_is_as_large_as_stage_3_asks_for(host: Host) -> None:
    assert int(host.check_output("df --output=size -m /dev/shm | tail -1")) >= 1_024
