"""The packages that PyPI has under the names of AWS's."""

from __future__ import annotations

WRONG = "WRONG PACKAGE. Please install the package from Neuron Repository - pip.repos.neuron.amazonaws.com"
# As PyPI has them: the name, the version, the folder, and what the folder's __init__.py does.
PLACEHOLDERS = {
    "torch-neuronx": ("1.0", "torch_neuronx", f'raise ImportError("{WRONG}")\n'),
    "nki": ("0.0.1", "nki", f'raise ImportError("{WRONG}")\n'),
    "libneuronxla": ("1.0", "libneuronxla", f'raise ImportError("{WRONG}")\n'),
    "neuronx-cc": ("1.0.post1", "neuronx-cc", f'raise ImportError("{WRONG}")\n'),
    "neuronx-distributed": ("0.1", "neuronx-distributed", f'raise ImportError("{WRONG}")\n'),
    "neuronx-distributed-inference": ("0.1.0", "neuronx-distributed-inference", f'raise ImportError("{WRONG}")\n'),
    "nki-library": ("0.0.2", "", ""),
}
