"""The Triton kernels of the installed `amd-aiter` without an AMD GPU: `interpreter` runs them on the CPU, `nvidia` on
an NVIDIA GPU, and `codeobjects` compiles them for AMD's."""
