"""`neuronxcc.nki`, the namespace of NKI before 0.3: calls return tiles, loops may be masked, grids have two dimensions.

Source: general/nki/api of the AWS Neuron documentation of SDK 2.26, for example
https://awsdocs-neuron.readthedocs-hosted.com/en/v2.26.1/nki/api/generated/nki.isa.nc_matmul.html.
"""
