"""ONNX export: ONNX Runtime gives the model's outputs, and unsupported models are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ratc_runtime.commands import export
from ratc_runtime.config.lock import lock_from
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.extras import export_onnx
from ratc_runtime.inference import open_checkpoint
from ratc_runtime.models.build import build_model
from torch import nn

from tests.helpers.lockfile import lock_content, run_training, write_data, write_lock

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(("ratio", "dims"), [(0.5, 2), (1.0, 2), (0.0, 2), (0.5, 3)])
def test_real_and_complex_rotary_embeddings_agree(ratio: float, dims: int) -> None:
    content = lock_content()
    content["model"]["args"] |= {"rotary_ratio": ratio, "spatial_dims": dims}
    content["data"]["image_size"] = [32] * dims
    model = build_model(lock_from(content)).eval()
    image = torch.randn(2, content["data"]["channels"], *[32] * dims)
    with torch.no_grad():
        expected = model(image)
        assert bool(export_onnx.make_real(model, image)) == bool(ratio)
        assert torch.allclose(model(image), expected, atol=1e-5)
        assert torch.allclose(model(image[:1]), expected[:1], atol=1e-5)


@pytest.mark.slow
def test_the_exported_file_gives_the_outputs_of_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path / "data")
    done = run_training(write_lock(tmp_path / "compiled"))
    assert done.returncode == 0, done.stderr
    checkpoint, file = tmp_path / "out/checkpoints/best.pt", tmp_path / "model.onnx"
    assert export.main([str(checkpoint), "-o", str(file)]) == 0, capfd.readouterr().err
    out, _ = capfd.readouterr()
    assert len(out.splitlines()) == 1
    assert "run by ONNX Runtime" in out
    assert [path.name for path in tmp_path.glob("*model.onnx*")] == ["model.onnx"]
    plain = open_checkpoint(checkpoint, device="cpu")
    image = torch.rand(5, plain.lock.data.channels, *plain.lock.data.image_size)
    session = onnxruntime.InferenceSession(str(file))
    found = session.run(None, {"image": image.numpy()})[0]
    with torch.no_grad():
        expected = plain.engine.module(image).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    # What is there is not written over.
    assert export.main([str(checkpoint), "-o", str(file)]) == 1
    assert "error[R520]" in capfd.readouterr().err
    # A file that computes something else is not kept.
    real = export_onnx.make_real

    def wrong(model: nn.Module, image: torch.Tensor) -> int:
        next(model.parameters()).data.mul_(1.5)
        return real(model, image)

    monkeypatch.setattr(export_onnx, "make_real", wrong)
    with pytest.raises(RuntimeFinding) as raised:
        export_onnx.write(checkpoint, plain.lock, tmp_path / "other.onnx")
    assert raised.value.code == "R551"
    assert not list(tmp_path.glob("*other.onnx*"))


def test_export_of_a_multi_scale_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lock_from(lock_content())
    lock = lock.replace(
        model=lock.model.replace(multi_scale=True),
        data=lock.data.replace(scales=[1.0, 0.5]),
    )
    monkeypatch.setattr(export_onnx, "_model", lambda *_: nn.Identity())
    with pytest.raises(RuntimeFinding) as raised:
        export_onnx.write(Path("none"), lock, Path("none.onnx"))
    assert raised.value.code == "R551"
