"""What all tests on a GPU need."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def torch():
    """PyTorch with a CUDA device; it comes before FAISS, as in the embedder: who comes first brings the libraries."""
    found = pytest.importorskip("torch", reason="needs PyTorch")
    if not found.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return found
