"""nki.isa, the current namespace, an engine a file: what AWS's attention kernels use of it, and its documented limits.

Source of each: the page of that name under nki/api/generated of the AWS Neuron documentation (SDK 2.32), for example
https://awsdocs-neuron.readthedocs-hosted.com/en/latest/nki/api/generated/nki.isa.nc_matmul.html. An argument that no
attention kernel passes is not taken.
"""

from __future__ import annotations

from typing import Any

from xattn_elsewhere.nki.emulation.isa import dma, gpsimd, scalar, tensor, vector
from xattn_elsewhere.nki.emulation.isa.target import Engine, NcVersion, ReduceCmd, get_nc_version

NAMES: dict[str, Any] = {
    "engine": Engine,
    "vector_engine": Engine.vector,
    "scalar_engine": Engine.scalar,
    "gpsimd_engine": Engine.gpsimd,
    "tensor_engine": Engine.tensor,
    "reduce_cmd": ReduceCmd,
    "nc_version": NcVersion,
    "get_nc_version": get_nc_version,
    **{
        each.__name__: each
        for each in (
            *(tensor.nc_matmul, tensor.nc_transpose),
            *(vector.tensor_copy, vector.memset, vector.tensor_tensor, vector.tensor_scalar, vector.tensor_reduce),
            *(vector.scalar_tensor_tensor, vector.tensor_scalar_reduce, vector.reciprocal),
            *(vector.range_select, vector.nc_stream_shuffle),
            *(scalar.activation, scalar.activation_reduce),
            *(gpsimd.iota, gpsimd.affine_select, gpsimd.tensor_partition_reduce),
            *(dma.dma_copy, dma.dma_transpose),
        )
    },
}
