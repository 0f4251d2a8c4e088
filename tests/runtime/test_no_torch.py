import os
import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
import ssn.core, ssn.runtime
for package in (ssn.core, ssn.runtime):
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
import ssn.cli.infer
# scipy is not in the list: nibabel imports it on its own where it is installed.
heavy = {"torch", "timm", "FrEIA", "sklearn", "onnx", "matplotlib", "nilearn"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""


def test_core_and_runtime_load_no_torch_nor_anything_heavy():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_help_of_ssn_infer_loads_no_numerics():
    script = (
        "import sys, ssn.cli.infer; print([m for m in ('numpy', 'onnxruntime', 'nibabel', 'PIL') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_nothing_reports_home(tiny_bundle, tmp_path):
    script = f"""
import ssn
import onnxruntime
onnxruntime.InferenceSession({str(tiny_bundle / "flow.onnx")!r})
try:
    import openvino
except ImportError:
    pass
"""
    # Both also keep silent where CI is set, which would make this pass whatever we do.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "ORT_", "XDG_"))}
    subprocess.run([sys.executable, "-c", script], env=environment | {"HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []
