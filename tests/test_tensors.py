"""What counts as a tensor, checks of its values, and constants."""

import contextlib

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tiny import arrays_like
from vpvae_hf.tensors import (
    as_codes,
    as_floating,
    as_real,
    as_tensor,
    constant,
    deferred_checks,
    fetched_late,
    float32_products,
    require_finite,
)

VALUES = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
CODES = torch.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize("values", [VALUES, CODES, VALUES.half(), CODES > 3], ids=lambda values: str(values.dtype))
def test_arrays_of_any_layout_and_lists(values, tmp_path):
    for name, array in arrays_like(values, tmp_path).items():
        made = as_tensor(array, "values")
        assert torch.equal(made.to(values.dtype), values), name
        assert name == "lists" or made.dtype == values.dtype, name


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_codes_of_any_width(dtype):
    assert torch.equal(as_codes(CODES.numpy().astype(dtype)), CODES)
    assert torch.equal(as_codes(torch.from_numpy(CODES.numpy().astype(dtype))), CODES)
    assert torch.equal(as_codes(list(CODES.numpy().astype(dtype))), CODES)


@pytest.mark.parametrize("library", ["numpy", "torch", None, "arrow"])
def test_rows_of_a_table(library):
    rows = datasets.Dataset.from_dict({"codes": CODES.tolist()}).with_format(library)
    assert torch.equal(as_codes(rows[:]["codes"]), CODES)
    if library != "arrow":
        assert torch.equal(as_codes(rows["codes"]), CODES)
        assert torch.equal(as_codes(rows[1]["codes"]), CODES[1])
    assert torch.equal(as_codes(pyarrow.array(CODES.tolist())), CODES)


def test_a_tensor_stays_what_it_is_and_numbers_become_one():
    assert as_tensor(VALUES, "values") is VALUES
    assert as_tensor(np.float32(0.5), "values") == as_tensor(0.5, "values") == 0.5
    assert as_tensor([], "values").shape == (0,)
    assert as_tensor(VALUES.numpy(), "values", torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ("a.png", TypeError, "codes must be a tensor, an array or a list of these, got str; open files"),
        (["a.png"], TypeError, "got str; open files"),
        (None, TypeError, "got NoneType"),
        ([None, 1], TypeError, "got NoneType"),
        ({1, 2}, TypeError, "got set"),
        ({f"key {n}" * 30: 1 for n in range(90)}, TypeError, r"got dict, which holds key 0key.*, \.\.\.: give one of"),
        ({}, TypeError, "got dict, which holds nothing"),
        (np.array(["a"]), TypeError, "codes must be numbers, got an array of dtype <U1"),
        (np.array([None]), TypeError, "got NoneType"),
        (np.array(["2026"], "datetime64[Y]"), TypeError, r"got an array of dtype datetime64\[Y\]"),
        ([torch.zeros(3), torch.zeros(2)], ValueError, r"one shape, got 2 of shapes \(3,\), \(2,\); make them equal"),
        ([[1, 2], [3]], ValueError, r"got 2 of shapes \(2,\), \(1,\)"),
        ([1, [2]], ValueError, "lists of equal lengths, got numbers among lists"),
        ([torch.zeros(n) for n in range(1, 99)], ValueError, r"got 98 of shapes \(1,\), .*\(5,\), \.\.\.;"),
        (torch.zeros(2), TypeError, "codes must be integers, got torch.float32"),
        (np.zeros(2, bool), TypeError, "codes must be integers, got torch.bool"),
        (np.zeros(2, complex), TypeError, "codes must be integers, got torch.complex128"),
    ],
)
def test_what_is_refused_in_a_few_words(values, error, message):
    with pytest.raises(error, match=message) as raised:
        as_codes(values)
    assert len(str(raised.value)) < 400


def test_kinds_of_numbers():
    assert torch.equal(as_real(CODES.numpy(), "latents"), CODES)
    assert torch.equal(as_floating(VALUES.numpy(), "latents"), VALUES)
    for values in (VALUES > 0, VALUES.numpy() + 0j):
        with pytest.raises(TypeError, match="latents must be real numbers, got torch"):
            as_real(values, "latents")
    with pytest.raises(TypeError, match=r"latents must be floating point, got torch.int64; scale them to \[-1, 1\]"):
        as_floating(CODES, "latents")


@pytest.mark.parametrize(
    ("values", "scaling", "message"),
    [
        ([0.0, torch.nan, torch.inf], None, "of 3 samples are NaN or infinite; look"),
        ([0.0, -torch.inf], "divide", "of 2 samples are NaN or infinite; look"),
        ([-37.5, 2.0], "divide", "samples reach from -37.5 to 2, beyond the limit of 10; look; divide"),
        ([-37.5, 2.0], None, None),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_bad_values_are_told_at_once_or_later(values, scaling, message, dtype):
    values = torch.tensor(values, dtype=dtype)

    def told():
        return pytest.raises(ValueError, match=message) if message else contextlib.nullcontext()

    with told():
        require_finite(values, "samples", "; look", scaling)
    with deferred_checks() as checks:
        require_finite(torch.zeros(2), "zeros")
        with deferred_checks() as inner:
            require_finite(torch.full((1,), torch.nan), "others")
        require_finite(values, "samples", "; look", scaling)
    with told():
        checks.raise_failed()
    checks.raise_failed()  # checks that were raised are forgotten, so that a run does not collect them
    assert checks.bounds == []
    with pytest.raises(ValueError, match=r"step 3: some of 1 others"):
        inner.raise_failed("step 3: ")


@pytest.mark.parametrize("first", ["fake", "inference", "compiled", "eager"])
def test_constants_are_made_once_and_never_in_a_graph(first):
    numbers = (len(first), 5.0)  # made by no other test
    like, weights = torch.zeros(2), torch.ones(2, requires_grad=True)

    def scaled(x):
        return constant(numbers, torch.float32, x) * x

    def run(how):
        if how == "fake":
            with FakeTensorMode() as mode:
                assert isinstance(constant(numbers, torch.float32, mode.from_tensor(like)), FakeTensor)
        elif how == "inference":
            with torch.inference_mode():
                constant(numbers, torch.float32, like)
        else:
            torch._dynamo.reset()
            function = torch.compile(scaled, backend="eager", fullgraph=True) if how == "compiled" else scaled
            (gradient,) = torch.autograd.grad(function(weights).sum(), weights)
            assert gradient.tolist() == list(numbers)

    for how in (first, "eager", "compiled", "fake", "inference", "eager"):
        run(how)
    assert constant(numbers, torch.float32, like) is constant(numbers, torch.float32, torch.ones(7))
    assert type(constant(numbers, torch.float32, like)) is torch.Tensor


def test_results_are_waited_for_on_their_own_device_after_the_next_are_issued(monkeypatch):
    """Another device's stream, such as the current one's, would say too early that a copy is there."""
    told = []

    class Event:
        def record(self, stream=None):
            told.append(stream)

        def synchronize(self):
            told.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    with FakeTensorMode():
        places = "cuda:1", "cuda:0"
        issued = (((torch.zeros(2, device=place), torch.ones(3, device=place)), place) for place in places)
        fetched = [(place, [each.device.type for each in results]) for results, place in fetched_late(issued)]
    assert fetched == [("cuda:1", ["cpu", "cpu"]), ("cuda:0", ["cpu", "cpu"])]
    assert told == ["stream of cuda:1", "stream of cuda:0", "waited", "waited"]


@pytest.mark.parametrize("switch", ["older", "newer"])
def test_precision_of_products_is_left_as_it_was(switch):
    """With the newer switches alone torch cannot tell a precision for all."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    if switch == "older":
        torch.set_float32_matmul_precision("medium")
    else:
        cuda.fp32_precision = "tf32"
    try:
        before = cuda.fp32_precision, cpu.fp32_precision
        for precision, tf32 in (("highest", False), ("high", True)):
            with float32_products(precision):
                assert torch.get_float32_matmul_precision() == precision
                assert cuda.allow_tf32 == tf32  # which torch's compiler asks for
            assert (cuda.fp32_precision, cpu.fp32_precision) == before
        assert switch == "newer" or torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
        cuda.fp32_precision = cpu.fp32_precision = "none"
