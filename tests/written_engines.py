"""Engines on record for tests: real folders with real hashes around bytes that no TensorRT would take."""

from ssn.core.bundle import ENCODER_FILE, FLOW_FILE
from ssn.core.engine_record import ENCODER_ENGINE, FLOW_ENGINE, Device, EngineKey, EngineRecord, TensorSpec
from ssn.core.engines import write_engines
from ssn.core.hashed_files import file_entry
from ssn.runtime.machine import Machine

GPU = Device("NVIDIA H200", "90", "580.65", 141 * 2**30)
VERSION = "1.7.1.116"


def machine(device=GPU, *, rtx=VERSION, openvino=None, providers=("CPUExecutionProvider",)):
    modules = {"tensorrt": None, "tensorrt_rtx": rtx, "openvino": openvino}
    return Machine(device, "" if device else "no NVIDIA GPU", modules, "1.32.0", providers)


def write(bundle, *, gpu=GPU.name, capability="90", version=VERSION, precision="fp16", graphs=None, blobs=None):
    """Write an engine's folder and return it."""
    blobs = blobs or {ENCODER_ENGINE: b"encoder", FLOW_ENGINE: b"flow"}
    edge = "float32" if precision == "fp32" else "float16"
    spec = bundle.spec
    features = TensorSpec("features", edge, (-1, spec.features, spec.cells, spec.cells))
    slices = TensorSpec("slices", edge, (-1, 1, spec.grid.plane, spec.grid.plane))
    places, first = TensorSpec("places", "int64", (-1,)), TensorSpec("first", "int64", (1,))
    record = EngineRecord(
        key=EngineKey("tensorrt_rtx", version, gpu, capability, precision, 8),
        onnx={name: bundle.manifest["files"][name]["sha256"] for name in (ENCODER_FILE, FLOW_FILE)} | (graphs or {}),
        files={name: file_entry(data) for name, data in blobs.items()},
        inputs={ENCODER_ENGINE: (slices,), FLOW_ENGINE: (features, places, first)},
        outputs={ENCODER_ENGINE: (features,), FLOW_ENGINE: (TensorSpec("log_likelihood", "float32", (-1,)),)},
    )
    return write_engines(bundle, record, blobs)
