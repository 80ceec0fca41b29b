"""The backend `fa3`: FlashAttention-3, whichever build of it is installed."""
