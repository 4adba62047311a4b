"""What a command imports, and what stands in the place of torch's compiler while it is put off."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from diffguide.datasets import digits
from diffguide.runtime import put_off
from diffguide.runtime.put_off import put_off_compiler, use_optimizer

HEAVY = ["torch._dynamo", "torch._inductor", "sympy", "sklearn", "scipy", "pandas", "matplotlib", "torchvision"]
COMMANDS = f"""
import sys
from contextlib import nullcontext
from diffguide import sample, train

def run(main, *words):
    sys.argv = ["diffguide", *words]
    main()
    print("loaded", [name for name in {HEAVY} if name in sys.modules])

# two steps, a checkpoint, a grid; then a continued run, and a grid from the checkpoint
short = ["training.images=32", "training.batch_size=16", "backbone.channels=16", "backbone.head_channels=16"]
short += ["training.validation_images=16", "training.warmup_images=0", "sampler.steps=1", "name=a", "engine.accelerator=cpu"]
run(train.main, *short)
run(train.main, "resume=outputs/train/a/v001", "training.images=48")
run(sample.main, "checkpoint=outputs/train/a/v001", "n=2", "sampler.steps=2", "guidance=cfg", "engine.accelerator=cpu")

import torch
from torch import nn
from diffguide.runtime.put_off import use_optimizer

def train(make, use):
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    with use(make):
        optimizer = make(network.parameters(), lr=0.1)
    for _ in range(3):
        with use(optimizer):
            optimizer.zero_grad()
        network(torch.ones(4, 3)).square().mean().backward()
        with use(optimizer):
            optimizer.step()
    return network.weight.detach()

optimizers = torch.optim.AdamW, torch.optim.SGD
weights = [train(make, use_optimizer) for make in optimizers]
for method in (torch.optim.Optimizer.zero_grad, torch.optim.Optimizer.add_param_group):
    assert not hasattr(method.__wrapped__, "__dynamo_disable"), "torch asks its compiler again"
assert "torch._dynamo" not in sys.modules and "sympy" not in sys.modules
compiled = torch.compile(nn.Linear(2, 2), backend="eager")
x = torch.ones(1, 2)
assert torch.equal(compiled(x), compiled._orig_mod(x))
import torch._dynamo, sympy, lightning_fabric.wrappers as wrappers
from torch.fx.experimental.symbolic_shapes import guard_or_false, sym_eq
assert torch._dynamo.__file__ and sympy.__file__ and isinstance(compiled, torch._dynamo.OptimizedModule)
assert isinstance(compiled, wrappers.OptimizedModule) and not isinstance(nn.Linear(2, 2), wrappers.OptimizedModule)
assert all(torch.equal(train(make, lambda optimizer: nullcontext()), found) for make, found in zip(optimizers, weights))
counts = torch._dynamo.utils.counters["stats"]["unique_graphs"]
print("compiled graphs", counts)
"""


def test_a_training_and_a_sampling_import_no_compiler_and_no_plots(tmp_path):
    """In one fresh process, where torch.compile works afterwards."""
    done = subprocess.run([sys.executable, "-c", COMMANDS], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded")]
    assert loaded == ["loaded []"] * 3
    assert "compiled graphs 1" in done.stdout


@pytest.fixture
def without(monkeypatch):
    """No compiler is imported: its modules are out of sight."""
    for name in (put_off.DYNAMO, put_off.SHAPES, put_off.SYMPY):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_placeholders_leave_when_the_block_ends(without):
    with put_off_compiler():
        assert isinstance(sys.modules[put_off.DYNAMO], put_off.Placeholder)
        assert not isinstance(nn.Linear(1, 1), sys.modules[put_off.DYNAMO].OptimizedModule)
    assert not {put_off.DYNAMO, put_off.SHAPES, put_off.SYMPY} & set(sys.modules)
    with pytest.raises(RuntimeError), put_off_compiler():
        raise RuntimeError
    assert put_off.DYNAMO not in sys.modules


def test_a_name_that_a_placeholder_lacks_comes_from_the_module_itself(without, monkeypatch):
    real = object()
    monkeypatch.setattr(
        put_off.importlib, "import_module", lambda name: type("Real", (), {"other": real, "name": name})
    )
    with put_off_compiler():
        place = sys.modules[put_off.SYMPY]
        assert place.other is real
        assert not {put_off.DYNAMO, put_off.SHAPES, put_off.SYMPY} & set(sys.modules), "all make room together"
        with pytest.raises(AttributeError):
            print(place.__path__)


def test_answers_about_plain_sizes_are_those_of_torch():
    from torch.fx.experimental import symbolic_shapes as torch_answers

    group = []
    cases = {
        name: [(True,), (False,)]
        for name in ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true")
    }
    cases |= {"guarding_hint_or_throw": [(3,), (True,)], "has_guarding_hint": [(3,)], "is_nested_int": [(3,)]}
    cases |= {"sym_and": [(True,), (True, False), (True, True, True)], "sym_or": [(False,), (False, True)]}
    cases |= {"guard_size_oblivious": [(True,), (False,)], "is_concrete_int": [(3,)]}
    shapes = ((2, 3), torch.Size((2, 3))), ([2, 3], (2, 4)), ((), ()), ((2,), (2, 3)), (3, 3), (3, 4)
    cases["sym_eq"] = list(shapes)
    assert cases.keys() == put_off.ANSWERS.keys()
    for name, calls in cases.items():
        for call in calls:
            found = put_off.answer(name, group, put_off.ANSWERS[name])(*call)
            with warnings.catch_warnings(action="ignore"):  # one of them will be removed from torch
                assert found == getattr(torch_answers, name)(*call), (name, call)


def test_other_peoples_optimizers_find_the_compiler_as_ever(without):
    class Own(torch.optim.SGD):
        pass

    with use_optimizer(Own):
        assert put_off.DYNAMO not in sys.modules
    with use_optimizer(object()):
        assert put_off.DYNAMO not in sys.modules


def test_digits_are_read_as_scikit_learn_reads_them(monkeypatch):
    from sklearn.datasets import load_digits

    images, labels = digits.read_digits()
    wanted, wanted_labels = load_digits(return_X_y=True)
    for found, expected in ((images, wanted), (labels, wanted_labels)):
        assert found.dtype == expected.dtype and (found == expected).all() and found.shape == expected.shape
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    assert (digits.read_digits()[0] == wanted).all()
