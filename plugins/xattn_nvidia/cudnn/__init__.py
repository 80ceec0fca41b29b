"""The backend `cudnn`: cuDNN's attention by nvidia-cudnn-frontend, for what torch's own call of cuDNN has not."""
