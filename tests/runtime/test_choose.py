import shutil
from dataclasses import replace
from importlib import import_module
from inspect import signature

import pytest
from written_engines import machine, write

from ssn.core.bundle import FLOW_FILE, load_bundle
from ssn.core.engine_record import FLOW_ENGINE
from ssn.core.errors import BackendError, BundleError, MemoryLimitError
from ssn.runtime import choose
from ssn.runtime.choose import AUTO_ORDER, Request, open_backend, options
from ssn.runtime.machine import look
from ssn.runtime.onnx_sessions import cuda_options, provider_chain

REBUILD = "ssn-export build-engine"


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return load_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def ways(bundle, here):
    return {(o.backend, o.device): o.problem for o in options(bundle, here, verify=True)}


def test_an_engine_that_matches_comes_first_and_cuda_before_any_cpu(bundle):
    write(bundle)
    here = machine(openvino="2026.4.1", providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert [(o.backend, o.device, o.problem) for o in options(bundle, here, verify=True)] == [
        (*way, None) for way in AUTO_ORDER
    ]


def test_of_several_engines_the_one_of_fp16_comes_first_and_int8_last(bundle):
    for precision in ("int8", "fp16", "fp32"):
        write(bundle, precision=precision)
    found = [o.entry.record.key.precision for o in options(bundle, machine()) if o.entry]
    assert found == ["fp16", "fp32", "int8"]


@pytest.mark.parametrize(
    ("engine", "here", "reason"),
    [
        ({"gpu": "NVIDIA A100"}, {}, "was built for NVIDIA A100 and this is NVIDIA H200"),
        ({"version": "1.2.0.54"}, {}, "was built by tensorrt_rtx 1.2.0.54"),
        ({"gpu": "any", "capability": "120"}, {}, "compute capability 120"),
        ({}, {"rtx": None}, "pip install tensorrt-rtx"),
    ],
)
def test_an_engine_of_elsewhere_is_passed_over_and_said_so(bundle, engine, here, reason):
    write(bundle, **engine)
    choice = open_backend(bundle, Request(threads=1), machine(**here))
    with choice.backend as backend:
        assert backend.describe()["backend"] == "onnxruntime"
    (warning,) = choice.warnings
    assert reason in warning
    assert "\n" not in warning
    with pytest.raises(BackendError, match=r"nothing can run as asked: .*tensorrt on cuda"):
        open_backend(bundle, Request(backend="tensorrt"), machine(**here))


def test_an_engine_of_another_model_is_refused_with_the_command_that_rebuilds_it(bundle):
    write(bundle, graphs={FLOW_FILE: "0" * 64})
    problem = ways(bundle, machine())["tensorrt", "cuda"]
    assert "was built from another flow.onnx" in problem
    assert REBUILD in problem


def test_a_modified_engine_is_never_run_and_the_next_backend_does(bundle):
    folder = write(bundle)
    data = bytearray((folder / FLOW_ENGINE).read_bytes())
    data[1] ^= 1
    (folder / FLOW_ENGINE).write_bytes(data)
    problem = ways(bundle, machine())["tensorrt", "cuda"]
    assert "modified" in problem
    assert REBUILD in problem
    choice = open_backend(bundle, Request(threads=1), machine())
    with choice.backend as backend:
        assert backend.name == "onnxruntime"


def test_a_modified_graph_is_an_error_and_not_passed_over(bundle):
    with (bundle.folder / FLOW_FILE).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="modified"):
        open_backend(bundle, Request(), machine(None))


def test_without_engines_the_command_that_builds_them_is_named(bundle):
    with pytest.raises(BackendError, match=f"no engine; build one: {REBUILD}"):
        open_backend(bundle, Request(backend="tensorrt"), machine())


def test_without_engines_tensorrt_by_name_falls_back_to_onnxruntimes_provider_and_auto_does_not(bundle, monkeypatch):
    opened = []

    def backend(bundle, threads=None, provider="cpu", *others):
        opened.append(provider)
        return "a backend"

    monkeypatch.setattr("ssn.runtime.onnxruntime.OnnxRuntimeBackend", backend)
    here = machine(providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"))
    choice = open_backend(bundle, Request(backend="tensorrt"), here)
    assert choice.label == "onnxruntime with TensorrtExecutionProvider"
    assert REBUILD in choice.passed_over[0]
    assert open_backend(bundle, Request(), here).label == "onnxruntime on cuda"
    assert opened == ["tensorrt", "cuda"]


def test_engines_that_do_not_fit_are_not_replaced_by_onnxruntimes_provider(bundle):
    write(bundle, gpu="NVIDIA A100")
    here = machine(providers=("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"))
    with pytest.raises(BackendError, match=r"nothing can run as asked: .*was built for NVIDIA A100"):
        open_backend(bundle, Request(backend="tensorrt"), here)


def test_an_engine_that_proves_to_be_modified_is_passed_over_and_a_memory_limit_that_is_too_low_is_not(
    bundle, monkeypatch
):
    write(bundle)
    here = machine(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))

    def open_option(bundle, option, request):
        if request.memory_limit:
            raise MemoryLimitError("2 MB are too few")
        if option.entry:
            raise BundleError("flow.engine: was modified")
        return "a backend"

    monkeypatch.setattr(choose, "open_option", open_option)
    choice = open_backend(bundle, Request(), here)
    assert (choice.label, choice.warnings) == ("onnxruntime on cuda", ["flow.engine: was modified"])
    with pytest.raises(MemoryLimitError, match="2 MB are too few"):
        open_backend(bundle, Request(memory_limit=2_000_000), here)


def test_what_was_asked_for_reaches_the_backend_that_runs(bundle, monkeypatch):
    def given(backend, device, entry=None):
        module, name = ("tensorrt", "TensorRTBackend") if entry else (backend, classes[backend])
        own = import_module(f"ssn.runtime.{module}")
        taken = signature(getattr(own, name))
        with monkeypatch.context() as patched:
            patched.setattr(own, name, lambda *values, **named: taken.bind(*values, **named).arguments)
            return dict(choose.open_option(bundle, choose.Option(backend, device, entry=entry), request))

    classes = {"onnxruntime": "OnnxRuntimeBackend", "openvino": "OpenVinoBackend"}
    request = Request(threads=3, batch=7, memory_limit=10**9, at_once=2)
    assert given("openvino", "cpu") == {"bundle": bundle, "threads": 3, "at_once": 2}
    for device in ("cpu", "cuda"):
        wanted = {"threads": 3, "provider": device, "memory_limit": 10**9, "at_once": 2}
        assert given("onnxruntime", device) == {"bundle": bundle, **wanted}
    wanted = {"entry": "an engine", "batch": 7, "memory_limit": 10**9}
    assert given("tensorrt", "cuda", "an engine") == {"bundle": bundle, **wanted}


def test_the_tensorrt_provider_takes_what_it_lacks_from_cuda_and_the_cpu():
    chain = provider_chain("tensorrt", cuda_options(memory_limit=2_000_000))
    assert [name for name, _ in chain] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert dict(chain)["CUDAExecutionProvider"]["gpu_mem_limit"] == "1000000", "half of it for each session"


def test_a_cpu_machine_runs_and_says_why_nothing_better_does(bundle):
    write(bundle)
    choice = open_backend(bundle, Request(threads=1), machine(None))
    with choice.backend:
        assert choice.label == "onnxruntime on cpu"
    assert [line.split(":")[0] for line in choice.passed_over] == [
        "tensorrt on cuda",
        "onnxruntime on cuda",
        "openvino on cpu",
    ]
    assert choice.warnings == [], "engines for another machine are no news on one without a GPU"


@pytest.mark.parametrize("here", [{}, {"openvino": "2026.4.1"}], ids=["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("known", "asked", "aligned"), [(True, None, True), (False, None, False), (True, False, False), (False, True, True)]
)
def test_a_volume_is_aligned_where_the_threshold_is_for_that_or_it_is_asked_for(bundle, here, known, asked, aligned):
    if here:
        pytest.importorskip("openvino")
    bundle = replace(bundle, calibration=replace(bundle.calibration, aligned_to_itself=known))
    request = Request("openvino" if here else "onnxruntime", threads=1, align=asked)
    with open_backend(bundle, request, machine(None, **here)).backend as backend:
        assert backend.name == request.backend
        assert ("aligned_to_itself" in backend.describe()) == aligned


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(backend="tensorrt"), "no NVIDIA GPU"),
        (Request(backend="tensorrt", device="cpu"), "tensorrt does not compute on cpu"),
        (Request(backend="openvino", device="cuda"), "openvino does not compute on cuda"),
        (Request(backend="openvino"), "pip install openvino"),
        (Request(device="cuda"), "no NVIDIA GPU"),
        (Request(backend="onnxruntime", device="cuda"), "no NVIDIA GPU"),
        (Request(memory_limit=10**9), "on a CPU, lower --batch"),
        (Request(device="cpu", memory_limit=10**9), "on a CPU, lower --batch"),
    ],
    ids=str,
)
def test_what_was_asked_for_and_cannot_run_is_one_clear_line(bundle, request_, reason):
    with pytest.raises(BackendError, match=reason) as refused:
        open_backend(bundle, request_, machine(None))
    assert "\n" not in str(refused.value)


def test_the_cpu_build_of_onnxruntime_is_told_to_be_replaced(bundle):
    with pytest.raises(BackendError, match="pip install onnxruntime-gpu"):
        open_backend(bundle, Request(backend="onnxruntime", device="cuda"), machine())


def test_this_very_machine_can_be_looked_at_and_runs_something(bundle):
    here = look()
    assert (here.device is None) == bool(here.no_device)
    with open_backend(bundle, Request(threads=1), here).backend as backend:
        assert backend.describe()["backend"] in {"tensorrt", "onnxruntime", "openvino"}
