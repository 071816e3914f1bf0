"""The simulated card: it refuses what a card refuses, and what a card would silently compute wrongly."""

import gc

import pytest
import torch

from simulated_cuda import RaceError, SimulatedTensor, simulated_cuda, why_not
from simulated_cuda.install import device_guards

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

ONE = 4 * 2**10  # bytes of `ones`


@pytest.fixture
def card():
    with simulated_cuda(total=2**30) as card:
        yield card


def ones(device="cuda") -> torch.Tensor:
    return torch.ones(2**10, device=device)


def test_afterwards_everything_is_as_before():
    names = [name for name in dir(torch.cuda) if not name.startswith("__")]
    before, guards = {name: getattr(torch.cuda, name) for name in names}, list(device_guards())
    with simulated_cuda():
        assert torch.cuda.is_available() and torch.get_device_module("cuda").device_count() == 1
        left = torch.ones(3, device="cuda")
        assert isinstance(left, SimulatedTensor) and left.device == torch.device("cuda", 0)
    assert all(getattr(torch.cuda, name) is value for name, value in before.items()) and list(device_guards()) == guards
    assert not torch.cuda.is_available() and torch.ones(2, 2)[0, 1] == 1 and not why_not()
    with pytest.raises(AssertionError, match="a simulated card that is gone"):
        left + 1
    weight = torch.ones(3, requires_grad=True)
    (2 * weight).sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), 2.0))


def test_an_operation_over_two_devices_raises_and_a_number_may_come_from_the_cpu(card):
    for meet in (torch.add, lambda a, b: torch.stack([a, b]), lambda a, b: a.copy_(b) + b, torch.dot):
        with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
            meet(ones(), ones("cpu"))
    assert (ones() * torch.tensor(2.0)).device == card.device
    with pytest.raises(RuntimeError, match="found at least two devices"):
        torch.stack([ones()[0], torch.tensor(2.0)])


def test_a_cards_random_numbers_are_refused(card):
    for drawn in (lambda: torch.rand(3, device="cuda"), lambda: ones().exponential_(), lambda: torch.randn_like(ones())):
        with pytest.raises(AssertionError, match="other random numbers"):
            drawn()
    assert torch.rand(3).device.type == "cpu"


MASK = torch.arange(2**10) > 3
WAITS = {
    "a number": ("read", lambda x: x[0].item()),
    "a truth": ("read", lambda x: bool((x > 0).all())),
    "a list": ("read", lambda x: x[:3].tolist()),
    "a copy": ("read", lambda x: x.cpu()),
    "a copy into": ("read", lambda x: ones("cpu").copy_(x)),
    "places": ("read", lambda x: x.nonzero()),
    "a mask": ("read", lambda x: x[x > 0]),
    "a mask that is written": ("read", lambda x: x.index_put_((x > 0,), x[:1])),
    "counts": ("read", lambda x: x.repeat_interleave(x.long())),
    "the CPU's index": ("write", lambda x: x[torch.arange(3)]),
    "what the CPU has": ("write", lambda x: torch.tensor([1.0], device=x.device)),
    "what the CPU writes": ("write", lambda x: x.copy_(ones("cpu"))),
    "pinned memory": ("write", lambda x: x.copy_(ones("cpu").pin_memory())),
}


@pytest.mark.parametrize(("kind", "work"), WAITS.values(), ids=WAITS)
def test_what_waits_is_counted_and_fails_where_nothing_may(card, kind, work):
    x = ones()
    card.waits.clear()
    work(x)
    assert card.waits == {kind: 1}
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        work(x)
    torch.cuda.set_sync_debug_mode("default")
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(main)
    with (
        pytest.raises(RuntimeError, match="previous error during capture") as raised,
        torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side),
    ):
        work(x)
    assert "capturing" in str(raised.value.__context__) or "capture" in str(raised.value.__context__)
    assert torch.cuda.current_stream() is side and not torch.cuda.is_current_stream_capturing()
    assert x.tolist() == [1.0] * 2**10


def test_what_does_not_wait_is_not_counted(card):
    x, pinned = ones(), ones("cpu").pin_memory()
    card.waits.clear()
    x.copy_(pinned, non_blocking=True)
    ones("cpu").to(x.device, non_blocking=True)
    x[torch.arange(3, device=x.device)] = 2.0
    x[1:5].view(2, 2).sum().expand(3).clone()
    torch.where(x > 1, x, 0.0).repeat_interleave(2)
    assert not card.waits and pinned.is_pinned() and not ones("cpu").is_pinned()


def captured(work):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()
    return graph, out


def test_a_capture_runs_nothing_and_a_replay_reads_and_writes_the_same_memory(card):
    x, total = ones(), torch.zeros(1, device="cuda")
    python = 2.0

    def work():
        total.add_(x.sum())
        return x * python + torch.arange(2**10, device="cuda") * 0

    graph, out = captured(work)
    assert total.item() == 0 and out.isnan().all()
    python = 3.0
    for number in (1.0, 5.0):
        x.fill_(number)
        graph.replay()
        assert torch.equal(out.cpu(), torch.full((2**10,), 2 * number))
    assert total.item() == 6 * 2**10 and (card.captures, card.replays) == (1, 2)


def test_a_capture_copies_from_pinned_memory_only(card):
    x, pinned = ones(), torch.full((2**10,), 2.0).pin_memory()
    with pytest.raises(RuntimeError, match="previous error during capture"):
        captured(lambda: x.copy_(ones("cpu"), non_blocking=True))
    torch.cuda.set_stream(card.default_stream)
    graph, _ = captured(lambda: x.copy_(pinned, non_blocking=True))
    assert x.sum().item() == 2**10
    graph.replay()
    assert x.sum().item() == 2**11


def test_a_graph_over_memory_that_was_freed_is_refused(card):
    graph, _ = captured(ones().neg)
    with pytest.raises(AssertionError, match="memory that was freed"):
        graph.replay()


def test_a_graph_keeps_its_memory_until_it_is_reset(card):
    x = ones()
    graph, out = captured(lambda: (x + 1) * 2)
    del out
    assert card.allocated == 3 * ONE
    graph.reset()
    assert card.allocated == ONE
    with pytest.raises(AssertionError, match="holds nothing"):
        graph.replay()


def test_a_capture_fails_on_demand(card):
    card.capture_error = "CUDA error: not permitted"
    with pytest.raises(RuntimeError, match="not permitted"):
        captured(ones)


@pytest.mark.parametrize("waits", ["stream", "event", "cpu", ""])
@pytest.mark.parametrize("use", ["read", "write", "take"])
def test_a_stream_that_does_not_wait_for_another_one_is_caught(card, use, waits):
    """take: memory of the main stream that another one reads is freed, and allocated again."""
    main, side = torch.cuda.current_stream(), torch.cuda.Stream()
    x = ones()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        x.add_(1) if use == "read" else x.sum()
    if use == "take":
        del x
    match waits:
        case "stream":
            main.wait_stream(side)
        case "event":
            main.wait_event(side.record_event())
        case "cpu":
            with torch.cuda.stream(side):
                torch.cuda.synchronize()
    again = {"read": lambda: x.sum(), "write": lambda: x.zero_(), "take": ones}[use]
    if waits:
        again()
    else:
        with pytest.raises(RaceError, match="without waiting for the stream"):
            again()


def test_memory_is_counted_and_runs_out(card):
    x = ones()
    view = x[5:].view(-1, 1)
    assert card.allocated == torch.cuda.memory_allocated() == ONE
    del x
    assert card.allocated == ONE and view.sum().item() == 2**10 - 5
    assert torch.cuda.mem_get_info() == (2**30 - ONE, 2**30)
    other = ones()
    del view, other
    assert card.allocated == 0 and card.peak == torch.cuda.max_memory_allocated() == 2 * ONE
    card.total = 2 * ONE
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        _ = [ones() for _ in range(3)]
    gc.collect()
    card.fail_at = card.allocations + 2
    assert ones().device == card.device
    with pytest.raises(torch.OutOfMemoryError):
        ones()
    ones()
    assert card.allocated == 0


def test_pinned_memory_is_limited_and_given_back(card):
    card.pinned_total = ONE
    pinned = torch.empty(2**10, pin_memory=True)
    with pytest.raises(RuntimeError, match="CUDA error: out of memory"):
        ones("cpu").pin_memory()
    del pinned
    assert ones("cpu").pin_memory().is_pinned()
