"""`remote_options` as a block."""

from contextvars import copy_context

from prefect_ray_worker.task_runner.options import remote_options, to_inherit


def test_one_instance_is_a_block_in_several_threads_at_once() -> None:
    """The first one to leave it raised ValueError: the token of another context was used."""
    gpu, cpus = remote_options(num_gpus=1), remote_options(num_cpus=2)
    one, other = copy_context(), copy_context()  # as each thread and each task of asyncio has one
    one.run(gpu.__enter__)
    other.run(cpus.__enter__)
    other.run(gpu.__enter__)
    one.run(gpu.__exit__)
    assert (one.run(to_inherit), other.run(to_inherit)) == ({}, {"num_gpus": 1, "num_cpus": 2})
    other.run(gpu.__exit__)
    assert other.run(to_inherit) == {"num_cpus": 2}


def test_an_instance_is_a_block_in_itself() -> None:
    gpu = remote_options(num_gpus=1)
    with gpu, remote_options(num_gpus=2):
        with gpu:
            assert to_inherit() == {"num_gpus": 1}
        assert to_inherit() == {"num_gpus": 2}
    assert to_inherit() == {}
