"""Every objective under the trainer is the same on two processes as on one."""

from pathlib import Path

import pytest
import torch

from tests.helpers.distributed_programs import launch
from tests.helpers.every_objective import OBJECTIVES, data, train


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.long
def test_two_processes_equal_one(tmp_path: Path, parallel: str) -> None:
    data(tmp_path / "shards")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from tests.helpers.every_objective import OBJECTIVES, train\n"
        "from cocomix.utils.distributed import distributed_session, rank\n"
        "torch.set_num_threads(1)\n"
        "home = Path(sys.argv[1])\n"
        "with distributed_session():\n"
        f"    how = {parallel!r}\n"
        "    made = {}\n"
        "    for name in OBJECTIVES:\n"
        "        less = how == 'fsdp' and not name.startswith('sae')  # recomputing activations changes nothing\n"
        "        made[name] = train(name, home, 'two', parallel=how, gradient_checkpointing=less)\n"
        "    torch.save(made, home / f'rank{rank()}.pt')\n"
    )
    launch(2, str(program), str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in OBJECTIVES:
        one = train(name, tmp_path, "one")
        for key, tensor in one.items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            if tensor.is_floating_point():
                assert (tensor - first[name][key]).abs().max() < 1e-4, (name, key)
            else:
                assert torch.equal(tensor, first[name][key]), (name, key)
