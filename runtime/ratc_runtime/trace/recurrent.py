"""Recurrent layers as in cuDNN: one operator, its reserve, its workspaces and its flat buffer of weights.

`nn.LSTM`, `nn.GRU` and `nn.RNN` call `torch._VF.lstm` and its siblings, which take cuDNN's path on CUDA; on the CPU
they are hundreds of small operators. Here they become one autograd function with the allocations of cuDNN's path, in
the order of `aten/src/ATen/native/cudnn/RNN.cpp` of torch 2.11, and under autocast after those of
`aten/src/ATen/cudnn/AutocastRNN.cpp`. `Shape` gives the sizes of reserve and workspace.

As in torch, cuDNN is not used with `torch.backends.cudnn.enabled = False` or an empty input; the layer is then traced
step by step. A layer in bfloat16 is not flattened (`torch.backends.cudnn.is_acceptable`), nor one whose weights lie in
another buffer (ZeRO): each call then makes its own flat buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from ratc_runtime.trace import work
from ratc_runtime.trace.ledger import Ledger

MIB = 2**20
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
# Streaming multiprocessors, by compute capability; the largest of them for a card that is not here.
_MULTIPROCESSORS = {(7, 0): 80, (8, 0): 108, (9, 0): 132, (10, 0): 148}


@dataclass(frozen=True)
class Shape:
    """Parameters of cuDNN's sizes. `rows` are the time steps of all samples together, `element` the bytes of a number;
    `inputs`, `hidden` and `projection` are features, `steps` the time steps of the longest of `batch` sequences.

    The formulas were fitted to 40 of 96 layers measured with cuDNN 9.19 on an H200; the others agree, except for the
    allocator's rounding, within 0.11 % of the peak of forward (`tests/unit/ratc_runtime/trace/test_recurrent.py`).
    Measured were LSTM and GRU: one and two layers in one direction, two and three in both, hidden sizes of 128 to 1024,
    in three types, with and without dropout. Plain RNNs, projections, and one layer in two directions were not: they
    get the largest plausible size.
    """

    mode: str
    inputs: int
    hidden: int
    projection: int
    layers: int
    directions: int
    steps: int
    rows: int
    batch: int
    element: int
    dropout: bool
    packed: bool
    dtype: torch.dtype = torch.float32

    @property
    def outputs(self) -> int:
        """Features of a direction's output at one step."""
        return self.projection or self.hidden

    @property
    def weights(self) -> int:
        """Elements of all weight matrices."""
        found = 0
        for layer in range(self.layers):
            given = self.inputs if layer == 0 else self.directions * self.outputs
            found += GATES[self.mode] * self.hidden * (given + self.outputs) + self.projection * self.hidden
        return self.directions * found

    @property
    def operations(self) -> int:
        """Floating-point operations of a pass, forward or backward: two for each weight and row."""
        return 2 * self.weights * self.rows

    @property
    def kernels(self) -> int:
        """Number of products that run one after another: one for each step, layer and direction."""
        return self.steps * self.layers * self.directions

    @property
    def buffer(self) -> int:
        """Elements of the flat buffer. cuDNN has both biases even if the layer has none."""
        return self.weights + 2 * self.directions * self.layers * GATES[self.mode] * self.hidden

    @property
    def reserve_bytes(self) -> int:
        """Bytes that forward keeps for backward.

        A layer keeps its gates and cell (LSTM: 5 numbers a hidden unit and step; GRU: 6), the output of all but the
        last layer, and with dropout one bit for each number that a direction reads from the layer below.
        """
        kept = {"lstm": 5, "gru": 6}.get(self.mode, 2) + (1 if self.projection else 0)
        unit = self.rows * self.directions * self.element
        between = self.layers - 1
        mask = self.directions * self.rows * self.directions * self.outputs * between // 8 if self.dropout else 0
        return unit * (kept * self.layers * self.hidden + between * self.outputs) + mask + 256

    def small(self, forward: bool) -> bool:
        """Return whether torch asks for the algorithm for small hidden sizes: `use_rnn_persist_small_h` in RNN.cpp."""
        if self.packed or self.projection or self.dtype == torch.float64:
            return False
        gated = self.mode in ("lstm", "gru")
        return self.hidden <= ((192 if forward else 128) if gated else (384 if forward else 256))

    def workspace_bytes(self, forward: bool = True) -> int:
        """Bytes that a call allocates and frees: 8 MiB per layer and direction, the weights, and the rest."""
        stacked = self.layers * self.directions
        unit = self.rows * self.hidden * self.element
        sequence = self.rows * self.inputs * self.element
        state = self.batch * self.hidden * self.element
        rest = self._small(unit, sequence, state) if self.small(forward) else self._standard(unit, sequence, state)
        return 8 * MIB * stacked + self.weights * self.element + rest + 1024

    def _standard(self, unit: int, sequence: int, state: int) -> int:
        """Gates of both directions or of one chunk of time, and the sequences between the layers."""
        stacked = self.layers * self.directions
        gates = max(2, GATES[self.mode])
        gru = self.mode == "gru"
        if self.directions == 2:
            return 2 * (gates + 3) * unit + (2 if gru else 1) * sequence + (7 if gru else 12) * stacked * state
        states = (5 if gru else 10) * stacked * state
        chunked = gates * unit
        if self.layers > 1:
            # At 384 steps two layers work on chunks of 256 steps in all. Chunks of 128 a layer, or two thirds of the
            # steps, would both be that: the larger of the two.
            chunk = min(self.steps, max(128 * self.layers, -(-2 * self.steps // 3)))
            chunked = gates * unit * chunk // self.steps
        if self.dropout or not gru:
            return chunked + (2 if self.dropout else 1) * unit + sequence + states
        second = sequence if self.layers == 1 else max(5 * sequence // 4, 5 * unit // 16)
        return chunked + unit + sequence + second + states

    def _small(self, unit: int, sequence: int, state: int) -> int:
        stacked = self.layers * self.directions
        gru = self.mode == "gru"
        if self.dtype == torch.bfloat16:
            least = 4 * unit + sequence + (29 if gru else 35) * stacked * state
            return least if self.directions == 1 else max(least, self._standard(unit, sequence, state))
        multiple = 21 if gru else (23 if self.dropout else 22)
        more = max(0, sequence - unit)
        return multiple * unit * max(2, stacked) // 2 + 2 * more + (30 if gru else 8) * stacked * state


def _views(buffer: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    """Return views of a flat buffer. cuDNN's order differs, but no size depends on it."""
    found, start = [], 0
    for shape in shapes:
        found.append(buffer[start : start + shape.numel()].view(shape))
        start += shape.numel()
    return found


class _Flatten(torch.autograd.Function):
    """Copies of the weights in one buffer of autocast's type; in backward every gradient is widened, the last first."""

    @staticmethod
    def forward(ctx: Any, buffer: torch.Tensor, *weights: torch.Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.types = [weight.dtype for weight in weights]
        return tuple(_views(buffer, [weight.shape for weight in weights]))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        wide: list[Any] = [None] * len(gradients)
        for place in reversed(range(len(gradients))):
            if gradients[place] is not None and ctx.needs_input_grad[place + 1]:
                wide[place] = gradients[place].to(ctx.types[place])
        return (None, *wide)


class _Cudnn(torch.autograd.Function):
    """`_cudnn_rnn` and its backward: their allocations in order."""

    @staticmethod
    def forward(
        ctx: Any,
        shape: Shape,
        train: bool,
        batch_first: bool,
        x: torch.Tensor,
        hx: torch.Tensor,
        cx: torch.Tensor | None,
        buffer: torch.Tensor | None,
        *weights: torch.Tensor,
    ) -> Any:
        ctx.set_materialize_grads(False)
        steps = x.transpose(0, 1) if batch_first else x
        contiguous = steps.contiguous()
        output = x.new_empty((*steps.shape[:-1], shape.directions * shape.outputs))
        hy = torch.empty_like(hx)
        cy = None if cx is None else torch.empty_like(cx)
        flat = x.new_zeros(shape.buffer) if buffer is None else buffer
        workspace = x.new_empty(shape.workspace_bytes(), dtype=torch.uint8)
        reserve = x.new_empty(shape.reserve_bytes if train else 0, dtype=torch.uint8)
        del workspace, contiguous
        work.library("_cudnn_rnn", x.dtype, shape.kernels, shape.operations, x, output, flat, reserve)
        output = output.transpose(0, 1) if batch_first else output
        ctx.save_for_backward(x, hx, cx, output, flat, reserve, *weights)
        ctx.shape, ctx.train, ctx.batch_first = shape, train, batch_first
        return output, hy, cy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Any, grad_hy: Any, grad_cy: Any) -> Any:
        if not ctx.train:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        x, hx, cx, output, flat, reserve, *weights = ctx.saved_tensors
        shape: Shape = ctx.shape
        grad_output = torch.zeros_like(output) if grad_output is None else grad_output
        grad_hy = torch.zeros_like(hx) if grad_hy is None else grad_hy
        grad_cy = torch.zeros_like(cx) if grad_cy is None and cx is not None else grad_cy
        given, incoming = (t.transpose(0, 1) if ctx.batch_first else t for t in (x, grad_output))
        contiguous, incoming = given.contiguous(), incoming.contiguous()
        dx = torch.empty(given.shape, dtype=x.dtype, device=x.device)
        dhx = torch.empty_like(hx)
        dcx = None if cx is None else torch.empty_like(cx)
        workspace = x.new_empty(shape.workspace_bytes(forward=False), dtype=torch.uint8)
        del workspace, incoming, contiguous
        work.library("_cudnn_rnn_backward", x.dtype, shape.kernels, shape.operations, output, dx, flat, reserve)
        gradients: list[Any] = [None] * len(weights)
        if any(ctx.needs_input_grad[7:]):
            contiguous = given.contiguous()
            buffer = torch.zeros_like(flat[: shape.buffer])
            workspace = x.new_empty(shape.workspace_bytes(forward=False), dtype=torch.uint8)
            del workspace, contiguous
            work.library("_cudnn_rnn_weights", x.dtype, shape.layers, shape.operations, x, output, reserve, buffer)
            gradients = list(_views(buffer, [weight.shape for weight in weights]))
        dx = dx.transpose(0, 1) if ctx.batch_first else dx
        wanted = ctx.needs_input_grad
        return (None, None, None, dx if wanted[3] else None, dhx if wanted[4] else None, dcx, None, *gradients)


def _flat_buffer(weights: Sequence[torch.Tensor], wanted: int) -> torch.Tensor | None:
    """Return the buffer that holds all weights, if there is one: `try_get_weight_buf`."""
    storage = weights[0].untyped_storage()
    if any(weight.untyped_storage()._cdata != storage._cdata for weight in weights):
        return None
    first = weights[0].detach()
    if storage.nbytes() < wanted * first.element_size():
        return None
    return first.as_strided((wanted,), (1,), 0)


class Recurrent:
    """cuDNN's path for one compute capability."""

    def __init__(self, capability: tuple[int, int]) -> None:
        count = _MULTIPROCESSORS.get(capability, max(_MULTIPROCESSORS.values()))
        # Measured on 132 multiprocessors: 6,488,064 bytes.
        self._state_bytes = count * 49152
        self._state: torch.Tensor | None = None

    def _dropout_state(self, x: torch.Tensor) -> None:
        """Make the states of dropout's random numbers, once in a process: `get_dropout_state`."""
        if self._state is None:
            seed = x.new_empty((), dtype=torch.int64)
            del seed
            self._state = x.new_empty(self._state_bytes, dtype=torch.uint8)

    def run(
        self,
        mode: str,
        x: torch.Tensor,
        hidden: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        biased: bool,
        layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
        batch_sizes: list[int] | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Run a layer: `x` is (T, N, I), (N, T, I) if `batch_first`, or (sum of `batch_sizes`, I).

        Return output, last hidden state and, of an LSTM, last cell state.
        """
        hx, cx = hidden[0], hidden[1] if len(hidden) > 1 else None
        size = hx.shape[2] if cx is None else cx.shape[2]
        lower = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        if lower is not None and x.dtype == torch.float64:
            lower = None
        dtype = lower or x.dtype
        steps = len(batch_sizes) if batch_sizes else x.shape[1 if batch_first else 0]
        shape = Shape(
            mode=mode,
            inputs=x.shape[-1],
            hidden=size,
            projection=hx.shape[2] if hx.shape[2] != size else 0,
            layers=layers,
            directions=2 if bidirectional else 1,
            steps=max(1, steps),
            rows=x.numel() // x.shape[-1],
            batch=hx.shape[1],
            element=dtype.itemsize,
            dropout=bool(train and dropout > 0),
            packed=batch_sizes is not None,
            dtype=dtype,
        )
        if shape.dropout:
            self._dropout_state(x)
        buffer = _flat_buffer(weights, shape.buffer)
        if lower is not None and weights[0].dtype not in (lower, torch.float64):
            buffer = torch.zeros(shape.buffer, dtype=lower, device=x.device)
            weights = _Flatten.apply(buffer, *weights)
        if lower is not None:
            cx = None if cx is None else cx.to(lower)
            hx, x = hx.to(lower), x.to(lower)
        output, hy, cy = _Cudnn.apply(shape, train, batch_first, x, hx, cx, buffer, *weights)
        return (output, hy) if cy is None else (output, hy, cy)

    def replace(self, mode: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a replacement of the mode's function in `torch._VF`, which uses cuDNN's path if torch would."""

        def call(x: torch.Tensor, second: Any, *rest: Any) -> Any:
            if not torch._C._get_cudnn_enabled() or x.numel() == 0 or not x.is_floating_point():
                return original(x, second, *rest)
            # (x, batch_sizes, hx, ...) if packed, else (x, hx, ..., batch_first); an LSTM's hx is a pair.
            if not isinstance(rest[1], bool):
                sizes = _numbers(second) or []
                hidden, weights, biased, layers, dropout, train, both = rest
                return self.run(mode, x, _states(hidden), weights, biased, layers, dropout, train, both, False, sizes)
            return self.run(mode, x, _states(second), *rest)

        return call


def _states(hidden: Any) -> Sequence[torch.Tensor]:
    return (hidden,) if isinstance(hidden, torch.Tensor) else tuple(hidden)


def _numbers(tensor: torch.Tensor) -> list[int] | None:
    """Return the values of a tensor on the host; None if they are unknown."""
    if isinstance(tensor, FakeTensor):
        return None
    with _disable_current_modes():
        return [int(value) for value in tensor.tolist()]


class _Pack(torch.autograd.Function):
    """`_pack_padded_sequence`: every step's rows copied, then joined."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sizes: list[int], batch_first: bool) -> torch.Tensor:
        x = x.transpose(0, 1) if batch_first else x
        rows = [x.shape[2:].numel() * sum(sizes)]
        copies = x.new_empty(rows)
        packed = x.new_empty((sum(sizes), *x.shape[2:]))
        del copies
        ctx.given, ctx.batch_first = x.shape, batch_first
        return packed

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        wide = gradient.new_zeros(ctx.given)
        return (wide.transpose(0, 1) if ctx.batch_first else wide), None, None


class _Pad(torch.autograd.Function):
    """`_pad_packed_sequence`: an output of the padding, into which the rows are copied.

    Backward makes, for each copy, another gradient of the whole output, a slice of it, and a gradient of the rows; one
    of each is alive at a time.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sizes: list[int], steps: int, batch_first: bool) -> torch.Tensor:
        ctx.given = rows.shape
        padded = rows.new_empty((steps, sizes[0], *rows.shape[1:]))
        return padded.transpose(0, 1) if batch_first else padded

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        whole = torch.empty_like(gradient)
        part = gradient.new_empty(ctx.given)
        wide = gradient.new_zeros(ctx.given)
        del whole, part
        return wide, None, None, None


def pack(x: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace `torch._VF._pack_padded_sequence`, with its arguments and shapes.

    `x` is (steps, batch, features), or with `batch_first` (batch, steps, features). Unknown lengths count as the
    longest possible ones.
    """
    count, steps = (x.shape[0], x.shape[1]) if batch_first else (x.shape[1], x.shape[0])
    known = _numbers(lengths) or [steps] * count
    sizes = [sum(length > step for length in known) for step in range(max(known))]
    with _disable_current_modes():
        batch_sizes = torch.tensor(sizes)
    return _Pack.apply(x, sizes, batch_first), batch_sizes


def pad(
    rows: torch.Tensor, batch_sizes: torch.Tensor, batch_first: bool, value: float, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace `torch._VF._pad_packed_sequence`, with its arguments and shapes: `rows` is (all steps, features)."""
    sizes = _numbers(batch_sizes) or []
    steps = max(len(sizes), total)
    with _disable_current_modes():
        lengths = torch.tensor([sum(size > place for size in sizes) for place in range(sizes[0])])
    return _Pad.apply(rows, sizes, steps, batch_first), lengths


def install(capability: tuple[int, int]) -> None:
    """Use cuDNN's path in this process for every recurrent layer that would use it on CUDA."""
    functions: Any = torch._VF
    recurrent = Recurrent(capability)
    for mode in GATES:
        setattr(functions, mode, recurrent.replace(mode, getattr(functions, mode)))
    functions._pack_padded_sequence, functions._pad_packed_sequence = pack, pad


def flatten(module: nn.Module, ledger: Ledger, name: str) -> None:
    """Put a recurrent layer's weights into one buffer, as `flatten_parameters` does on CUDA. Skip other modules.

    The old weights, which the ledger has as parameters, become temporary there.
    """
    if not isinstance(module, nn.RNNBase):
        return
    weights = [getattr(module, name, None) for name in module._flat_weights_names]
    module._flat_weights = weights
    if any(not isinstance(weight, torch.Tensor) for weight in weights):
        return
    found: list[torch.Tensor] = [weight for weight in weights if weight is not None]
    types, storages = {weight.dtype for weight in found}, {weight.untyped_storage()._cdata for weight in found}
    if len(types) > 1 or torch.bfloat16 in types or len(storages) < len(found) or not torch._C._get_cudnn_enabled():
        return
    shape = Shape(
        module.mode.lower(),
        module.input_size,
        module.hidden_size,
        module.proj_size,
        module.num_layers,
        2 if module.bidirectional else 1,
        1,
        1,
        1,
        found[0].element_size(),
        False,
        False,
    )
    with torch.no_grad():
        buffer = torch.empty(shape.buffer, dtype=found[0].dtype, device="cpu")
        ledger.add(buffer, name, "parameter")
        for weight, view in zip(found, _views(buffer, [weight.shape for weight in found]), strict=True):
            ledger.mark(weight, "temporary")
            weight.data = view
