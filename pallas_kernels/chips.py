"""The short names of chips that the tables of measurements are keyed by."""

_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}


def chip_name(device_kind: str) -> str:
    """A chip's short name, or the device kind itself."""
    return _KINDS.get(device_kind, device_kind)
