"""Rules of what is installed, and on what it runs."""

from __future__ import annotations

from xattn_neuron.rules.rule import Rule, issue, line

_NKI_NOTES = "release-notes/components/nki.rst"

RULES = (
    Rule(
        "pypi-wrong-package",
        "both",
        "nki",
        "",
        issue("aws-neuron-sdk", 916),
        "PyPI's torch-neuronx, nki and libneuronxla raise ImportError on import, and find_spec finds them.",
        "Reads metadata and files; the extra's floors are above every placeholder.",
    ),
    Rule(
        "pypi-empty-shell",
        "both",
        "nki",
        "",
        issue("aws-neuron-sdk", 916),
        "PyPI's neuronx-cc, neuronx-distributed and neuronx-distributed-inference install a folder with a hyphen, and "
        "nki-library nothing at all, while the metadata says that they are installed.",
        "A distribution counts only beside a module of its name.",
    ),
    Rule(
        "import-asks-for-a-device",
        "both",
        "nxdi",
        "",
        line(
            "neuronx-distributed-inference",
            "src/neuronx_distributed_inference/modules/attention/attention_base.py",
            85,
        ),
        "Some modules call get_platform_target() while they are imported, which raises off Neuron.",
        "Imports a kernel's module for a call alone, and passes its error on with a note.",
    ),
    Rule(
        "legacy-namespace-raises",
        "nki-legacy",
        "nki",
        ">=0.4",
        line("aws-neuron-sdk", _NKI_NOTES, 273),
        "neuronxcc.nki inside a kernel is a compilation error from NKI 0.4.0 (SDK 2.30) on.",
        "A Reason that names nki.",
    ),
    Rule(
        "nki-library-before-ga",
        "nki",
        "nki",
        "<0.3",
        line("aws-neuron-sdk", "release-notes/components/nki-lib.rst", 350),
        "Before SDK 2.29 attention_cte takes 32 heads times batch and 36864 tokens, and its arguments stand in another "
        "order.",
        "A Reason that names the release.",
    ),
    Rule(
        "nki-without-trn1",
        "both",
        "nki",
        ">=0.3",
        line("aws-neuron-sdk", "release-notes/components/nxd-inference.rst", 61),
        "NKI 0.3.0 kernels are not supported on Trn1 and Inf2.",
        "A Reason that names SDK 2.28.",
    ),
    Rule(
        "lnc-comes-from-the-environment",
        "both",
        "nki",
        "",
        line("aws-neuron-sdk", _NKI_NOTES, 185),
        "A kernel's grid has to agree with NEURON_LOGICAL_NC_CONFIG.",
        "Reads it, and launches the NKI library's kernels with it.",
    ),
)
