"""The short names of TPU chips that the tables of measurements are keyed by."""

_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}


def chip_name(device_kind: str) -> str:
    """A chip's short name, or the device kind itself."""
    return _KINDS.get(device_kind, device_kind)
