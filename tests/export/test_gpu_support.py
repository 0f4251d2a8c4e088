"""A GPU that TensorRT refuses is told before anything is measured or built."""

import pytest

from ssn.core.engine_record import Device
from ssn.core.errors import BackendError
from ssn.export.engine import Target, load_builder
from ssn.export.gpu_support import require_supported
from ssn.runtime.cuda import find_device

GPU = Device("A GPU", "90", "1.0", 10**9)


@pytest.mark.skipif(find_device()[0] is not None, reason="there is a GPU here, which TensorRT may accept")
def test_what_cannot_be_loaded_is_refused_in_tensorrts_own_words():
    module = load_builder(None)
    with pytest.raises(BackendError, match=rf"{module.__name__} .* does not run on A GPU \(.+\); take another"):
        require_supported(module, GPU, Target("any", "80+", None))
