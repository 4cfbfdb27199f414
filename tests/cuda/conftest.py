import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def shim():
    torch = pytest.importorskip("torch")
    from attention_shim import Shim, find_library

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU is visible to PyTorch")
    path = find_library()
    if path is None:
        pytest.skip("libmegafold_attention_shim.so is not built (cuda preset); MEGAFOLD_LIBRARY_DIR names its folder")
    return Shim(path)
