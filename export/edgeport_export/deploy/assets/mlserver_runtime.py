"""A bundle behind MLServer: arrays in, arrays out. While one batch runs, the requests that arrive gather into the next one, images of one size each.

MLServer's own batching joins requests whatever their sizes are, so it stays off.
"""

import asyncio
from collections import deque
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, Parameters

from edgeport_runtime import EdgeportError, load


class BundleModel(MLModel):
    """Ready once every golden case gave what it should on this machine. Responses tell the number of images that ran with theirs, as `batch`."""

    async def load(self) -> bool:
        extra = self.settings.parameters.extra
        self.bundle = load(Path(__file__).parent / "bundle", precision=extra["precision"], batch=extra["batch"] or 1)
        report = await asyncio.to_thread(self.bundle.check)
        if not report:
            raise RuntimeError(str(report))
        self.most, self.waiting, self.running = extra["batch"], deque(), None
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        if set(inputs) != {each.name for each in self.bundle.contract.inputs} or not all(array.ndim for array in inputs.values()):
            raise InferenceError(f"expected the inputs {', '.join(each.name for each in self.bundle.contract.inputs)}, got {', '.join(inputs) or 'none'}")
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((inputs, answer))
        if self.running is None:
            self.running = asyncio.create_task(self._run())
        outputs, batch = await answer
        encoded = [NumpyCodec.encode_output(name, values) for name, values in outputs.items()]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=encoded, parameters=Parameters(batch=batch))

    async def _run(self) -> None:
        while self.waiting:
            taken = self._taken()
            try:
                await self._answer(taken)
            except EdgeportError:
                for each in taken:  # alone, so that one bad request fails nobody else
                    try:
                        await self._answer([each])
                    except EdgeportError as error:
                        each[1].cancelled() or each[1].set_exception(InferenceError(str(error)))
        self.running = None

    def _taken(self) -> list:
        """The first request, and those of its size, up to the largest batch; `most` is 0 where images do not share a first axis."""
        first, *others = self.waiting
        taken, left, rows = [first], deque(), _rows(first)
        for each in others:
            fits = _sizes(each) == _sizes(first) and rows + _rows(each) <= self.most
            (taken if fits else left).append(each)
            rows += _rows(each) if fits else 0
        self.waiting = left
        return taken

    async def _answer(self, taken: list) -> None:
        merged = {name: np.concatenate([inputs[name] for inputs, _ in taken]) for name in taken[0][0]}
        outputs = await asyncio.to_thread(self.bundle.raw, **merged)
        start, batch = 0, sum(map(_rows, taken))
        for inputs_and_answer in taken:
            end = start + _rows(inputs_and_answer)
            if not inputs_and_answer[1].cancelled():
                own = {name: values[start:end] for name, values in outputs.items()} if len(taken) > 1 else outputs
                inputs_and_answer[1].set_result((own, batch))
            start = end


def _rows(request: tuple) -> int:
    return len(next(iter(request[0].values())))


def _sizes(request: tuple) -> dict:
    return {name: (array.shape[1:], array.dtype) for name, array in request[0].items()}
