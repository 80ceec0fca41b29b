"""AWS's NKI kernels without a Trainium: `emulation` runs AWS's own files, `standin` takes their place."""
